"""The commands of `maskfeat`, a module each; programs of the same names in scripts/ run them in a checkout."""
