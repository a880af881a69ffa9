"""The entry points of the programs `maskfeat` and `maskfeat-shards`, which import little themselves."""

from importlib import import_module

from shards.interrupts import ending_quietly


def maskfeat() -> None:
    """Run `maskfeat`."""
    _run("pipeline.console.main")


def maskfeat_shards() -> None:
    """Run `maskfeat-shards`."""
    _run("pipeline.cli")


def _run(module: str) -> None:
    with ending_quietly():
        main = import_module(module).main
    main()
