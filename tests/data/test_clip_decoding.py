"""Clips on a CPU and by the graph of a GPU: right frames, crops and flips, once a video, and bad videos alone."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from making_videos import all_frames, encoded, film
from numpy.typing import NDArray

from model.size import ImageSize
from pipeline.data.decode import video
from pipeline.data.decode.graphs import Clips
from pipeline.data.decode.queues import Decoder
from pipeline.data.decode.video import CpuClipDecoder, GpuClipDecoder, clip_decoder_for
from pipeline.data.errors import DataError

CPU = torch.device("cpu")
SIZE, FRAMES = ImageSize(32, 48), 4
# Files that DALI decodes on a CPU; grey, since DALI interpolates chroma differently from PyAV
FILES = [
    encoded(film(40, seed=1, grey=True), "libvpx-vp9", "webm", g=10),
    encoded(film(25, 64, 48, seed=2, grey=True), "mjpeg", "avi", pix_fmt="yuvj420p"),
    encoded(film(31, 56, 72, seed=3, grey=True), "libvpx-vp9", "mp4", g=8),
    encoded(film(9, 49, 63, seed=4, grey=True), "libvpx", "webm", g=4),
]


def clips(repeats: int = 1, seed: int = 0) -> Clips:
    """Random clips of all the files, the last frame of some repeated."""
    rng = np.random.default_rng(seed)
    stamps, pixels = zip(*map(all_frames, FILES), strict=True)
    frames, boxes = [], []
    for shown in pixels:
        for _ in range(repeats):
            frames.append(np.minimum(np.sort(rng.integers(0, len(shown) + 4, FRAMES)), len(shown) - 1))
            height, width = rng.integers(20, shown.shape[1] + 1), rng.integers(20, shown.shape[2] + 1)
            top, left = rng.integers(0, shown.shape[1] - height + 1), rng.integers(0, shown.shape[2] - width + 1)
            boxes.append((top, left, height, width))
    return Clips(
        [np.frombuffer(data, np.uint8) for data in FILES],
        np.array(boxes, np.int32),
        rng.integers(0, 2, len(boxes), dtype=np.int32),
        np.array(frames, np.int32),
        np.array([np.array(stamps[place // repeats])[clip] for place, clip in enumerate(frames)]),
    )


def expected(batch: Clips) -> torch.Tensor:
    """Return the expected clips by decoding everything, uint8 (n, 3, T, size, size)."""
    made = []
    for place, ((top, left, height, width), flip, frames) in enumerate(
        zip(batch.boxes, batch.flips, batch.frames, strict=True)
    ):
        pixels = all_frames(FILES[place // batch.repeats])[1][frames]
        crop = torch.from_numpy(pixels)[:, top : top + height, left : left + width].permute(0, 3, 1, 2)
        clip = F.interpolate(crop, SIZE, mode="bicubic", antialias=True)
        made.append((clip.flip(-1) if flip else clip).permute(1, 0, 2, 3))
    return torch.stack(made)


def decoder(kind: str, repeats: int, threads: int = 2) -> Decoder:
    if kind == "CPU":
        return CpuClipDecoder(SIZE, threads)
    return GpuClipDecoder(len(FILES), FRAMES, SIZE, CPU, threads, repeats)


def taken(of: Decoder, batch: Clips) -> torch.Tensor:
    of.feed(batch)
    decoded = of.take()
    assert not decoded.problems
    return decoded.images


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_cpu_makes_the_clips_of_decoding_all(repeats: int, threads: int) -> None:
    batch = clips(repeats)
    made = taken(decoder("CPU", repeats, threads), batch)
    assert (made.shape, made.dtype) == ((len(FILES) * repeats, 3, FRAMES, *SIZE), torch.uint8)
    assert torch.equal(made, expected(batch))


@pytest.mark.parametrize("repeats", [1, 3])
def test_the_graph_makes_the_same_but_for_rounding(repeats: int) -> None:
    """Colours and the resize differ in low bits; another frame would differ by far more."""
    batch = clips(repeats)
    made, reference = taken(decoder("graph", repeats), batch), expected(batch)
    assert (made.shape, made.dtype) == (reference.shape, torch.uint8)
    assert (made.float() - reference.float()).abs().mean((1, 2, 3, 4)).max() < 2
    later = batch.frames.copy()
    later[:, 1] -= np.where(later[:, 1] > 0, 1, -1)
    moved = expected(Clips(batch.encoded, batch.boxes, batch.flips, later, batch.stamps))
    assert (moved.float() - reference.float()).abs().mean((1, 3, 4))[:, 1].min() > 4


@pytest.mark.parametrize("kind", ["CPU", "graph"])
def test_several_clips_of_a_video_are_those_of_one_each(kind: str) -> None:
    together = clips(3)
    made = taken(decoder(kind, 3), together)
    alone = decoder(kind, 1)
    for repeat in range(3):
        part = Clips(
            together.encoded,
            *(of[repeat::3] for of in (together.boxes, together.flips, together.frames, together.stamps)),
        )
        assert torch.equal(taken(alone, part), made[repeat::3])


@pytest.mark.parametrize("kind", ["CPU", "graph"])
@pytest.mark.parametrize("bad", ["torn", "unread", "box", "nothing", "frames"])
@pytest.mark.parametrize("repeats", [1, 2])
def test_a_bad_video_is_black_and_named_and_all_others_keep_their_pixels(kind: str, bad: str, repeats: int) -> None:
    batch, one = clips(repeats), decoder(kind, repeats)
    good = taken(one, batch).clone()
    hurt: list[NDArray[np.uint8] | None] = list(batch.encoded)
    boxes, frames, stamps = batch.boxes.copy(), batch.frames.copy(), batch.stamps.copy()
    first = hurt[2]
    assert first is not None
    if bad == "box":
        boxes[2 * repeats] = (0, 0, 1000, 1000)
    elif bad == "frames":
        frames[2 * repeats, -1], stamps[2 * repeats, -1] = 1000, 10**9
    else:
        hurt[2] = {"torn": first[: len(first) // 2], "unread": None, "nothing": first[:0]}[bad]
    one.feed(Clips(hurt, boxes, batch.flips, frames, stamps))
    one.feed(batch)
    decoded = one.take()
    assert decoded.problems.keys() == (set() if bad == "unread" else {2}), decoded.problems
    slots = torch.arange(len(good)) // repeats == 2
    assert (decoded.images[slots] == 0).all()
    assert torch.equal(decoded.images[~slots], good[~slots])
    assert torch.equal(one.take().images, good)


@pytest.mark.parametrize("kind", ["CPU", "graph"])
def test_a_batch_of_which_nothing_could_be_read_is_black(kind: str) -> None:
    batch, one = clips(), decoder(kind, 1)
    one.feed(Clips([None] * len(FILES), batch.boxes, batch.flips, batch.frames, batch.stamps))
    one.feed(batch)
    decoded = one.take()
    assert not decoded.problems and not decoded.images.any() and len(decoded.images) == len(FILES)
    assert one.take().images.any()


def test_several_batches_under_way_come_in_order() -> None:
    for kind in ("CPU", "graph"):
        one, alone = decoder(kind, 1), decoder(kind, 1)
        batches = [clips(seed=seed) for seed in range(6)]
        for batch in batches:
            one.feed(batch)
        for batch in batches:
            assert torch.equal(one.take().images, taken(alone, batch))
        one.close()
        alone.close()


@pytest.mark.parametrize(
    ("capability", "decodes"),
    [
        ((7, 5), False),
        ((8, 0), False),
        ((8, 6), True),
        ((8, 9), True),
        ((9, 0), False),
        ((10, 0), True),
        ((12, 0), True),
    ],
    ids=["Turing", "A100", "Ampere", "Ada", "H100", "Blackwell", "GeForce Blackwell"],
)
def test_gpus_that_decode_av1_are_those_of_nvidias_table(capability: tuple[int, int], decodes: bool) -> None:
    assert ("av1" in video.gpu_codecs(capability)) == decodes
    assert video.gpu_codecs(capability) >= {"h264", "hevc", "vp9"}


def test_what_a_machine_cannot_decode_is_refused_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (FRAMES, SIZE, 1, 1)
    with pytest.raises(DataError, match=r"PyAV does not decode toy of gray pixels.*--resize"):
        clip_decoder_for(CPU, 2, *arguments, {("toy", "gray"), ("h264", "yuv420p")})
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(video, "_LIBRARY", str(tmp_path / "libnvcuvid.so.1"))
    with pytest.raises(DataError, match=r"libnvcuvid\.so\.1 of its driver is missing.*NVIDIA_DRIVER_CAPABILITIES"):
        clip_decoder_for(gpu, 2, *arguments, {("h264", "yuv420p")})
    monkeypatch.setattr(video, "_LIBRARY", "libc.so.6")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    with pytest.raises(
        DataError,
        match=r"the GPU \(NVIDIA H100\) does not decode h264 of yuv420p10le pixels, h264 of yuv444p pixels",
    ):
        clip_decoder_for(gpu, 2, *arguments, {("h264", "yuv420p10le"), ("h264", "yuv444p"), ("vp9", "yuv420p")})
    with pytest.raises(DataError, match=r"the GPU \(NVIDIA H100\) does not decode av1 of yuv420p pixels, which"):
        clip_decoder_for(gpu, 2, *arguments, {("av1", "yuv420p")})
    assert {codec for codec, _ in (("h264", ""), ("hevc", ""), ("av1", ""))} <= av.codecs_available
