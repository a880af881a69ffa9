"""List the images of a folder: of class folders, or of images alone."""

import os
import posixpath
import re
import shlex
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from shards.files import ShardError
from shards.sources.listing import Listing, is_candidate, labelled, no_images
from shards.sources.table import list_parquet
from shards.text import excerpt, printable

# Folders that file systems, network disks and programs create by themselves, in lower case. Hidden ones count as such.
_NOT_CLASSES = frozenset(
    {
        *("lost+found", "lost.dir", "$recycle.bin", "recycler", "system volume information", "__macosx"),
        *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "~snapshot", "__pycache__"),
    }
)
_PART = re.compile(
    r"(train(ing)?|val(id|idation)?|dev|eval|test(ing)?|unlabell?ed)([-_ ]?(set|images?|data|\d{4}))?", re.IGNORECASE
)

# Pictures and videos in formats that are not supported.
_PICTURES = frozenset(
    {
        *(".jxl", ".jxr", ".jpm"),
        *(".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".dng", ".orf", ".rw2", ".raf", ".pef"),
        *(".srw", ".x3f", ".raw", ".psd", ".psb", ".xcf", ".svg", ".svgz", ".pdf", ".eps", ".dcm", ".exr", ".hdr"),
        *(".tga", ".pcx", ".ppm", ".pgm", ".pbm", ".pnm", ".apng", ".jls", ".ico"),
    }
)
_VIDEOS = frozenset({".mpg", ".mpeg", ".wmv", ".asf", ".flv", ".3gp", ".ts", ".mts", ".m2ts", ".ogv", ".vob", ".rmvb"})
_NUMBERS = re.compile(r"[-_.]?\d+([-_]of[-_]\d+)?$")  # behind the name of a table, one of several
_SHOWN = 5  # kinds or names in a note


@dataclass
class _Found:
    """The result of a walk: `files` are (relative path, size), `folders` the names of those at the top.

    `passed_over` counts the folders that were not entered, by name; `broken` are the dangling links.
    """

    files: list[tuple[str, int]] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    broken: set[str] = field(default_factory=set)


def list_folder(root: Path, group_by: str | None = None) -> Listing:
    """List `root`/<class>/**/<image>, or `root`/<image> alone, following links.

    A folder without images but with Parquet files is listed by these, with `group_by` as in `list_source`. Hidden
    folders, and those of the system, are not entered. Raises ShardError when the folder is
    unreadable, without images, or mixes the two layouts.
    """
    try:
        found = _walk(root)
    except OSError as error:
        raise ShardError(
            f"{error.filename}: {error.strerror}; make it readable (chmod -R u+rX), or move it out of {root}"
        ) from None
    files = sorted(found.files, key=lambda file: os.fsencode(file[0]))
    images = [(path, size) for path, size in files if is_candidate(path)]
    ignored = Counter(
        "broken links" if path in found.broken else kind_of_name(path) for path, _ in files if not is_candidate(path)
    )
    met = _met(found, ignored)
    if not images:
        if tables := [path for path, _ in files if kind_of_name(path) == ".parquet"]:
            refuse_splits(root, tables)
            return list_parquet(root, tables, group_by)
        raise no_images(root, len(files), "; ".join(met))
    paths = [path for path, _ in images]
    loose = [path for path in paths if "/" not in path]
    labels, classes = ([], []) if loose else labelled(paths)
    if loose and len(loose) < len(paths):
        folder = next(path for path in paths if "/" in path).partition("/")[0]
        raise ShardError(
            f"{root}: has files both at the top ({loose[0]}) and in folders ({folder}/); "
            "move the former into class folders, or give a folder without sub-folders"
        )
    return Listing(
        root=root,
        paths=paths,
        sizes=[size for _, size in images],
        offsets=[],
        labels=labels,
        classes=classes,
        ignored=len(files) - len(images),
        notes=tuple(f"{root}: {line}" for line in [*met, *_on_classes(found, classes)]),
    )


def refuse_parts(listing: Listing) -> None:
    """Raise ShardError where apparent class folders or tars are the splits of a data set, such as `train` and `val`.

    A single folder of such a name is a class (a locomotive, perhaps) if images lie directly in it.
    """
    classes = listing.classes
    if not classes or not all(_PART.fullmatch(name) for name in classes):
        return
    if len(classes) > 1 or all(path.count("/") > 1 for path in listing.paths):
        part = next((name for name in classes if name.lower().startswith("train")), classes[0])
        remedy = f"build each separately: maskfeat-shards build {shlex.quote(str(listing.root / part))} ..."
        if listing.offsets:
            remedy = "unpack it, and build each separately"
        raise ShardError(
            f"{listing.root}: contains the splits of a data set ({', '.join(classes)}), which would become classes; "
            f"{remedy}"
        )


def refuse_splits(root: Path, tables: Sequence[str]) -> None:
    """Raise ShardError where the tables in a folder are those of several parts of a data set, as train and test."""
    splits = {_split_of(table): table for table in reversed(tables)}
    if len(splits) > 1 and any(map(_PART.fullmatch, splits)):
        split = next((name for name in splits if name.startswith("train")), min(splits))
        raise ShardError(
            f"{root}: contains the parts of a data set ({', '.join(sorted(splits))}); build each by itself: "
            f"maskfeat-shards build {shlex.quote(str(root / _pattern(splits[split], split)))} ..."
        )


def _split_of(table: str) -> str:
    """Return what a path calls the part of a data set that its table has, as in `train-00000-of-00005.parquet`."""
    *folders, name = table.split("/")
    stem = _NUMBERS.sub("", name.rpartition(".")[0])
    return next((part for part in (stem, *reversed(folders)) if _PART.fullmatch(part)), stem)


def _pattern(table: str, split: str) -> str:
    """Return the file or folder, or the pattern of files, that holds the tables of a split, of which `table` is one."""
    folder, _, name = table.rpartition("/")
    if not name.startswith(split):
        return table[: table.index(split) + len(split)]
    return posixpath.join(folder, name if name == f"{split}.parquet" else f"{name[: len(split) + 1]}*.parquet")


def _walk(root: Path) -> _Found:
    found = _Found()
    ways: list[tuple[str, str, tuple[tuple[int, int], ...]]] = [(str(root), "", ())]  # each with the folders above it
    while ways:
        folder, prefix, above = ways.pop()
        status = Path(folder).stat()
        here = (status.st_dev, status.st_ino)
        if here in above:  # a circular link
            continue
        with os.scandir(folder) as entries:
            for entry in entries:
                path = prefix + entry.name
                try:
                    status = entry.stat()
                except OSError as error:
                    closed = isinstance(error, PermissionError) and not entry.is_symlink()
                    if closed or entry.is_dir(follow_symlinks=False):
                        raise
                    found.files.append((path, 0))  # usually a dangling link; reading it reports the error
                    found.broken.add(path)
                    if not prefix and not entry.name.startswith("."):
                        found.folders.append(entry.name)
                    continue
                if stat.S_ISREG(status.st_mode):
                    found.files.append((path, status.st_size))
                elif stat.S_ISDIR(status.st_mode):
                    if entry.name.startswith(".") or entry.name.lower() in _NOT_CLASSES:
                        found.passed_over[entry.name] += 1
                        continue
                    if not prefix:
                        found.folders.append(entry.name)
                    ways.append((entry.path, f"{path}/", (*above, here)))
    return found


def kind_of_name(path: str) -> str:
    """Return the kind by which to count an ignored file."""
    name = PurePosixPath(path)
    return "hidden" if name.name.startswith(".") else name.suffix.lower() or "without a suffix"


def _met(found: _Found, ignored: Counter[str]) -> list[str]:
    """Return notes on the folders and files that are not images."""
    lines = []
    if found.passed_over:
        lines.append(f"passed over folders that are not classes: {_counts(found.passed_over)}")
    return lines + ([on_ignored(ignored)] if ignored else [])


def on_ignored(ignored: Counter[str]) -> str:
    """Return notes on files that are not candidates, counted by kind."""
    remedies = ""
    for unreadable, remedy in ((_PICTURES, "JPEG"), (_VIDEOS, "MP4")):
        if formats := [kind for kind, _ in ignored.most_common() if kind in unreadable]:
            remedies += f"; {', '.join(formats)} cannot be read here: convert to {remedy} first"
    return f"ignored files: {_counts(ignored)}{remedies}"


def _on_classes(found: _Found, classes: Sequence[str]) -> list[str]:
    """Return notes on the classes: that there are none, a single one, or fewer than folders."""
    if not classes:
        return ["no classes: its files lie at the top; for labels, put them into a folder for each class"]
    lines = []
    if len(classes) == 1:
        name = printable(classes[0])
        lines.append(f"one class only, {name}; if it contains the class folders, build it instead")
    if missing := sorted(set(found.folders) - set(classes), key=os.fsencode):
        holds = Counter(path.partition("/")[0] for path, _ in found.files)
        shown = []
        for name in missing[:_SHOWN]:
            why = f"all its files are ignored: {holds[name]:,}" if holds[name] else "empty"
            shown.append(f"{printable(name)} ({'a broken link' if name in found.broken else why})")
        more = f" and {len(missing) - _SHOWN:,} more" if len(missing) > _SHOWN else ""
        lines.append(f"no class for folders without an image or video: {', '.join(shown)}{more}")
    return lines


def _counts(counter: Counter[str]) -> str:
    """Return the most frequent entries, as in `1,200 .heic, 3 hidden`."""
    ranked = sorted(counter.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{count:,} {excerpt(printable(kind))}" for kind, count in ranked[:_SHOWN]]
    rest = sum(count for _, count in ranked[_SHOWN:])
    return ", ".join([*shown, f"{rest:,} others"] if rest else shown)
