"""The size of images, and of the frames of clips. This module does not import torch."""

import json
from typing import NamedTuple

Sides = int | tuple[int, int]  # the side of a square, or height and width, in pixels


class ImageSize(NamedTuple):
    """Height and width in pixels."""

    height: int
    width: int

    @classmethod
    def of(cls, sides: Sides) -> "ImageSize":
        """Return the size with these sides."""
        return cls(sides, sides) if isinstance(sides, int) else cls(*sides)

    @property
    def sides(self) -> Sides:
        """The side of a square, or height and width: the form in which recipes and timm's configurations have it."""
        return self.height if self.height == self.width else (self.height, self.width)

    @property
    def setting(self) -> str:
        """The size as it is written in a recipe: "224", or "[192, 320]"."""
        return json.dumps(self.sides)

    @property
    def aspect(self) -> float:
        """Width over height."""
        return self.width / self.height

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"
