"""Measure the parts of the pipeline, compared with alternatives and with the limits of the hardware.

    python scripts/bench.py --help             the benchmarks
    python scripts/bench.py step --help        one of them
    python scripts/bench.py gpu SHARDS OUT     everything that needs a GPU, in 8 minutes, into one file

Each number is the median over several rounds in which the contestants take turns. Numbers depend on the machine;
docs/explanation/benchmarks.md has ours.
"""

import signal
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.figures import publish
from pipeline.data.errors import DataError
from pipeline.settings import ConfigError
from shards.files import ShardError
from shards.terminal import note, prepare

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Shards = Annotated[Path, typer.Argument(help="A data set of maskfeat-shards.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of this project, workers of the others.")]
Size = Annotated[int, typer.Option(min=16, help="Pixels per side.")]


def _in_a_folder(file: Path | None) -> Path | None:
    if file and not file.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {file.parent}")
    return file


Json = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write machine, versions and figures here.", callback=_in_a_folder),
]
Steps = Annotated[int | None, typer.Option(min=1, help="Steps per round; 20 on a GPU, 3 on a CPU.")]
Images = Annotated[int | None, typer.Option(min=1, help="Images per rank and step; 256 on a GPU, 16 on a CPU.")]
Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[RECIPE] [section.key=value]...", help="Default: vit_base_300e on a GPU, demo on a CPU."),
]

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[section.key=value]...", help="Settings of the recipe.")
]


@app.callback()
def launched(local_rank: Annotated[int, typer.Option("--local_rank", hidden=True)] = 0) -> None:
    """Accept the option that DeepSpeed's launcher passes to every rank."""


@app.command()
def build(images: Annotated[Path, typer.Argument(help="A folder of images.")], json: Json = None) -> None:
    """Build shards from files."""
    from benchmarks.build import build

    publish(build(images), json)


@app.command()
def read(shards: Shards, threads: Threads = 4, json: Json = None) -> None:
    """Read encoded images from shards."""
    from benchmarks.data import read

    publish(read(shards, threads), json)


@app.command()
def decode(shards: Shards, threads: Threads = 2, size: Size = 224, json: Json = None) -> None:
    """Decode crops from memory."""
    from benchmarks.data import decode

    device = _device()
    publish(decode(shards, threads, size, device, 256 if device.type == "cuda" else 32), json)


@app.command()
def loader(shards: Shards, threads: Threads = 2, size: Size = 224, json: Json = None) -> None:
    """Load crops from shards, on a CPU."""
    from benchmarks.data import loader

    publish(loader(shards, threads, size), json)


@app.command()
def clips(
    shards: Shards,
    threads: Threads = 2,
    size: Size = 224,
    jpegs: Annotated[Path | None, typer.Option(help="The same videos, built with --frames jpeg.")] = None,
    json: Json = None,
) -> None:
    """Load clips of videos from shards, on a CPU."""
    from benchmarks.clips import clips

    publish(clips(shards, threads, size, jpegs), json)


@app.command()
def hog(size: Size = 224, json: Json = None) -> None:
    """Compute HOG targets."""
    from benchmarks.targets import hog

    device = _device()
    publish(hog(size, device, 256 if device.type == "cuda" else 32), json)


@app.command()
def targets(
    teacher: str = "vit_base_patch16_224",
    classifier: str = "convnext_tiny",
    size: Size = 224,
    json: Json = None,
) -> None:
    """Compute the five kinds of target; their networks have random weights."""
    from benchmarks.kinds import kinds

    device = _device()
    publish(kinds(size, device, 256 if device.type == "cuda" else 8, teacher, classifier), json)


@app.command()
def masks(json: Json = None) -> None:
    """Draw block masks."""
    from benchmarks.targets import masks

    publish(masks(_device()), json)


@app.command()
def augment(threads: Threads = 2, size: Size = 224, json: Json = None) -> None:
    """Apply RandAugment."""
    from benchmarks.augment import augment

    device = _device()
    publish(augment(size, device, 256 if device.type == "cuda" else 64, threads), json)


@app.command()
def plan(json: Json = None) -> None:
    """Compute the order of 10^10 samples."""
    from benchmarks.order import plan

    publish(plan(), json)


@app.command()
def shuffle() -> None:
    """Measure how random the order is."""
    from benchmarks.shuffling import shuffle

    shuffle()


