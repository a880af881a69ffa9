"""Access web servers, which are not trusted: the size of an answer is bounded before it is read."""

import errno
from http import HTTPStatus
from typing import Any

from fsspec.implementations.http import HTTPFileSystem

from shards.remote.request import StorageError
from shards.remote.urls import printable_url

NO_RANGES = "its server ignores ranges; use one that does not"


class Web(HTTPFileSystem):  # type: ignore[misc]  # fsspec has no types
    """fsspec's HTTP file system, which refuses answers that would take more memory than was requested."""

    async def _cat_file(
        self, url: str, start: int | None = None, end: int | None = None, at_most: int = 0, **_: Any
    ) -> bytes:
        """Return the bytes from `start` to `end`, or a whole file of `at_most` bytes. Raises StorageError for more."""
        headers = {"Accept-Encoding": "identity"} | self.kwargs.get("headers", {})
        if start is not None and end is not None:
            headers["Range"], at_most = f"bytes={start}-{end - 1}", end - start
        session = await self.set_session()
        async with session.get(self.encode_url(url), **self.kwargs | {"headers": headers}) as answer:
            self._raise_not_found_for_status(answer, url)
            if start is not None and answer.status != HTTPStatus.PARTIAL_CONTENT:
                raise StorageError(errno.EOPNOTSUPP, NO_RANGES, printable_url(url))
            if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise StorageError(errno.EIO, "its server compresses it; use one that does not", printable_url(url))
            pieces, left = [], at_most
            if (answer.content_length or 0) <= at_most:
                async for piece in answer.content.iter_any():
                    pieces.append(piece)
                    left -= len(piece)
                    if left < 0:
                        break
                else:
                    return b"".join(pieces)
        raise StorageError(errno.EFBIG, f"its server sends more than {at_most:,} bytes", printable_url(url))

    async def _ls(self, url: str, detail: bool = True, **_: Any) -> list[Any]:
        """Refuse to list: fsspec would take the links of a web page, of any length, for files."""
        raise StorageError(
            errno.EIO, "files on a web server cannot be listed; give a folder or an object store", printable_url(url)
        )
