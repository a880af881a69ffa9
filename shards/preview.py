"""Write one self-contained HTML page that shows the contents of a data set."""

import base64
import errno
from collections.abc import Collection, Iterable
from html import escape
from pathlib import Path

import google_crc32c
import numpy as np
import numpy.typing as npt

from shards.files import ShardError, real
from shards.manifest import Dataset, Manifest
from shards.media.registry import MEDIA
from shards.page import STYLE, histogram
from shards.storage import printable_url, read, replacing
from shards.tables.duplicates import load_duplicates
from shards.tables.rejects import load_rejects
from shards.text import printable, size_of

_THUMBNAILS = 200  # at most, which keeps the page at a few megabytes
_IN_A_GROUP, _FEW_GROUPS, _IN_ONE_OF_FEW = 8, 4, 24
_SIDE = 160  # pixels, twice the displayed size, for high-density screens
_PLAYED = 24  # videos that play; others are shown as frames
_EXAMPLES = 5  # of rejects per reason
_PAIRS = 12  # of duplicates that are shown
# The page has no script and fetches nothing. This tells the browser so, in case a text is taken for markup.
_POLICY = (
    "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; img-src data:; media-src data:; "
    "style-src 'unsafe-inline'\">"
)


def write_preview(root: str | Path, out: Path) -> int:
    """Write the preview of the data set in `root` to the file `out`, and return how many thumbnails it shows.

    Raises ShardError when there is no finished data set, a shown image is damaged, or `out` cannot be written.
    """
    dataset, manifest = Dataset.load(root), Manifest.load(root)
    groups, all_groups = _groups(manifest)
    name = _shown(printable(real(root).name))
    kind = "by class" if (manifest.label >= 0).any() else "by shard"
    if len(groups) < all_groups:
        kind += f", {len(groups):,} of {all_groups:,}"
    playing = _spread(np.array([sample for _, _, ids in groups for sample in ids], np.int64), _PLAYED)
    width = "100%" if all_groups <= _FEW_GROUPS else "330px" if all_groups <= _THUMBNAILS // 2 else "104px"
    heading = f"<h2>{manifest.noun.capitalize()}s <small>{kind}</small></h2>"
    body = [
        f"<header><h1>{name}</h1>{_facts(dataset, manifest)}</header>",
        f"<section><h2>Sizes</h2><div class=charts>{_sizes(manifest)}</div></section>",
        f"<section>{heading}<div class=groups style='--group: {width}'>",
        *(_group(manifest, *group, playing) for group in groups),
        "</div></section>",
        f"<section><h2>Rejects <small>{dataset.rejects:,}</small></h2>{_rejects(root)}</section>",
        _duplicates(manifest),
    ]
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8>{_POLICY}<title>{name}</title>"
        f"<meta name=viewport content='width=device-width'><style>{STYLE}</style><main>{''.join(body)}</main></html>\n"
    )
    try:
        if out.exists() and not out.is_file():  # a device, such as /dev/null, would be replaced by a file
            raise OSError(errno.EINVAL, "is not a regular file")
        with replacing(out, out.parent) as scratch:
            scratch.write_text(page, "utf-8", "backslashreplace")  # JSON may contain lone surrogates
    except OSError as error:
        raise ShardError(f"{out}: cannot be written ({error.strerror}); choose another file") from None
    return page.count("<img ") + page.count("<video ")


def _shown(value: object) -> str:
    """Escape a value of the data set, which is not trusted, as text of the page or of a quoted attribute."""
    return escape(str(value))


