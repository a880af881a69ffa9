"""The program `maskfeat`: its commands, and how it starts those that run on several processes."""
