"""What a manifest tells of its videos, in memory."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

COLUMNS = ("frames", "fps_num", "fps_den", "codec", "pix_fmt", "pts_start", "pts_step", "pts")


@dataclass(frozen=True, eq=False)
class Videos:
    """The videos among the samples of a manifest.

    Arrays have the shape (samples,): `frames`, int32, how many are shown, 0 where a sample is an image; `rate`,
    float64, the mean number of frames a second, 0 likewise. `codecs` are the pairs of codec and pixel format that
    occur.
    """

    frames: npt.NDArray[np.int32]
    rate: npt.NDArray[np.float64]
    codecs: Collection[tuple[str, str]]
    _start: npt.NDArray[np.int64]
    _step: npt.NDArray[np.int64]
    _listed: pa.ChunkedArray

    @classmethod
    def of(cls, table: pa.Table) -> "Videos":
        """Take them from the `COLUMNS` of a manifest. Raises ValueError for a video without what a reader needs."""
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
            _start=start,
            _step=step,
            _listed=table["pts"],
        )

    @classmethod
    def joined(cls, parts: Sequence["Videos"]) -> "Videos":
        """Return the videos of several manifests, one after the other."""
        return cls(
            frames=np.concatenate([part.frames for part in parts]),
            rate=np.concatenate([part.rate for part in parts]),
            codecs=frozenset().union(*(part.codecs for part in parts)),
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
