"""A hold-out: which files it takes, what stays on one side, and that it can be repeated and resumed."""

import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making_images import contents, encoded, make_tree, picture

from shards.build import build
from shards.files import ShardError
from shards.making.engines import run_on_ray
from shards.making.holdout import Validation, hold_out
from shards.manifest import DATASET, Dataset, Manifest
from shards.sources.source import list_source
from shards.tables.rejects import load_rejects
from shards.verify import verify


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "source", 24)


def both(source: Path, root: Path, share: str, **options: object) -> tuple[Path, Path]:
    """Build a training and a validation set of a source, and return their folders."""
    training, validation = root / "set", root / "held"
    build(source, training, validation=Validation(share, str(validation)), workers=1, **options)  # type: ignore[arg-type]
    return training, validation


def paths(out: Path) -> set[str]:
    manifest = Manifest.load(out)
    return {path for _, path in manifest.names(0, len(manifest))}


@pytest.mark.parametrize(("share", "count"), [("25%", 6), ("5", 5), ("1%", 1), ("99.9%", 23), (" 12.5 % ", None)])
def test_a_share_or_a_count_of_the_files_is_held_out(
    share: str, count: int | None, source: Path, tmp_path: Path
) -> None:
    if count is None:
        with pytest.raises(ShardError, match="neither a percentage, such as 5%, nor a count"):
            both(source, tmp_path, share)
        return
    training, validation = both(source, tmp_path, share)
    held, left = paths(validation), paths(training)
    assert (len(held), held | left, held & left) == (count, set(list_source(source).paths), set())
    assert Dataset.load(training).classes == Dataset.load(validation).classes == ["ant", "bee"]
    assert verify(training) == verify(validation) == []
    keys = [key for out in (training, validation) for key, _ in Manifest.load(out).names(0, len(Manifest.load(out)))]
    assert sorted(keys) == [f"{number:09d}" for number in range(24)], "keys number the whole source"


@pytest.mark.parametrize("share", ["0", "0%", "100%", "24", "25", "-5", "five", "", "5%%", "1e1%"])
def test_shares_of_no_sense_are_refused(share: str, source: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"^--validation "):
        both(source, tmp_path, share)
    assert not (tmp_path / "set").exists() and not (tmp_path / "held").exists()


def test_the_seed_and_the_names_decide_and_another_share_keeps_what_was_held_out(source: Path, tmp_path: Path) -> None:
    listing = list_source(source)
    few, more, other = (
        {listing.paths[index] for index in hold_out(listing, Validation(share, ""), seed)}
        for share, seed in (("6", 0), ("12", 0), ("6", 1))
    )
    assert few < more and few != other
    (source / "ant" / "another.jpg").write_bytes((source / "ant" / "000.JPG").read_bytes())
    again = list_source(source)
    assert len(few ^ {again.paths[index] for index in hold_out(again, Validation("6", ""), 0)}) in (0, 2)


def test_workers_ray_and_a_killed_build_change_no_byte(source: Path, tmp_path: Path) -> None:
    shutil.copy(source / "ant" / "000.JPG", source / "bee" / "twin.jpg")
    trees = []
    for number, options in enumerate(({}, {"workers": 2}, {"workers": 2, "engine": run_on_ray})):
        training, validation = tmp_path / f"{number}", tmp_path / f"{number}-held"
        build(source, training, validation=Validation("50%", str(validation)), samples_per_shard=4, **options)  # type: ignore[arg-type]
        trees.append((contents(training), contents(validation)))
    assert trees[0] == trees[1] == trees[2]

    interrupted = tmp_path / "stopped"

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        assert total == 25
        if done == 16:  # in the training set
            raise Stop

    validation = Validation("50%", str(tmp_path / "stopped-held"))
    with pytest.raises(Stop):
        build(source, interrupted, validation=validation, samples_per_shard=4, workers=1, progress=stop)
    assert (tmp_path / "stopped-held" / DATASET).exists() and not (interrupted / DATASET).exists()
    assert build(source, interrupted, validation=validation, samples_per_shard=4, workers=1)[1] is False
    assert (contents(interrupted), contents(tmp_path / "stopped-held")) == trees[0]
    assert build(source, interrupted, validation=validation, samples_per_shard=4, workers=1)[1] is True


def test_equal_bytes_are_never_on_both_sides(source: Path, tmp_path: Path) -> None:
    for path in sorted(source.rglob("*.*")):
        shutil.copy(path, path.with_name(f"copy of {path.name}"))
    training, validation = both(source, tmp_path, "50%")
    held = paths(validation)
    twins = {path.replace("copy of ", "") if "copy of " in path else path.replace("/", "/copy of ") for path in held}
    rejects = load_rejects(training)
    assert rejects and {path for path, _, _ in rejects} == twins - held
    assert {reason for _, reason, _ in rejects} == {"held out"}
    path, _, detail = rejects[0]
    twin = path.replace("copy of ", "") if "copy of " in path else path.replace("/", "/copy of ")
    assert detail == f"has the bytes of {twin}, which is in the validation set"
    assert paths(training).isdisjoint(held | twins)
    assert verify(training) == verify(validation) == []


