"""The commands of `maskfeat`, one module each; programs of the same names in scripts/ run them in a checkout."""
