"""The columns of a manifest that describe its videos, in memory."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shards.tables.columns import MANIFEST_SCHEMA

COLUMNS = (
    *("size", "frames", "fps_num", "fps_den", "codec", "pix_fmt", "pts_start", "pts_step", "pts"),
    *("jpeg_offset", "jpeg_sizes", "jpeg_crc32c"),
)


@dataclass(frozen=True, eq=False)
class Jpegs:
    """The positions of JPEG frames, which are contiguous in the file of each video.

    They take 8 bytes of memory per frame.
    """

    _offset: npt.NDArray[np.int64]  # of the first frame in the file of each video
    _begin: npt.NDArray[np.int64]  # (samples + 1,), the first index of each video's frames in the arrays below
    _sizes: npt.NDArray[np.int32]
    _crc32c: npt.NDArray[np.uint32]

    @classmethod
    def of(cls, table: pa.Table, frames: npt.NDArray[np.int32]) -> "Jpegs | None":
        """Take them from the `COLUMNS` of a manifest; return None unless all of its videos have them.

        Raises ValueError for a video whose JPEGs cannot lie in its file.
        """
        offset = table["jpeg_offset"].fill_null(-1).to_numpy()
        if (offset[frames > 0] < 0).any():
            return None
        lengths = [pa.compute.list_value_length(table[name]).fill_null(0) for name in ("jpeg_sizes", "jpeg_crc32c")]
        sizes, crc32c = (pa.compute.list_flatten(table[name]).to_numpy() for name in ("jpeg_sizes", "jpeg_crc32c"))
        wrong = (lengths[0].to_numpy() != frames) | (lengths[1].to_numpy() != frames)
        if not wrong.any():
            begin = np.concatenate([[0], np.cumsum(frames, dtype=np.int64)])
            ends = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])[begin]
            least = np.minimum.reduceat(sizes, begin[:-1][frames > 0])
            wrong = offset + np.diff(ends) > table["size"].to_numpy()
            wrong[frames > 0] |= least < 1
        if wrong.any():
            raise ValueError(f"sample {wrong.argmax()}: the JPEGs of its frames are not inside its file")
        return cls(offset, begin, sizes, crc32c)

    @classmethod
    def joined(cls, parts: Sequence["Jpegs"]) -> "Jpegs":
        """Join those of several manifests, one after the other."""
        frames = np.concatenate([np.diff(part._begin) for part in parts])
        return cls(
            np.concatenate([part._offset for part in parts]),
            np.concatenate([[0], np.cumsum(frames)]),
            np.concatenate([part._sizes for part in parts]),
            np.concatenate([part._crc32c for part in parts]),
        )

    @property
    def mean_size(self) -> float:
        """Return the mean size of a frame in bytes."""
        return float(self._sizes.mean())

    def sizes(self, sample: int) -> npt.NDArray[np.int32]:
        """Return the size in bytes of each frame of a video, int32 (frames,)."""
        return self._sizes[self._begin[sample] : self._begin[sample + 1]]

    def places(self, sample: int, frames: npt.NDArray[np.int32]) -> list[tuple[int, int, int]]:
        """Return offset in the file and size, in bytes, and CRC-32C of each of these frames, (m,), of a video."""
        sizes = self.sizes(sample)
        offsets = self._offset[sample] + np.cumsum(sizes, dtype=np.int64) - sizes
        crc32c = self._crc32c[self._begin[sample] : self._begin[sample + 1]]
        return list(zip(*(of[frames].tolist() for of in (offsets, sizes, crc32c)), strict=True))


@dataclass(frozen=True, eq=False)
class Videos:
    """The videos among the samples of a manifest.

    Arrays have the shape (samples,): `frames`, int32, is the number of displayed frames, 0 for an image; `rate`,
    float64, is the mean number of frames per second, 0 for an image. `codecs` are the pairs of codec and pixel format
    that occur. `jpegs` is None unless the frames can be read one by one, as JPEGs.
    """

    frames: npt.NDArray[np.int32]
    rate: npt.NDArray[np.float64]
    codecs: Collection[tuple[str, str]]
    jpegs: Jpegs | None
    _start: npt.NDArray[np.int64]
    _step: npt.NDArray[np.int64]
    _listed: pa.ChunkedArray

    @classmethod
    def of(cls, table: pa.Table) -> "Videos":
        """Take them from the `COLUMNS` of a manifest. Raises ValueError for a video that lacks a required column."""
        frames, numerator, denominator, start, step = (
            table[name].fill_null(0).to_numpy() for name in ("frames", "fps_num", "fps_den", "pts_start", "pts_step")
        )
        listed = table["pts"].is_valid().to_numpy()
        lengths = pa.compute.list_value_length(table["pts"]).fill_null(0).to_numpy()
        constant = table["pts_start"].is_valid().to_numpy() & table["pts_step"].is_valid().to_numpy()
        video = frames > 0
        wrong = video & ((numerator < 1) | (denominator < 1) | ~(constant | listed) | (listed & (lengths != frames)))
        if wrong.any():
            raise ValueError(f"sample {wrong.argmax()}: its frame rate or its time stamps are missing")
        pairs = table.select(["codec", "pix_fmt"]).group_by(["codec", "pix_fmt"]).aggregate([]).to_pylist()
        return cls(
            frames=frames,
            rate=np.divide(numerator, denominator, out=np.zeros(len(frames)), where=video),
            codecs=frozenset((pair["codec"], pair["pix_fmt"]) for pair in pairs if pair["codec"]),
            jpegs=Jpegs.of(table, frames),
            _start=start,
            _step=step,
            _listed=table["pts"],
        )

    @classmethod
    def none(cls, samples: int) -> "Videos":
        """Return what is known of the videos among samples that are all images."""
        nothing = {name: pa.nulls(samples, MANIFEST_SCHEMA.field(name).type) for name in COLUMNS}
        return cls.of(pa.table(nothing))

    @classmethod
    def joined(cls, parts: Sequence["Videos"]) -> "Videos":
        """Join the videos of several manifests, one after the other."""
        jpegs = [part.jpegs for part in parts if part.jpegs is not None]
        return cls(
            frames=np.concatenate([part.frames for part in parts]),
            rate=np.concatenate([part.rate for part in parts]),
            codecs=frozenset().union(*(part.codecs for part in parts)),
            jpegs=Jpegs.joined(jpegs) if len(jpegs) == len(parts) else None,
            _start=np.concatenate([part._start for part in parts]),
            _step=np.concatenate([part._step for part in parts]),
            _listed=pa.chunked_array([chunk for part in parts for chunk in part._listed.chunks], parts[0]._listed.type),
        )

    def time_stamps(self, sample: int) -> npt.NDArray[np.int64]:
        """Return the time stamps of all frames of a video, in units of its stream's time base: int64 (frames,)."""
        listed = self._listed[sample]
        if listed.is_valid:
            return np.asarray(listed.values.to_numpy(), np.int64)
        numbers = np.arange(self.frames[sample], dtype=np.int64)
        stamps: npt.NDArray[np.int64] = numbers * self._step[sample] + self._start[sample]
        return stamps
