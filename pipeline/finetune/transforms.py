"""The transforms of RandAugment on batches, with the results of Pillow, which published recipes used.

Each takes uint8 images (n, 3, H, W) and a float64 argument for each, (n,), on one device, without waiting for it, and
returns changed images. Changes of values and sharpness equal Pillow's bit for bit. In geometric transforms of real
images, fewer than 1 in 1,000 values differ, by 1: Pillow truncates float64 sums, and these are float32.
"""

import math
from functools import cache
from itertools import product

import torch
from torch import Tensor

FILL = (124, 116, 104)  # RGB, ImageNet's mean: fills where an image was moved away


def invert(images: Tensor, _: Tensor) -> Tensor:
    """Invert all values."""
    return 255 - images


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep only the highest bits of each value, 0 to 8 of them."""
    return images & _each(256 - (1 << (8 - bits.long()))).to(torch.uint8)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert values from a threshold in 0..256 on."""
    return images ^ (images >= _each(threshold.short())).to(torch.uint8) * 255


def solarize_add(images: Tensor, amount: Tensor) -> Tensor:
    """Raise values below 128 by 0..128."""
    return images + (images < 128) * _each(amount.to(torch.uint8))


def autocontrast(images: Tensor, _: Tensor) -> Tensor:
    """Stretch each channel to 0..255."""
    pixels = images.flatten(2)
    low, high = pixels.amin(2, keepdim=True).double(), pixels.amax(2, keepdim=True).double()
    ramp = torch.arange(256, dtype=torch.float64, device=images.device)
    scale = torch.full_like(low, 255) / (high - low)  # a Python number over a tensor would be rounded twice
    stretched = (ramp * scale - low * scale).clamp(0, 255)
    return _look_up(torch.where(high > low, stretched, ramp), pixels).view(images.shape)


def equalize(images: Tensor, _: Tensor) -> Tensor:
    """Equalise the histogram of each channel."""
    pixels = images.flatten(2).long()
    counts = pixels.new_zeros(*pixels.shape[:2], 256).scatter_add_(2, pixels, pixels.new_ones(1).expand_as(pixels))
    brightest = counts.gather(2, pixels.amax(2, keepdim=True))
    step = (pixels.shape[2] - brightest) // 255
    below = counts.cumsum(2) - counts
    spread = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    return _look_up(torch.where(step > 0, spread, torch.arange(256, device=images.device)), pixels).view(images.shape)


def _look_up(tables: Tensor, pixels: Tensor) -> Tensor:
    """Look `pixels`, (n, 3, H * W), up in the tables of their images and channels, (n, 3, 256): uint8."""
    return tables.to(torch.uint8).gather(2, pixels.long())


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Interpolate from black, at factor 0, to the image, at factor 1, and beyond."""
    return _blend(0.0, images.float(), factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Interpolate likewise from the image's mean grey."""
    pixels = images.float()
    mean = _grey(pixels).sum((1, 2, 3), dtype=torch.float64) / pixels[0, 0].numel()
    return _blend(_each((mean + 0.5).floor().float()), pixels, factor)


def color(images: Tensor, factor: Tensor) -> Tensor:
    """Interpolate likewise from the grey image."""
    pixels = images.float()
    return _blend(_grey(pixels), pixels, factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Interpolate likewise from a smoothed image: 3x3 means with five times the weight in the centre; borders stay."""
    pixels = images.float()
    across = pixels[..., :-2] + pixels[..., 1:-1] + pixels[..., 2:]
    around = across[..., :-2, :] + across[..., 1:-1, :] + across[..., 2:, :]
    smooth = pixels.clone()
    smooth[..., 1:-1, 1:-1].mul_(4).add_(around).div_(13).add_(0.5).floor_()
    return _blend(smooth, pixels, factor)


def _grey(pixels: Tensor) -> Tensor:
    """Compute Pillow's luma, (n, 1, H, W); its 16.16 fixed point is exact in float32."""
    red, green, blue = pixels.chunk(3, dim=1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) / 0x10000).floor()


def _blend(base: Tensor | float, pixels: Tensor, factor: Tensor) -> Tensor:
    return _to_bytes((pixels - base).mul_(_each(factor.float())).add_(base))


def shear_x(images: Tensor, factor: Tensor) -> Tensor:
    """Move each row to the left by `factor` times its y."""
    return _shift_rows(images, factor[:, None] * _centres(images.shape[2], images))


