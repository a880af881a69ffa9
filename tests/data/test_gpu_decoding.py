"""Decoding on a GPU: both ways give the same pixels, tests are real processes, and their results are cached.

No GPU is needed: the graphs decode on the CPU, and processes crash and hang as they would on a GPU.
"""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import CHECKOUT
from numpy.typing import NDArray

from model.size import ImageSize
from pipeline.data.decode import gpu as gpu_decoding
from pipeline.data.decode.decoder import chosen
from pipeline.data.decode.gpu import Choice, Ending, Outcome, choose, examine, remembered, selftest
from pipeline.data.decode.graphs import Crops, Decoding, Graph, image_nodes
from pipeline.data.decode.libraries import driver_version, library_versions, upsamples
from pipeline.data.decode.selftest import CLOSE, KINDS, crops, furthest, image
from pipeline.data.errors import DataError

SIZE = ImageSize(48, 64)
VERSIONS = {"DALI": "2.4.0", "nvImageCodec": "0.9.0.20", "nvJPEG": "13.3.2.43"}
CIRCUMSTANCES = VERSIONS | {"driver": "580.1", "GPU": "H100", "hardware": "0"}
REGIONS, WHOLE = Decoding(True, 0, True), Decoding(False, 0, True)
SOUND = Outcome(Ending.SOUND)
CRASHED, FAILED = Outcome(Ending.KILLED, "was killed by SIGSEGV"), Outcome(Ending.FAILED, "failed (8)")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set the folder of this user's caches during a test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "maskfeat-pipeline"


def decoded(batch: Crops, decoding: Decoding, size: ImageSize | None) -> list[NDArray[np.uint8]]:
    graph = Graph(len(batch.encoded), 1, None, image_nodes(decoding, size))
    graph.feed(batch)
    (images,) = graph.take()
    return [np.array(images.at(place)) for place in range(len(batch.encoded))]


@pytest.mark.parametrize("kind", [*KINDS, "CMYK", "WebP"])
@pytest.mark.parametrize("size", [None, SIZE])
def test_whole_images_give_the_pixels_of_regions(kind: str, size: ImageSize | None) -> None:
    others = {"CMYK": {"mode": "CMYK"}, "WebP": {"kind": "WEBP"}}
    options = (KINDS | others)[kind]
    high = kind in ("EXIF 6", "EXIF 8")  # turned by 90 degrees: 500 high, 375 wide
    boxes = [(0, 0, 500, 375), (301, 7, 199, 301)] if high else [(0, 0, 375, 500), (7, 301, 301, 199)]
    batch = Crops([image(1, **options)] * 2, np.array(boxes, np.int32), np.array([0, 1], np.int32))
    regions, whole = (decoded(batch, Decoding(regions=way), size) for way in (True, False))
    for box, one, other in zip(boxes, regions, whole, strict=True):
        assert one.shape == other.shape == ((*box[2:], 3) if size is None else (*SIZE, 3))
        assert one.std() > 20 and np.array_equal(one, other)


def test_the_test_tells_crops_that_are_wrong() -> None:
    """One of a kind that is not turned, mirrored or moved as it should be, in a batch that is else right."""
    batch = crops(0)
    right = np.stack(decoded(batch, Decoding(), ImageSize(64, 64)))
    assert furthest(right, right)[0] == 0
    assert furthest(np.clip(right, 2, 253), right)[0] < CLOSE  # rounding is not an error
    for place, kind in enumerate(KINDS):
        for wrong in (right[place].transpose(1, 0, 2), right[place][:, ::-1], np.roll(right[place], 16, 0)):
            found = right.copy()
            found[place] = wrong
            off, of = furthest(found, right)
            assert off > CLOSE and of == kind


def child(*lines: str) -> list[str]:
    return [sys.executable, "-c", "\n".join(["import ctypes, os, sys, time", *lines])]


@pytest.mark.parametrize(
    ("command", "outcome"),
    [
        (selftest("cpu", REGIONS), SOUND),
        (selftest("cpu", WHOLE), SOUND),
        (child("print('ready')", "print('no libnvjpeg')", "print('sound')"), Outcome(Ending.SOUND, library=False)),
        (child("print('ready')", "raise RuntimeError('8')"), Outcome(Ending.FAILED, "failed (RuntimeError: 8)")),
        (child("print('ready')"), Outcome(Ending.FAILED, "failed (ended with status 0)")),  # and not a word
        (child("print('ready', flush=True)", "ctypes.string_at(0)"), CRASHED),
        (child("print('ready', flush=True)", "os.abort()"), Outcome(Ending.KILLED, "was killed by SIGABRT")),
        (child("print('sound')"), Outcome(None, "it failed (ended with status 0)")),
        (
            child("import no_such_module"),
            Outcome(None, "it failed (ModuleNotFoundError: No module named 'no_such_module')"),
        ),
        (child("ctypes.string_at(0)"), Outcome(None, "it was killed by SIGSEGV")),
        (["/no/such/program"], Outcome(None, "/no/such/program: No such file or directory")),
    ],
    ids=str,
)
def test_a_process_tells_how_decoding_ends(command: list[str], outcome: Outcome) -> None:
    assert examine(command) == outcome


