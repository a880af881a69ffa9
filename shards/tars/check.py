"""Check the file and the label of one sample of an existing tar, which cannot be changed."""

from pathlib import Path

from shards.files import parse_json
from shards.labels import Label, as_label, label_name
from shards.media.media import Checked, CheckOptions, Media, Rejected, refuse_huge
from shards.media.registry import kept_suffixes, media_of, suffixes
from shards.storage import read
from shards.tars.samples import Sample, matching

_MAX_METADATA = 2**20  # largest size of a .cls or .json, in bytes
_SHOWN = 3  # extensions in a message


def check_sample(tar: Path, sample: Sample, max_pixels: int) -> tuple[str, Media, Checked, Label | None]:
    """Check one sample and return the extension of its file, its kind, the result of the check, and its label.

    Raises Rejected for a sample that cannot be used unchanged.
    """
    if sample.unsafe is not None:
        raise Rejected("unsafe member", sample.unsafe)
    extension = _extension_of(sample)
    media = media_of(sample.members[extension][2])
    refuse_huge(sample.members[extension][1])
    data = _member(tar, sample, extension)
    checked = media.check(data, CheckOptions(max_pixels))
    if checked.data is not data:
        raise Rejected("needs rewriting", media.changed)
    return extension, media, checked, _label(tar, sample)


def _extension_of(sample: Sample) -> str:
    """Return the extension of the sample's only file that is an image or another kind of sample."""
    kept = kept_suffixes()
    found = matching(sample.members, kept)
    if len(found) == 1:
        return found[0]
    others = matching(sample.members, suffixes() - kept)
    if others and not found:
        raise Rejected(
            "needs rewriting",
            f"is .{others[0]}, which `index` cannot convert; unpack the tars and use `maskfeat-shards build`",
        )
    what = f"{len(found)} members end in .{', .'.join(sorted(kept))}"
    if found:
        what += f": .{', .'.join(found[:_SHOWN])}{', ...' if len(found) > _SHOWN else ''}"
    if any("." in extension for extension in found):
        what += "; names contain dots, and the key ends at the first dot"
    raise Rejected("not one image", what)


def _label(tar: Path, sample: Sample) -> Label | None:
    """Return the label in `.cls` or, without one there, in `.json`. Raises Rejected for a bad label."""
    for suffix in ("cls", "json"):
        sources = matching(sample.members, (suffix,))
        labels = {_label_in(tar, sample, source) for source in sources} - {None}
        if len(labels) > 1:
            raise Rejected("bad label", f".{', .'.join(sources[:_SHOWN])} do not agree")
        if labels:
            return labels.pop()
    return None


def _label_in(tar: Path, sample: Sample, source: str) -> Label | None:
    """Return the label in a member: its whole text, or the value of a label key in an object."""
    if sample.members[source][1] > _MAX_METADATA:
        raise Rejected("bad label", f".{source} has more than {_MAX_METADATA} bytes")
    data = _member(tar, sample, source)
    try:
        if source.lower().endswith("cls"):
            value: object = data.decode("utf-8-sig")
        else:
            facts = parse_json(data)
            name = label_name(facts) if isinstance(facts, dict) else None
            value = None if name is None else facts[name]
        label = as_label(value)
        if isinstance(label, str):
            label.encode()  # JSON may contain lone surrogates
        return label
    except ValueError as error:
        raise Rejected("bad label", f".{source}: {error}") from None


def _member(tar: Path, sample: Sample, extension: str) -> bytes:
    offset, size, _ = sample.members[extension]
    return read(str(tar), offset, size)
