"""Read the images of a tar in one pass from beginning to end; it may be compressed."""

import bz2
import gzip
import lzma
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any, Protocol

from shards.media.image import IMAGE
from shards.media.media import MAX_BYTES
from shards.tars.headers import Member, is_hidden, members, why_unsafe
from shards.tars.samples import matching, split_name

_CHUNK = 2**20  # bytes read at once while skipping
_OPENERS: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}


class Stream(Protocol):
    """A stream that can be read."""

    def read(self, size: int, /) -> bytes:
        """Return this many bytes, fewer only at the end."""


def images_in(stream: Stream) -> Iterator[bytes | None]:
    """Yield the image of every sample, or None where it is not one plain file, by the rules of `shards.tars.samples`.

    At most two images are in memory: a tar may be a single sample. Members that are not adjacent are not one sample.

    Raises:
        tarfile.TarError, or errors of the stream or its decompression, after the samples before the damage.
    """
    file = _unpacked(stream)
    failures: list[Exception] = []
    for _, sample in groupby(_files(file, failures), key=lambda member: split_name(member.name)[0]):
        extensions, images = [], dict[str, bytes]()
        for member in sample:
            extension = split_name(member.name)[1]
            extensions.append(extension)
            if not matching([extension], IMAGE.kept) or member.size > MAX_BYTES:
                continue
            # An image has the extension `jpg` or, else, one like `input.jpg`. If there are two, there is no image.
            if not any(("." in extension) == ("." in other) for other in images):
                data = file.read(member.size)
                images[extension] = data if len(data) == member.size else b""
        chosen = matching(extensions, IMAGE.kept)
        image = images.get(chosen[0]) if len(chosen) == 1 else None
        yield image or None
    if failures:
        raise failures[0]
    stream.read(_CHUNK)  # the padding, so that the writing command can end


class _Forward:
    """A stream as a file that can seek forward; `head` was read from it before."""

    def __init__(self, stream: Stream, head: bytes) -> None:
        self._stream, self._head, self._at = stream, head, 0

    def read(self, size: int) -> bytes:
        data, self._head = self._head[:size], self._head[size:]
        data += self._stream.read(size - len(data))
        self._at += len(data)
        return data

    def seek(self, offset: int) -> None:
        while self._at < offset and self.read(min(_CHUNK, offset - self._at)):
            pass


def _unpacked(stream: Stream) -> _Forward:
    head = stream.read(max(map(len, _OPENERS)))
    for begin, opener in _OPENERS.items():
        if head.startswith(begin):
            return _Forward(opener(_Forward(stream, head)), b"")
    return _Forward(stream, head)


def _files(file: _Forward, failures: list[Exception]) -> Iterator[Member]:
    """Yield the relevant members, without bytes where these must not be read. Errors are appended to `failures`."""
    try:
        for member in members(file):
            if not is_hidden(member.name):
                yield member._replace(size=0) if why_unsafe(member) else member
    except Exception as error:  # of the source of the bytes
        failures.append(error)