@pytest.mark.parametrize(("first", "ending"), [("print('ready', flush=True)", Ending.KILLED), ("pass", None)])
def test_a_process_that_hangs_is_killed(first: str, ending: Ending | None, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    outcome = examine(child(f"open({str(pid)!r}, 'w').write(str(os.getpid()))", first, "time.sleep(600)"), limit=5)
    assert outcome.ending is ending and "did not end within 5 s" in outcome.reason
    assert not Path("/proc", pid.read_text()).exists()


def test_a_missing_libnvjpeg_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of its name that is not a library hides it."""
    (tmp_path / "libnvjpeg.so.13").touch()
    (tmp_path / "libnvjpeg.so.12").touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    assert examine(selftest("cpu", REGIONS)) == Outcome(Ending.SOUND, library=False)


def outcomes(regions: Outcome, whole: Outcome) -> Callable[[Decoding], Outcome]:
    return lambda decoding: regions if decoding.regions else whole


@pytest.mark.parametrize(
    ("regions", "whole", "decoding", "final", "said"),
    [
        (SOUND, CRASHED, REGIONS, True, "regions of images, as tested on this node"),
        (CRASHED, SOUND, WHOLE, True, "decoding regions of images was killed by SIGSEGV: install versions"),
        (FAILED, SOUND, WHOLE, True, "decoding regions of images failed (8): install versions"),
        (
            FAILED,
            FAILED,
            REGIONS,
            False,
            "regions of images, although a test of decoding regions of images failed (8), and one",
        ),
        (FAILED, CRASHED, REGIONS, False, "and one of whole images was killed by SIGSEGV: install versions"),
        (CRASHED, FAILED, WHOLE, False, "and one of whole images failed (8): install versions"),
        (
            Outcome(None, "it failed (busy)"),
            CRASHED,
            REGIONS,
            False,
            "could not be tested: it failed (busy): fix what",
        ),
        (
            Outcome(Ending.SOUND, library=False),
            CRASHED,
            REGIONS,
            False,
            "so DALI decodes on the CPU: pip install",
        ),
    ],
)
def test_regions_are_preferred_and_what_kills_is_avoided(
    regions: Outcome, whole: Outcome, decoding: Decoding, final: bool, said: str
) -> None:
    choice = choose(outcomes(regions, whole), VERSIONS, 0)
    assert choice.decoding == decoding and choice.final is final and said in str(choice)
    assert "\n" not in str(choice)


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="it is about a GPU that is not there")
def test_a_gpu_that_cannot_be_reached_is_not_judged(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way, with a real process, for a device whose name alone is made up."""
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "H100")
    choice = chosen(torch.device("cuda", 0), 0)
    assert choice.decoding.regions and not choice.final and "CUDA is not available" in str(choice)
    assert not list(cache.glob("*.json"))


def test_a_gpu_that_only_crashes_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"^the GPU cannot decode: .* SIGSEGV, and one of whole images was .*; install .*docs/"
    ):
        choose(outcomes(CRASHED, CRASHED), VERSIONS, 0)


def kept(answers: list[Choice], circumstances: dict[str, str] = CIRCUMSTANCES) -> Choice:
    """Call `remembered` with a choice that pops the last of the answers."""
    return remembered(circumstances, answers.pop)


GOOD, OTHER = Choice(REGIONS, "good", True), Choice(WHOLE, "another", True, "install it")


def test_a_choice_is_kept_for_its_circumstances(cache: Path) -> None:
    answers = [OTHER, GOOD]
    assert kept(answers) == GOOD and kept(answers) == GOOD and answers == [OTHER]
    (memory,) = cache.glob("*.json")
    assert {path.name for path in cache.iterdir()} == {memory.name, memory.with_suffix(".lock").name}
    for name in CIRCUMSTANCES:
        assert kept([OTHER], CIRCUMSTANCES | {name: "another"}) == OTHER
        assert kept([], CIRCUMSTANCES | {name: "another"}) == OTHER
    assert kept([]) == GOOD


def test_what_was_not_tested_is_asked_again() -> None:
    answers = [GOOD, Choice(REGIONS, "untested", False)]
    assert not kept(answers).final and kept(answers) == GOOD