def test_what_becomes_equal_by_shrinking_is_not_on_both_sides(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for number in range(8):
        for name, options in (("plain", {}), ("said", {"comment": b"more"})):
            data = encoded(picture(number, 60, 80), "JPEG", quality=95, **options)
            (tmp_path / "source" / f"{number}-{name}.jpg").write_bytes(data)
    training, validation = both(tmp_path / "source", tmp_path, "50%", resize=32)
    numbers = [{path[0] for path in paths(out)} for out in (training, validation)]
    assert numbers[0].isdisjoint(numbers[1]) and len(numbers[0] | numbers[1]) == 8


def grouped(folder: Path, kind: str, column: str) -> Path:
    """Write a table of 24 images of 6 photographers, and two of nobody, as a list of files or with the files in it."""
    tree = make_tree(folder / "images", 26, ())
    names = sorted(path.name for path in tree.iterdir())
    groups = [f"{number % 6}" for number in range(24)] + [None, ""]
    if kind == "csv":
        rows = [f"images/{name},{group or ''}\n" for name, group in zip(names, groups, strict=True)]
        (folder / "list.csv").write_text(f"path,{column}\n" + "".join(rows))
        return folder / "list.csv"
    files = [(tree / name).read_bytes() for name in names]
    columns = {"path": [f"images/{name}" for name in names]} if kind == "parquet" else {"image": files}
    pq.write_table(pa.table({**columns, column: groups}), folder / "list.parquet", row_group_size=5)
    return folder / "list.parquet"


@pytest.mark.parametrize("kind", ["csv", "parquet", "embedded"])
@pytest.mark.parametrize(("column", "group_by"), [("Group ", None), ("photographer", "photographer")])
def test_groups_stay_together(kind: str, column: str, group_by: str | None, tmp_path: Path) -> None:
    table = grouped(tmp_path, kind, column)
    validation = Validation("9", str(tmp_path / "held"), group_by)
    build(table, tmp_path / "set", validation=validation, workers=1)
    listing = list_source(table, group_by)
    assert Counter(listing.groups) == {**dict.fromkeys("012345", 4), None: 2}
    group_of = dict(zip(listing.paths, listing.groups, strict=True))
    sides = [{group_of[path] for path in paths(tmp_path / out)} - {None} for out in ("set", "held")]
    assert sides[0].isdisjoint(sides[1]) and sides[0] | sides[1] == set("012345")
    assert len(Manifest.load(tmp_path / "held")) in (8, 9, 10)
    assert len(paths(tmp_path / "set")) + len(paths(tmp_path / "held")) == 26


def test_groups_that_are_larger_than_the_hold_out_are_refused(tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text("path,group\n" + "".join(f"{number}.jpg,{number % 2}\n" for number in range(20)))
    with pytest.raises(ShardError, match=r"--validation 10%: is 2 files, and the groups of .* have up to 10, so none"):
        hold_out(list_source(table), Validation("10%", ""), 0)
    for share in ("40%", "95%"):
        assert len(hold_out(list_source(table), Validation(share, ""), 0)) == 10


def test_a_column_that_is_not_there_is_an_error_of_every_source(source: Path, tmp_path: Path) -> None:
    for other in (source, grouped(tmp_path, "csv", "x"), grouped(tmp_path, "parquet", "x")):
        with pytest.raises(ShardError, match="has no column who for --group-by; name one of a table"):
            list_source(other, "who")


def test_the_data_sets_lie_apart_from_each_other_and_say_what_they_are(source: Path, tmp_path: Path) -> None:
    for held in (tmp_path / "set", tmp_path / "set" / "held", source / "held"):
        with pytest.raises(ShardError, match=r"contains .* or is inside it; choose a separate folder"):
            build(source, tmp_path / "set", validation=Validation("5", str(held)), workers=1)
    training, validation = both(source, tmp_path, "25%")
    facts = [Dataset.load(out).options for out in (training, validation)]
    assert [(of.part, of.validation, of.group_by) for of in facts if of] == [
        ("training", "25%", None),
        ("validation", "25%", None),
    ]
    with pytest.raises(ShardError, match="contains a data set of other files or options"):
        build(source, training, workers=1)
    with pytest.raises(ShardError, match="contains a data set of other files or options"):
        both(source, tmp_path, "50%")


def test_other_files_in_out_are_refused_before_anything_is_written(source: Path, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine").touch()
    with pytest.raises(ShardError, match=r"contains other files \(mine\)"):
        both(source, tmp_path, "50%")
    assert not (tmp_path / "held").exists()
