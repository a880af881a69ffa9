"""List the members of a tar by its headers alone, in one pass forward and in constant memory.

`tarfile` parses the headers. The position of the next one is computed here, since tarfile follows sizes that are
negative or beyond the file, takes quadratic time for long pax headers, and keeps every member.
"""

import re
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple, Protocol

_BLOCK = tarfile.BLOCKSIZE
_MAX_EXTENSION = 2**20  # bytes of a long name, or of a pax header, which may hold file attributes
_LONG = {tarfile.GNUTYPE_LONGNAME: "path", tarfile.GNUTYPE_LONGLINK: "linkpath"}
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)
_LINKS = (tarfile.LNKTYPE, tarfile.SYMTYPE)
_WITHOUT_DATA = (*_LINKS, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
_RECORD = re.compile(rb"([0-9]{1,9}) ([^=\n]+)=")
_SIZE = re.compile(r"[0-9]{1,18}")
_LIKE_FOLDERS = (tarfile.DIRTYPE, b"D", b"V")  # of GNU's backups: the contents of a folder, and a volume label
_MORE_AT_FIRST, _MORE = 482, 504  # where the header of a sparse file, and its further blocks, say that another follows
_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ\0": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"\x04\x22\x4d\x18": ("lz4", "unlz4"),
    b"PK\x03\x04": ("zip", "unzip"),
    b"7z\xbc\xaf\x27\x1c": ("7z", "7z x"),
}


class Readable(Protocol):
    """A file as `members` needs it. Streams cannot seek backwards, and do not have to."""

    def read(self, size: int, /) -> bytes:
        """Return this many bytes, fewer only at the end."""

    def seek(self, offset: int, /) -> object:
        """Set the position of the next read."""


class Member(NamedTuple):
    """A file in a tar: its name, its type as in `tarfile`, and the position of its bytes.

    `target` is the name of a hard link's target. Sparse files have GNU's type.
    """

    name: str
    type: bytes
    target: str
    offset: int
    size: int


def members(file: Readable, start: int = 0, stop: int | None = None) -> Iterator[Member]:
    """Yield the members, except folders, of the tar in the bytes `start` to `stop` - 1 of `file`.

    Without `stop`, the tar ends at its end mark or with `file`. Offsets are relative to `file`. Between two members,
    `file` may be read and sought.

    Raises:
        tarfile.CompressionError: the tar is compressed; the message has the remedy.
        tarfile.ReadError: it is damaged or cut off, or not a tar.
    """
    at = start
    ahead: dict[str, str] = {}  # fields that apply to the next member

    def read(size: int) -> bytes:
        return file.read(size if stop is None else max(0, min(size, stop - at)))

    while True:
        file.seek(at)
        block = read(_BLOCK)
        if block == bytes(_BLOCK):
            if stop is not None:
                _refuse_another(file, at, stop)
            return
        header, place = _header(block, at - start), f"the header at byte {at - start}"
        at += _BLOCK
        if header.type in _LONG or header.type in _PAX:
            if not 0 <= header.size <= _MAX_EXTENSION:
                raise tarfile.ReadError(f"{place} extends another by {header.size} bytes")
            data = read(header.size)
            if len(data) < header.size:
                raise tarfile.ReadError("unexpected end of data")
            if header.type in _LONG:
                ahead[_LONG[header.type]] = _text(data.partition(b"\0")[0])
            else:
                records = _records(data, place)
                if records and header.type == tarfile.XGLTYPE:
                    raise tarfile.ReadError(f"{place} gives all members one name or size")
                ahead |= records
            at += _padded(header.size)
            continue
        fields, ahead = {key: value for key, value in ahead.items() if value}, {}
        if header.type == tarfile.GNUTYPE_SPARSE:
            more = block[_MORE_AT_FIRST]
            while more:
                block = read(_BLOCK)
                more = block[_MORE] if len(block) == _BLOCK else 0  # truncated, as the next header will show
                at += _BLOCK
        size = 0 if header.type in _WITHOUT_DATA else _size(fields, header.size, place)
        if stop is not None and at + size > stop:
            raise tarfile.ReadError(
                f"unexpected end of data: {place} claims {size} bytes, of which {max(0, stop - at)} are there"
            )
        name, target = fields.get("path", header.name), fields.get("linkpath", header.linkname)
        kind = tarfile.GNUTYPE_SPARSE if "GNU.sparse" in fields else header.type
        if kind not in _LIKE_FOLDERS:
            yield Member(name, kind, target, at, size)
        at += _padded(size)


def is_hidden(name: str) -> bool:
    """Return whether a member is a hidden file, such as the twins `._NAME` that macOS adds."""
    *folders, file = name.split("/")
    return file.startswith(".") or "__MACOSX" in folders


def in_hidden_folder(name: str) -> bool:
    """Return whether a member lies in a hidden folder."""
    return any(folder.startswith(".") and folder not in (".", "..") for folder in name.split("/")[:-1])


def why_unsafe(member: Member) -> str | None:
    """Return why a member is never read; None for a plain file, or a hard link, under a plain relative name."""
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.LNKTYPE):
        return "is not a regular file"
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "has an absolute or .. path"
    return None


def _refuse_another(file: Readable, at: int, stop: int) -> None:
    """Raise ReadError where another tar follows the end mark at `at`: tar, WebDataset and DALI would not read it."""
    for place in range(at + _BLOCK, stop, _BLOCK):
        block = file.read(min(_BLOCK, stop - place))
        if block.strip(b"\0"):
            with suppress(tarfile.HeaderError):
                tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
                raise tarfile.ReadError("another tar follows its end mark, and `tar -i` unpacks both")
            return


def _header(block: bytes, at: int) -> tarfile.TarInfo:
    with suppress(tarfile.HeaderError):
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        if block[257:265] == b"ustar  \0":  # GNU may have times where others have the prefix of a long name
            header.name = _text(block[:100].partition(b"\0")[0])
        return header
    if at == 0:
        for begin, (program, unpack) in _COMPRESSED.items():
            if block.startswith(begin):
                raise tarfile.CompressionError(
                    f"is compressed ({program}), so its members cannot be read by their position; `{unpack}` it first"
                )
        raise tarfile.ReadError(f"it begins with {block[:20]!r}" if block else "it is empty")
    raise tarfile.ReadError(f"no header at byte {at}, where another member or the end mark is required")


def _records(data: bytes, place: str) -> dict[str, str]:
    """Return the relevant records of a pax header; each record is `length key=value` and a line feed."""
    known = {}
    at = 0
    while at < len(data):
        match = _RECORD.match(data, at)
        end = at + int(match[1]) if match else 0
        if not match or not match.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            raise tarfile.ReadError(f"{place} extends another, but is not a list of keys and values")
        key, value = match[2], _text(data[match.end() : end - 1])
        if key in (b"path", b"linkpath", b"size"):
            known[key.decode()] = value
        elif key == b"GNU.sparse.name":
            known["path"] = value
        if key.startswith(b"GNU.sparse."):
            known["GNU.sparse"] = "yes"
        at = end
    return known


def _size(fields: dict[str, str], size: int, place: str) -> int:
    """Return the size of a member from its pax header or, if that has none, from its own header."""
    if "size" in fields:
        if not _SIZE.fullmatch(fields["size"]):
            raise tarfile.ReadError(f"{place} has a pax header with a size of {fields['size'][:40]!r}")
        return int(fields["size"])
    if size < 0:
        raise tarfile.ReadError(f"{place} claims {size} bytes")
    return size


def _padded(size: int) -> int:
    return size + -size % _BLOCK


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
