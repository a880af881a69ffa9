"""Name tars: expand patterns of the command line, and name them in a data set."""

import glob
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import braceexpand

from shards.files import ShardError, real
from shards.remote.urls import is_url
from shards.storage import has_query, printable_url, shows_credentials, why_unsupported
from shards.tars.samples import idx_name
from shards.text import portable


def names_of(patterns: Sequence[str], out: str) -> list[str]:
    """Expand patterns to the names of tars in the data set in `out`, each once, in their order.

    Raises ShardError for a pattern without a tar, a URL that may not be read, and two tars of one `.idx`.
    """
    names = list(dict.fromkeys(_name(path, out) for path in _expand(patterns)))
    _refuse_equal_indices(names)
    return names


def _expand(patterns: Sequence[str]) -> list[str]:
    """Expand patterns to tars."""
    tars: list[str] = []
    for pattern in patterns:
        try:
            expanded = [pattern] if _is_file(pattern) else list(braceexpand.braceexpand(pattern))
        except ValueError:
            raise ShardError(f"{pattern}: its braces do not match; correct them") from None
        for one in expanded:
            if is_url(one):
                if shows_credentials(one) or has_query(one):
                    raise ShardError(
                        f"{printable_url(one)}: contains credentials or a query, which dataset.json would show; leave "
                        "them out, credentials come from the environment"
                    )
                why = why_unsupported(one)
                if why is not None:
                    raise ShardError(f"{printable_url(one)}: cannot be read: {why}")
                tars.append(one)
            elif _is_file(one):
                tars.append(one)
            else:
                found = sorted(path for path in glob.glob(one, recursive=True) if _is_file(path))  # noqa: PTH207
                if not found and os.path.exists(one):  # noqa: PTH110 -- also false for names that are too long
                    remedy = f"{shlex.quote(f'{one}/*.tar')} for those of a folder"
                    raise ShardError(f"{one}: is not a file; give tars, such as {remedy}")
                if not found:
                    raise ShardError(f"{one}: no such tar; correct the path or the pattern")
                tars += found
    return tars


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except PermissionError as error:
        raise ShardError(f"{path}: {error.strerror}; make its folder readable (chmod u+rx)") from None
    except OSError:  # for instance a name that is too long
        return False


def _name(tar: str, out: str) -> str:
    """Return the name of a tar in the data set in `out`, independent of the locale."""
    if is_url(tar):
        return portable(tar)
    path = real(Path(tar).parent) / Path(tar).name
    if not is_url(out) and path.is_relative_to(real(out)):
        path = path.relative_to(real(out))
    return portable(str(path))


def _refuse_equal_indices(names: Sequence[str]) -> None:
    """Raise ShardError for two tars with the same `.idx` file, such as `a.tar` and `a.tgz` beside it."""
    tars: dict[str, str] = {}
    for name in names:
        other = tars.setdefault(idx_name(name), name)
        if other != name:
            raise ShardError(
                f"{printable_url(other)} and {printable_url(name)}: both would have the index {idx_name(name)}; "
                "rename one of them"
            )
