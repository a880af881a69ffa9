"""Show how far work over batches is."""

from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import track

from shards.terminal import shown

Item = TypeVar("Item")


def tracked(items: Iterable[Item], what: str, total: int, hidden: bool = False) -> Iterable[Item]:
    """Yield the items, with a progress bar on stderr if that is a terminal; stdout is for results.

    Args:
        items: the items.
        what: label of the bar.
        total: number of items.
        hidden: do not draw the bar, as on all ranks but one.
    """
    console = Console(stderr=True)
    hidden = hidden or not console.is_terminal
    return track(items, escape(shown(what)), total, console=console, disable=hidden, transient=True)