def _groups(manifest: Manifest) -> tuple[list[tuple[str, int, list[int]]], int]:
    """Return (title, samples, ids to show) of classes, or of shards where there are no classes, and their total number.

    If there are too many, an even subset is returned, as for the samples of each.
    """
    if (manifest.label >= 0).any():
        of, titles = manifest.label, manifest.classes
    else:
        of, titles = manifest.shard, manifest.shard_names
    order = np.argsort(of, kind="stable")
    edges = np.searchsorted(of[order], np.arange(len(titles) + 1))
    filled = np.flatnonzero(np.diff(edges))
    most = _IN_ONE_OF_FEW if len(filled) <= _FEW_GROUPS else _IN_A_GROUP
    each = max(1, min(most, _THUMBNAILS // len(filled)))
    groups = []
    for index in _spread(filled, _THUMBNAILS):
        members = order[edges[index] : edges[index + 1]]
        groups.append((titles[index], len(members), _spread(members, each)))
    return groups, len(filled)


def _spread(values: npt.NDArray[np.int64], most: int) -> list[int]:
    """Return at most `most` of the values, evenly spaced."""
    count = min(most, len(values))
    return [int(values[len(values) * number // count]) for number in range(count)]


def _facts(dataset: Dataset, manifest: Manifest) -> str:
    facts = [
        ("samples", f"{dataset.samples:,}"),
        ("shards", f"{len(dataset.shards):,}"),
        (f"{manifest.noun} bytes", size_of(dataset.bytes)),
        (f"mean {manifest.noun}", size_of(dataset.bytes / dataset.samples)),
    ]
    if dataset.classes:
        counts = np.bincount(manifest.label[manifest.label >= 0], minlength=len(dataset.classes))
        facts.append(("classes", f"{len(counts):,}"))
        facts.append(("samples per class", f"{counts.min():,} – {counts.max():,}"))  # noqa: RUF001
    if dataset.options is not None and dataset.options.resize is not None:
        facts.append(("short side resized to", f"{dataset.options.resize} px"))
    if manifest.video is not None:
        frames = manifest.video.frames[manifest.video.frames > 0]
        facts.append(("frames per video", f"{frames.min():,} – {frames.max():,}"))  # noqa: RUF001
    facts.append(("ignored files", f"{dataset.ignored:,}"))
    cells = "".join(f"<div><dd>{_shown(value)}</dd><dt>{name}</dt></div>" for name, value in facts)
    return f"<dl>{cells}</dl><p class=identity>identity {_shown(dataset.manifest_sha256)}</p>"


def _sizes(manifest: Manifest) -> str:
    short = np.minimum(manifest.height, manifest.width)
    sides = {2.0**power: f"{2**power}" for power in range(20)}
    ratios = {1 / 4: "1:4", 1 / 2: "1:2", 1.0: "1:1", 2.0: "2:1", 4.0: "4:1"}
    median = f"median {np.median(short):.0f}, {short.min():,} to {short.max():,}"
    return histogram("Short side in pixels", median, short, sides) + histogram(
        "Width : height", f"{(manifest.width > manifest.height).mean():.0%} landscape", _aspect(manifest), ratios
    )


def _aspect(manifest: Manifest) -> npt.NDArray[np.float64]:
    return np.clip(manifest.width / manifest.height, 1 / 4, 4)


def _group(manifest: Manifest, title: str, samples: int, ids: Iterable[int], playing: Collection[int]) -> str:
    caption = f"<figcaption title='{_shown(title)}'>{_shown(title)} <small>{samples:,}</small></figcaption>"
    return (
        f"<figure>{caption}<div>{''.join(_image(manifest, sample, sample in playing) for sample in ids)}</div></figure>"
    )


def _image(manifest: Manifest, sample: int, plays: bool = False) -> str:
    row = manifest.rows(sample, sample + 1, ["path", "media"]).to_pylist()[0]
    path, file = row["path"], manifest.shard_location(manifest.shard[sample])
    try:
        data = read(file, int(manifest.offset[sample]), int(manifest.size[sample]))
    except OSError as error:
        raise ShardError(
            f"{printable_url(file)}: {error.strerror}; run `maskfeat-shards verify {manifest.root}`"
        ) from None
    if google_crc32c.value(data) != manifest.crc32c[sample]:
        raise ShardError(f"{printable_url(file)}: {path} is damaged; run `maskfeat-shards verify {manifest.root}`")
    title, media = f"{path}, {manifest.width[sample]} x {manifest.height[sample]}", MEDIA[row["media"]]
    if manifest.video is not None and manifest.video.frames[sample]:
        title += f", {manifest.video.frames[sample]:,} frames, {manifest.video.rate[sample]:.4g} a second"
    try:
        source = base64.b64encode(media.thumbnail(data, _SIDE)).decode()
        film = media.moving(data, _SIDE) if plays else None
    except Exception:  # decoders raise nearly every type on damaged input
        return f"<div class=unseen title='{_shown(title)}'>cannot be shown</div>"
    if film is not None:
        shown = base64.b64encode(film).decode()
        return (
            f"<video autoplay controls muted loop playsinline title='{_shown(title)}' "
            f"poster='data:image/jpeg;base64,{source}' src='data:video/mp4;base64,{shown}'></video>"
        )
    shown = f"class={media.name} loading=lazy title='{_shown(title)}' alt='{_shown(path)}'"
    return f"<img {shown} src='data:image/jpeg;base64,{source}'>"


def _rejects(root: str | Path) -> str:
    by_reason: dict[str, list[str]] = {}
    for path, reason, detail in load_rejects(root):
        by_reason.setdefault(reason, []).append(f"<li><code>{_shown(path)}</code> {_shown(detail)}")
    if not by_reason:
        return "<p>None: every file was kept.</p>"
    rows = ""
    for reason, examples in sorted(by_reason.items(), key=lambda item: -len(item[1])):
        more = f"<li>and {len(examples) - _EXAMPLES:,} more" if len(examples) > _EXAMPLES else ""
        shown = "".join(examples[:_EXAMPLES])
        rows += f"<tr><th>{_shown(reason)}<td class=count>{len(examples):,}<td><ul>{shown}{more}</ul>"
    return f"<table>{rows}</table>"


def _duplicates(manifest: Manifest) -> str:
    found = load_duplicates(manifest.root, len(manifest))
    heading = f"<h2>Duplicates <small>{len(found):,}</small></h2>"
    if not found:
        return f"<section>{heading}<p>None: no two samples have the same bytes.</p></section>"
    rows = ""
    for sample, first in found[:_PAIRS]:
        paths = f"<code>{_shown(manifest.path(first))}</code><br><code>{_shown(manifest.path(sample))}</code>"
        rows += f"<div class=pair>{_image(manifest, first)}<p>{paths}</p></div>"
    more = f"<p>and {len(found) - _PAIRS:,} more</p>" if len(found) > _PAIRS else ""
    return f"<section>{heading}<div class=pairs>{rows}</div>{more}</section>"
