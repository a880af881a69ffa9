"""Read DeepSpeed's host file: the nodes that a run may use, and the number of GPUs of each."""

import re
from pathlib import Path

from shards.text import one_line

_MOST = 1 << 20  # characters in a file; ten thousand nodes take half of it
_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"  # safe as a name for ssh, pdsh and shells
_NODE = re.compile(rf"(?:{_NAME}@)?({_NAME})")
_SLOTS = re.compile(r"slots=0*([1-9][0-9]{0,3})")
_IGNORED = re.compile(r"max[-_]slots=[0-9]+")  # used by MPI, whose host files DeepSpeed also reads
_WANTED = "'NAME slots=N'"


class HostFileError(Exception):
    """A host file is wrong. The message says what, where, and what to do, in one line."""


def read_hostfile(file: Path) -> dict[str, int]:
    """Read slots by node, in the order of the file: a line "NAME slots=N" each, `#` before comments.

    Whatever this accepts, `deepspeed` reads in the same way. It rejects more: lines that `deepspeed` would skip or pass
    to ssh and pdsh, where a name can be an option, a pattern or a command.

    Raises:
        HostFileError: the file cannot be read, has a wrong line, or has no lines.
    """
    shown = f"--hostfile {one_line(str(file))}"
    slots: dict[str, int] = {}
    lines: dict[str, int] = {}  # by the node's name without user, in lower case
    for number, line in enumerate(_text(file, shown).split("\n"), start=1):
        at = f"{shown}, line {number}"
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        node = _NODE.fullmatch(fields[0])
        if not node:
            raise HostFileError(
                f"{at}: {_quoted(fields[0])} is not the name of a node: write {_WANTED}, the name of letters, digits, "
                "'.', '-' and '_' with a letter or digit first, or USER@NAME; for anything else give it a name in "
                "/etc/hosts or ~/.ssh/config"
            )
        found = _SLOTS.fullmatch(fields[1]) if len(fields) > 1 else None
        if not found:
            given = f"{_quoted(' '.join(fields[1:]))} is not its number of slots" if fields[1:] else "slots are missing"
            raise HostFileError(
                f"{at}: node {fields[0]}: {given}: write '{fields[0]} slots=N', N being its GPUs, 1 to 9999, or remove "
                "the line to do without this node"
            )
        for field in fields[2:]:
            if not _IGNORED.fullmatch(field):
                raise HostFileError(f"{at}: {_quoted(field)} is not understood: leave only '{' '.join(fields[:2])}'")
        name = node[1].lower().rstrip(".")
        if name in lines:
            raise HostFileError(
                f"{at}: node {fields[0]} is already in line {lines[name]}: keep one line for it, with all its slots"
            )
        lines[name] = number
        slots[fields[0]] = int(found[1])
    if not slots:
        raise HostFileError(
            f"{shown}: names no node, it is empty or all comments: write {_WANTED} for each node, or leave --hostfile "
            "out to use this machine alone"
        )
    return slots


def _text(file: Path, shown: str) -> str:
    try:
        if file.exists() and not file.is_file():  # opening a pipe would wait, and deepspeed does not accept one either
            raise HostFileError(f"{shown}: is not a file: give the path of one with lines of {_WANTED}")
        with file.open(encoding="utf-8-sig", errors="surrogateescape") as opened:  # comments may be in any encoding
            text = opened.read(_MOST + 1)
    except OSError as error:
        raise HostFileError(
            f"{shown}: {error.strerror}: give the path of a file with lines of {_WANTED} that you may read"
        ) from None
    if len(text) > _MOST or "\0" in text:
        raise HostFileError(f"{shown}: is not a text of at most 1 MiB: save it as UTF-8, with lines of {_WANTED}")
    return text


def _quoted(text: str) -> str:
    """Return the beginning of `text`, quoted for a message."""
    return f"'{one_line(text if len(text) <= 60 else f'{text[:60]}...')}'"
