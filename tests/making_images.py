"""Small images and folders of them, made in the tests."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shards.media.image import IMAGE
from shards.media.media import Check, Checked, CheckOptions


def pixels(seed: int, height: int = 40, width: int = 56) -> np.ndarray:
    """A smooth random picture, (height, width, 3) uint8."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def picture(seed: int, height: int = 40, width: int = 56) -> Image.Image:
    return Image.fromarray(pixels(seed, height, width))


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def check_image(data: bytes, max_pixels: int, resize: int | None, check: Check = "decode") -> Checked:
    return IMAGE.check(data, CheckOptions(max_pixels, resize, check))


def make_tree(root: Path, count: int, classes: tuple[str, ...] = ("ant", "bee")) -> Path:
    """`count` images, every fourth a PNG, the others JPEG, dealt out to class folders, if there are any."""
    for number in range(count):
        folder = root / classes[number % len(classes)] if classes else root
        folder.mkdir(parents=True, exist_ok=True)
        name, file_format = (f"{number:03d}.png", "PNG") if number % 4 == 3 else (f"{number:03d}.JPG", "JPEG")
        (folder / name).write_bytes(encoded(picture(number, 40 + number), file_format))
    return root


def contents(root: Path) -> dict[str, bytes]:
    """Every file below `root`: relative path to bytes."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def make_tar(path: Path, members: dict[str, bytes]) -> Path:
    """A tar of plain files."""
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def headers(tar: Path) -> list[int]:
    """Return the offset of each member's header, and that of the end mark."""
    with tarfile.open(tar, "r:") as file:
        return [*(member.offset for member in file), file.offset]


def damage_header(tar: Path, number: int, how: str) -> None:
    """Flip a bit of a member's header, or cut the tar at it, or in it."""
    content, begin = bytearray(tar.read_bytes()), headers(tar)[number]
    content[begin] ^= 1
    tar.write_bytes({"flip": content, "cut": content[:begin], "cut within": content[: begin + 100]}[how])


def make_tar_of_tars(path: Path, root: Path) -> Path:
    """The class folders of `root` as ImageNet's training images are published."""
    classes = {}
    for folder in sorted(root.iterdir(), reverse=True):
        files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        classes[f"{folder.name}.tar"] = make_tar(path.with_suffix(".inner"), files).read_bytes()
    path.with_suffix(".inner").unlink()
    return make_tar(path, classes)