@app.command()
def step(
    settings: Settings = None,
    images: Images = None,
    steps: Steps = None,
    peak: Annotated[float | None, typer.Option(help="TFLOP/s of a device that is not a known GPU.")] = None,
    json: Json = None,
) -> None:
    """Train on resident data, beside plain PyTorch. For several ranks: deepspeed --num_gpus 2 THIS step ..."""
    from benchmarks.step import both_loops, step, step_recipe
    from pipeline.cluster.world import join

    world = join()
    loops = both_loops(step_recipe(settings or [], images, world), world)
    figures = step(loops, _steps(steps), peak)
    if world.rank == 0:
        publish(figures, json)


@app.command()
def host(shards: Shards, settings: Overrides = None, steps: Steps = 40, json: Json = None) -> None:
    """Measure the training thread's processor time in each part of a step, of a tiny model, on a CPU."""
    from benchmarks.host import host
    from pipeline.cluster.world import join

    publish(host(shards, settings or [], join(), steps or 40), json)


@app.command(name="end-to-end")
def end_to_end(
    shards: Shards,
    settings: Settings = None,
    images: Images = None,
    steps: Steps = None,
    json: Json = None,
) -> None:
    """Train from shards, beside resident data."""
    from benchmarks.end_to_end import end_to_end
    from benchmarks.step import Loop, step_recipe
    from pipeline.cluster.world import join

    world = join()
    recipe = step_recipe(settings or [], images, world, shards)
    figures = end_to_end(Loop(recipe, world), _steps(steps))
    if world.rank == 0:
        publish(figures, json)


@app.command()
def growth(
    steps: Steps = None,
    ranks: Annotated[bool, typer.Option(help="Use 1, 2 and 4 launched ranks, at every ZeRO stage.")] = False,
    json: Json = None,
) -> None:
    """Measure how a step's time grows with model, image and batch, or with ranks, on a CPU. Takes minutes."""
    from benchmarks.growth import growth, growth_of_ranks
    from pipeline.cluster.world import join

    world = join()
    publish((growth_of_ranks if ranks else growth)(world, _steps(steps)), json)


@app.command()
def gpu(
    shards: Shards,
    out: Annotated[Path, typer.Argument(help="JSON file to write, beside a .jsonl and a .md.", callback=_in_a_folder)],
    items: Annotated[str, typer.Option(help="Items, such as 0-4 or 5,8; OUT keeps the others.")] = "0-9",
    seconds: Annotated[float, typer.Option(min=15, help="Time limit for all items.")] = 460,
    videos: Annotated[
        Path | None, typer.Option(help="A set built with --resize 256; default: made from images.")
    ] = None,
    dry: Annotated[bool, typer.Option(help="Run tiny sizes on a CPU, to test the code.")] = False,
) -> None:
    """Check and measure everything that needs a GPU. Takes under 8 minutes; videos take another 8.

    0 machine; 1 decoded pixels; 2 the fused kernel; 3 steps that wait; 4 compiled and resumed runs; 5 ViT-B;
    6 ViT-B from shards; 7 loaders and masks; 8 ViT-L and its checkpoint; 9, if time is left: the JPEG hardware,
    ZeRO stages, recomputed activations, compiler modes.

    With --items 10-14: 10 frames of videos; 11 the kernels of clips and of cube masks; 12 decoding of videos;
    13 MViTv2-S, also from shards; 14 ViT-B on tubelets.
    """
    from benchmarks.gpu.items import items_of
    from benchmarks.gpu.runner import gpu

    sys.exit(0 if gpu(shards, out, items_of(items), dry, seconds, videos) else 1)


@app.command(hidden=True)
def gpu_parts(
    names: list[str],
    shards: Annotated[Path, typer.Option()],
    videos: Annotated[Path, typer.Option()],
    lines: Annotated[Path, typer.Option()],
    until: Annotated[float, typer.Option()],
    dry: bool = False,
) -> None:
    """Run parts of `gpu`, in a separate process."""
    from benchmarks.gpu.runner import run_parts

    run_parts(names, shards, videos, lines, until, dry)


def _device() -> torch.device:
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def _steps(asked: int | None) -> int:
    return asked or (20 if torch.cuda.is_available() else 3)


def main() -> int:
    """Return 0; 1 where data or a check is wrong; 2 for wrong usage."""
    prepare()
    try:
        app()
    except ConfigError as error:
        note(f"error: {error}")
        return 2
    except (ShardError, DataError) as error:
        note(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that processes that it started end with it
    sys.exit(main())
