"""The sizes of `scripts/bench.py gpu`: those of a GPU, or tiny ones that prove on a CPU that its code runs."""

from dataclasses import dataclass

import torch

from pipeline.config import Recipe, load_recipe

_TINY = ("demo", "data.image_size=32", "model.options={embed_dim: 32, depth: 1, num_heads: 1}", "engine.precision=bf16")


@dataclass(frozen=True)
class Scale:
    """What is measured.

    Attributes:
        dry: on a CPU, as a trial of the code.
        times: steps a round.
        rounds: of a race.
        check_images, check_size: of a batch that is checked.
        images: of a batch that is timed.
    """

    dry: bool
    times: int
    rounds: int
    check_images: int
    check_size: tuple[int, int]  # height and width, whole patches
    images: int

    @property
    def device(self) -> torch.device:
        """Of everything that is checked and measured."""
        return torch.device("cpu") if self.dry else torch.device("cuda", 0)

    @property
    def compiled(self) -> str:
        """`engine.compile` for a model that is to be compiled; a trial would spend its time on that alone."""
        return "none" if self.dry else "all"

    @property
    def eager(self) -> str:
        """The same for one that is not, but for its targets."""
        return "none" if self.dry else "target"

    def base(self, *overrides: str) -> Recipe:
        """ViT-B, 256 images."""
        return self._recipe("vit_base_300e", self.images, *overrides)

    def large(self, *overrides: str) -> Recipe:
        """ViT-L, 128 images."""
        return self._recipe("vit_large_1600e", 128, *overrides)

    def small(self, *overrides: str) -> Recipe:
        """Two blocks of ViT-B, 32 images."""
        return self._recipe("vit_base_300e", 32, "model.options={depth: 2}", *overrides)

    def _recipe(self, name: str, images: int, *overrides: str) -> Recipe:
        if self.dry:
            name, *tiny = _TINY
            images, overrides = 2, (*(o for o in overrides if not o.startswith("model.")), *tiny)
        batch = ["data.shards=none", f"optim.batch_size={images}", "engine.micro_batch=null", "data.lanes=1"]
        return load_recipe(name, [*batch, *overrides])


GPU = Scale(dry=False, times=10, rounds=3, check_images=16, check_size=(224, 224), images=256)
DRY = Scale(dry=True, times=1, rounds=1, check_images=2, check_size=(16, 16), images=2)