@pytest.mark.parametrize(
    "damage",
    [
        lambda good: b"",
        lambda good: good[: len(good) // 2],
        lambda good: b"\xff" + good,
        lambda good: b"[]",
        lambda good: good.replace(b'"regions": true', b'"regions": "perhaps"'),
        lambda good: good.replace(b"H100", b"A100"),
    ],
)
def test_a_damaged_file_is_as_no_file(cache: Path, damage: Callable[[bytes], bytes]) -> None:
    kept([GOOD])
    (memory,) = cache.glob("*.json")
    damaged = damage(memory.read_bytes())
    assert damaged != memory.read_bytes()
    memory.write_bytes(damaged)
    assert kept([OTHER]) == OTHER and kept([]) == OTHER


def test_a_folder_in_place_of_the_file_is_as_no_file(cache: Path) -> None:
    kept([GOOD])
    (memory,) = cache.glob("*.json")
    memory.unlink()
    memory.mkdir()
    assert kept([OTHER]) == OTHER and kept([GOOD]) == GOOD


@pytest.mark.parametrize("where", ["/dev/null", "/proc"])
def test_a_cache_that_cannot_be_written_costs_a_test_a_start(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", where)
    answers = [OTHER, GOOD]
    assert kept(answers) == GOOD and kept(answers) == OTHER


def test_the_ranks_of_a_node_test_once(tmp_path: Path) -> None:
    program = f"""
import time
from pipeline.data.decode.gpu import Choice, remembered
from pipeline.data.decode.graphs import Decoding
def choose():
    print("tested", file=open({str(tmp_path / "tests")!r}, "a"))
    time.sleep(0.5)
    return Choice(Decoding(), "good", True)
assert remembered({{"GPU": "H100"}}, choose).note == "good"
"""
    ranks = [subprocess.Popen([sys.executable, "-c", program], cwd=CHECKOUT) for _ in range(3)]
    assert [rank.wait(120) for rank in ranks] == [0] * 3
    assert (tmp_path / "tests").read_text() == "tested\n"


def test_a_rank_that_hangs_does_not_hold_up_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_decoding, "LIMIT", 0.5)
    entered, leave = threading.Event(), threading.Event()

    def hang() -> Choice:
        entered.set()
        leave.wait(60)
        return GOOD

    hanging = threading.Thread(target=remembered, args=(CIRCUMSTANCES, hang))
    hanging.start()
    assert entered.wait(60)
    assert kept([OTHER]) == OTHER
    leave.set()
    hanging.join()


@pytest.mark.parametrize(
    ("nvimagecodec", "nvjpeg", "regions", "whole"),
    [
        ("0.9.0.20", "13.3.2.43", True, True),
        ("0.9.0.20", "13.2.0.1", True, True),
        ("0.10.1", "14.0", True, True),
        ("0.9.0.20", "13.1.0.48", False, True),
        ("0.8.0.22", "13.3.2.43", False, True),
        ("0.9.0.20", "12.4.0.76", False, True),
        ("0.9.0.20", "12.0.1.102", False, False),
        ("none", "13.3.2.43", False, True),
        ("0.9.0.20", "none", False, False),
    ],
)
def test_chroma_is_interpolated_where_the_libraries_can(
    nvimagecodec: str, nvjpeg: str, regions: bool, whole: bool
) -> None:
    versions = {"DALI": "2.4.0", "nvImageCodec": nvimagecodec, "nvJPEG": nvjpeg}
    assert (upsamples(True, versions), upsamples(False, versions)) == (regions, whole)
    asked: list[Decoding] = []

    def fail(decoding: Decoding) -> Outcome:
        asked.append(decoding)
        return FAILED

    choose(fail, versions, 1)
    assert asked == [Decoding(True, 1, regions), Decoding(False, 1, whole)]


def installed(folder: Path, *packages: str) -> None:
    for package in packages:
        name, version = package.split("==")
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that has all packages there are."""
    monkeypatch.setattr(sys, "path", [str(tmp_path / "packages")])
    yield tmp_path / "packages"


def test_versions_are_those_of_the_packages_for_any_cuda(packages: Path) -> None:
    assert library_versions() == dict.fromkeys(VERSIONS, "none")
    installed(packages, "nvidia-nvjpeg2k-cu13==0.11.0", "nvidia-nvjpeg-cu12==12.4.0.76", "nvidia-dali-cuda120==1.50.0")
    assert library_versions() == {"DALI": "1.50.0", "nvImageCodec": "none", "nvJPEG": "12.4.0.76"}
    installed(packages, "nvidia-nvimgcodec-cu12==0.6.1")
    assert library_versions()["nvImageCodec"] == "0.6.1"


def test_nothing_is_loaded_to_tell_versions() -> None:
    code = (
        "import sys, pipeline.data.decode.libraries as libraries; libraries.library_versions(); "
        "sys.exit(not {'torch', 'nvidia'}.isdisjoint(sys.modules) or 'libcuda' in open('/proc/self/maps').read())"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT).returncode == 0


def test_the_driver_is_read_from_the_kernel(tmp_path: Path) -> None:
    file = tmp_path / "version"
    assert driver_version(file) == "none"
    file.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\nGCC version: 13"
    )
    assert driver_version(file) == "580.65.06"
