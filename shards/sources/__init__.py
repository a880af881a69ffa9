"""What `build` reads: folders, tars of class tars, and tables."""