def shear_y(images: Tensor, factor: Tensor) -> Tensor:
    """Move each column up by `factor` times its x."""
    return shear_x(images.mT, factor).mT


def translate_x(images: Tensor, share: Tensor) -> Tensor:
    """Move images to the left by a share of the width."""
    return _shift_rows(images, (share * images.shape[3])[:, None].expand(-1, images.shape[2]))


def translate_y(images: Tensor, share: Tensor) -> Tensor:
    """Move images up by a share of the height."""
    return translate_x(images.mT, share).mT


def _shift_rows(images: Tensor, shifts: Tensor) -> Tensor:
    """Move rows to the left by `shifts` pixels, (n, H); all pixels of a row have the same offset between their taps."""
    width = images.shape[3]
    whole = shifts.floor()
    taps = (torch.arange(-1, width + 2, device=images.device) + whole.long()[..., None]).clamp(0, width - 1)
    pixels = images.gather(3, taps[:, None].expand(-1, 3, -1, -1)).float()
    moved = _nothing_yet(images)
    for tap, weight in enumerate(_cubic_weights((shifts - whole).float()[:, None, :, None])):
        moved.addcmul_(pixels[..., tap : tap + width], weight)
    return _filled(moved, _inside(_centres(width, images) + shifts[..., None], width))


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotate images counterclockwise around the centre."""
    height, width = images.shape[2:]
    angle = degrees[:, None, None] * (math.pi / 180)
    down, across = _centres(height, images)[:, None] - height / 2, _centres(width, images) - width / 2
    x = across * angle.cos() - down * angle.sin() + width / 2
    y = across * angle.sin() + down * angle.cos() + height / 2
    left, top = (x - 0.5).floor().clamp(-1, width - 1), (y - 0.5).floor().clamp(-1, height - 1)
    across_weights = _cubic_weights((x - 0.5 - left).float()[:, None])
    down_weights = _cubic_weights((y - 0.5 - top).float()[:, None])

    padded = images.index_select(2, _padded(height, images)).index_select(3, _padded(width, images)).flatten(2)
    first_tap = ((top.long() + 1) * (width + 4) + left.long() + 1).flatten(1)[:, None].expand(-1, 3, -1)
    moved = _nothing_yet(images)
    for (row, down_weight), (column, across_weight) in product(enumerate(down_weights), enumerate(across_weights)):
        pixels = padded[..., row * (width + 4) + column :].gather(2, first_tap)
        moved.addcmul_(pixels.view(images.shape).float(), down_weight * across_weight)
    return _filled(moved, _inside(x, width) & _inside(y, height))


def _padded(size: int, like: Tensor) -> Tensor:
    """Return indices that repeat the first and the last row or column three times."""
    return torch.arange(-2, size + 2, device=like.device).clamp(0, size - 1)


def _cubic_weights(beyond: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the weights of four taps at a position `beyond` the second: Pillow's cubic (a = -1; torch has -0.75)."""
    squared = beyond * beyond
    cubed = squared * beyond
    return 2 * squared - cubed - beyond, 1 - 2 * squared + cubed, beyond + squared - cubed, cubed - squared


def _nothing_yet(images: Tensor) -> Tensor:
    """Return the start of a weighted sum, slightly above 0 so that truncation does not lower a rounded whole number."""
    return torch.full(images.shape, 2.0**-12, device=images.device)


def _centres(size: int, like: Tensor) -> Tensor:
    return torch.arange(size, dtype=torch.float64, device=like.device) + 0.5


def _inside(positions: Tensor, size: int) -> Tensor:
    return (positions >= 0) & (positions < size)


def _filled(moved: Tensor, inside: Tensor) -> Tensor:
    """Convert to bytes, with the fill colour where `inside`, (n, H, W), is False."""
    fill = _fill(moved.device)
    return (_to_bytes(moved) - fill) * inside[:, None] + fill  # bytes wrap around, and back


@cache  # copied to the device once, not in every step
def _fill(device: torch.device) -> Tensor:
    return torch.tensor(FILL, dtype=torch.uint8, device=device)[:, None, None]


def _each(numbers: Tensor) -> Tensor:
    """Reshape one number per image: (n,) -> (n, 1, 1, 1)."""
    return numbers[:, None, None, None]


def _to_bytes(pixels: Tensor) -> Tensor:
    return pixels.clamp_(0, 255).to(torch.uint8)  # truncated, as Pillow does, not rounded
