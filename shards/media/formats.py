"""The formats of still images, by Pillow's names: which are always read, and which where a decoder is installed.

The list is closed: Pillow would also open formats that run other programs (EPS) or lose bits without a word.
"""

from dataclasses import dataclass
from functools import cache
from importlib import import_module

from PIL import features

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
KEPT = FORMATS[:2]  # whose bytes may be stored as they are


@dataclass(frozen=True)
class Decoder:
    """The decoder of a format that not every installation reads.

    Args:
        kind: the format, as `kinds.kind_of` names it.
        suffixes: of the names of its files, in lower case and without the dot.
        remedy: how to install the decoder.
        feature: the decoder among Pillow's own, by Pillow's name.
        plugin: the module that brings the decoder, where it is not Pillow's own.
        register: the function of the plugin that makes Pillow use it.
    """

    kind: str
    suffixes: frozenset[str]
    remedy: str
    feature: str | None = None
    plugin: str | None = None
    register: str = ""


OPTIONAL = {
    "HEIF": Decoder(
        "HEIC",
        frozenset({"heic", "heif", "hif"}),
        "pip install 'maskfeat-pipeline[heif]'",
        plugin="pillow_heif",
        register="register_heif_opener",
    ),
    "AVIF": Decoder("AVIF", frozenset({"avif"}), "pip install -U 'pillow>=11.3'", feature="avif"),
    "JPEG2000": Decoder(
        "JPEG 2000",
        frozenset({"jp2", "j2k", "j2c", "jpc", "jpf", "jpx"}),
        "install a Pillow with OpenJPEG, such as `pip install -U pillow` brings",
        feature="jpg_2000",
    ),
}
KINDS = frozenset(decoder.kind for decoder in OPTIONAL.values())
SUFFIXES = frozenset().union(*(decoder.suffixes for decoder in OPTIONAL.values()))


@cache
def installed() -> tuple[str, ...]:
    """Return those of `OPTIONAL` that can be decoded here; the decoders are ready then."""
    return tuple(name for name, decoder in OPTIONAL.items() if _is_ready(decoder))


def remedy(kind: str | None) -> str | None:
    """Return how to install the decoder of a format that `kinds.kind_of` names, None where none is missing."""
    missing = (decoder for name, decoder in OPTIONAL.items() if name not in installed())
    return next((decoder.remedy for decoder in missing if decoder.kind == kind), None)


def kind_of_suffix(suffix: str) -> str | None:
    """Return the kind of the optional format whose files have this suffix, in lower case; None for any other."""
    return next((decoder.kind for decoder in OPTIONAL.values() if suffix in decoder.suffixes), None)


def _is_ready(decoder: Decoder) -> bool:
    if decoder.feature is not None:
        return bool(features.check(decoder.feature))
    assert decoder.plugin is not None
    try:
        getattr(import_module(decoder.plugin), decoder.register)()
    except ImportError:
        return False
    return True
