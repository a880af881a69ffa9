"""The inputs of `build`: folders, tars of class tars, and tables."""
