"""The sizes of `scripts/bench.py gpu`: those for a GPU, or tiny ones that test its code on a CPU."""

from dataclasses import dataclass

import torch

from model.size import ImageSize
from pipeline.config import Recipe, load_recipe

_TINY = ("demo", "data.image_size=32", "model.options={embed_dim: 32, depth: 1, num_heads: 1}", "engine.precision=bf16")
_TINY_CLIPS = ("demo_video", *_TINY[1:], "data.frames=4")
_TINY_MVIT = (
    "demo_video",
    "model.name=mvit_v2",
    "model.position_init=random",
    "model.options={embed_dim: 8, depth: 4, stages: [1, 2, 3]}",
    "data.image_size=32",
    "data.frames=4",
    "engine.precision=bf16",
)


@dataclass(frozen=True)
class Scale:
    """The sizes of what is measured.

    Attributes:
        dry: whether this is a trial of the code on a CPU.
        times: steps per round.
        rounds: rounds of a race.
        check_images, check_size: sizes of a batch to check.
        images, clips: sizes of a batch to time.
        clip_frames: frames per clip.
        films, film: number of videos to make if none are given; their frames, height and width.
    """

    dry: bool
    times: int
    rounds: int
    check_images: int
    check_size: ImageSize  # whole patches
    images: int
    clips: int
    clip_frames: int
    films: int
    film: tuple[int, int, int]

    @property
    def device(self) -> torch.device:
        """The device of everything that is checked and measured."""
        return torch.device("cpu") if self.dry else torch.device("cuda", 0)

    @property
    def compiled(self) -> str:
        """`engine.compile` for a compiled model; a trial does not compile, which would take all its time."""
        return "none" if self.dry else "all"

    @property
    def eager(self) -> str:
        """`engine.compile` for a model that is not compiled, except its targets."""
        return "none" if self.dry else "target"

    def base(self, *overrides: str) -> Recipe:
        """Return ViT-B with 256 images."""
        return self._recipe("vit_base_300e", _TINY, self.images, *overrides)

    def large(self, *overrides: str) -> Recipe:
        """Return ViT-L with 128 images."""
        return self._recipe("vit_large_1600e", _TINY, 128, *overrides)

    def small(self, *overrides: str) -> Recipe:
        """Return two blocks of ViT-B with 32 images."""
        return self._recipe("vit_base_300e", _TINY, 32, "model.options={depth: 2}", *overrides)

    def visible(self, *overrides: str) -> Recipe:
        """Return two blocks of ViT-B that encode visible patches only: 16 images, two masks of each, four scales."""
        return self.small(
            "model.decoder=light",
            "model.position_init=fixed",
            "target.kind=hog_scales",
            "mask.kind=random",
            "mask.ratio=0.75",
            "mask.repeats=2",
            *overrides,
        )

    def mvit(self, *overrides: str) -> Recipe:
        """Return MViTv2-S with 32 clips."""
        return self._recipe("mvit_small_300e_k400", _TINY_MVIT, self.clips, *overrides)

    def tubelets(self, *overrides: str) -> Recipe:
        """Return ViT-B on tubelets with 32 clips."""
        return self._recipe("vit_base_video", _TINY_CLIPS, self.clips, "data.repeats=1", *overrides)

    def _recipe(self, name: str, tiny: tuple[str, ...], inputs: int, *overrides: str) -> Recipe:
        if self.dry:
            name, *small = tiny
            inputs, overrides = 2, (*(o for o in overrides if not o.startswith("model.options")), *small)
        batch = ["data.shards=none", f"optim.batch_size={inputs}", "engine.micro_batch=null", "data.lanes=1"]
        return load_recipe(name, [*batch, *overrides])


GPU = Scale(
    dry=False,
    times=10,
    rounds=3,
    check_images=16,
    check_size=ImageSize(224, 224),
    images=256,
    clips=32,
    clip_frames=16,
    films=32,
    film=(150, 256, 340),
)
DRY = Scale(
    dry=True,
    times=1,
    rounds=1,
    check_images=2,
    check_size=ImageSize(16, 16),
    images=2,
    clips=2,
    clip_frames=4,
    films=4,
    film=(24, 48, 64),
)
