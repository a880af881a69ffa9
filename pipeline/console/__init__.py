"""The program `maskfeat`: its commands, and the start of those that run on several processes."""
