"""The registry of the kinds of samples. To add one, write a class with the members of `Media` and add it here."""

from shards.media.image import IMAGE
from shards.media.kinds import kind_of
from shards.media.media import Media
from shards.media.video import VIDEO

MEDIA: dict[str, Media] = {media.name: media for media in (IMAGE, VIDEO)}  # by its name in the manifest


def media_of(name: str, data: bytes = b"") -> Media:
    """Return the kind of a file, by its suffix or, where that is unknown, as in a URL, by its first bytes.

    Defaults to an image.
    """
    suffix = suffix_of(name)
    named = next((media for media in MEDIA.values() if suffix in media.suffixes), None)
    return named or (VIDEO if kind_of(data) == VIDEO.name else IMAGE)


def suffixes() -> frozenset[str]:
    """Return the suffixes of all files that may be samples."""
    return frozenset().union(*(media.suffixes for media in MEDIA.values()))


def kept_suffixes() -> frozenset[str]:
    """Return the suffixes of the files that may be stored unchanged."""
    return frozenset().union(*(media.kept for media in MEDIA.values()))


def suffix_of(name: str) -> str:
    """Return what follows the last dot of a name, in lower case."""
    return name.rpartition(".")[2].lower() if "." in name else ""
