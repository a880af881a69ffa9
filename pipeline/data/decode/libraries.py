"""Return versions of the libraries that decode on a GPU, and their abilities, without loading them or CUDA."""

import re
from importlib import metadata
from pathlib import Path

_PACKAGES = {  # by library, on PyPI; nvJPEG's name is without a CUDA version since 13
    "DALI": r"nvidia-dali-cuda\d+",
    "nvImageCodec": r"nvidia-nvimgcodec-cu\d+",
    "nvJPEG": r"nvidia-nvjpeg(-cu\d+)?",
}
_DRIVER = Path("/proc/driver/nvidia/version")


def library_versions() -> dict[str, str]:
    """Return the versions of the packages of DALI, nvImageCodec and nvJPEG, "none" where one is not installed."""
    installed = {distribution.name for distribution in metadata.distributions()}
    found = {library: [n for n in installed if re.fullmatch(package, n)] for library, package in _PACKAGES.items()}
    return {library: metadata.version(names[0]) if names else "none" for library, names in found.items()}


def driver_version(file: Path = _DRIVER) -> str:
    """Return the version of NVIDIA's kernel module, read without a library, "none" where there is none."""
    found = re.search(r"\d+\.[\d.]*\d", file.read_text()) if file.exists() else None
    return found[0] if found else "none"


def upsamples(regions: bool, versions: dict[str, str]) -> bool:
    """Return whether nvJPEG interpolates chroma. Where it does not, the option silently moves decoding to the CPU.

    nvJPEG does so from 12.1 on, and in regions of images, whose edges were wrong before, from 13.2 on, which
    nvImageCodec supports from 0.9 on.

    Args:
        regions: True for regions of images, False for whole images.
        versions: as from `library_versions`.
    """
    nvjpeg, nvimagecodec = _release(versions["nvJPEG"]), _release(versions["nvImageCodec"])
    return nvjpeg >= (13, 2) and nvimagecodec >= (0, 9) if regions else nvjpeg >= (12, 1)


def _release(version: str) -> tuple[int, ...]:
    """Return the major and minor number, or () for a text without numbers."""
    return tuple(map(int, re.findall(r"\d+", version)[:2]))
