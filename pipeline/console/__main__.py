"""`python -m pipeline.console` is `maskfeat`."""

from pipeline.console.entry import maskfeat

maskfeat()
