"""Shared parts of the programs `maskfeat-shards` and `maskfeat`."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version as version_of
from typing import Annotated

import typer

from shards.interrupts import STATUS


def program(name: str, description: str) -> typer.Typer:
    """Return a program without commands. It has `--version`, and without arguments it prints its help."""
    app = typer.Typer(
        help=description,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )

    def print_version(asked: bool) -> None:
        if asked:
            print(f"{name} {version_of('maskfeat-pipeline')}")
            raise typer.Exit

    def options(
        version: Annotated[
            bool, typer.Option("--version", help="Print the version.", callback=print_version, is_eager=True)
        ] = False,
    ) -> None:
        pass

    app.callback()(options)
    return app


@contextmanager
def quietly() -> Iterator[None]:
    """End the program without a message once it is interrupted, or once the reader of its output, as `head`, has left.

    The status is 130 or 1.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(STATUS)
