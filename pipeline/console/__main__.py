"""`python -m pipeline.console` is `maskfeat`."""

from pipeline.console.main import main

main()
