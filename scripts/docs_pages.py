"""Write the pages of docs/reference that are generated from the code: commands.md, settings.md and cost.md.

    python scripts/docs_pages.py

Of settings.md the tables are generated, and the text between them is kept.
"""

import contextlib
import io
import math
import os
import re
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

from pipeline.config import Recipe, load_recipe
from pipeline.descriptions import describe
from pipeline.estimate import Cluster, costs, estimate, state_bytes
from pipeline.finetune.config import FinetuneRecipe
from pipeline.peaks import PEAKS
from shards.terminal import Parser, prepare, say

CHECKOUT = Path(__file__).resolve().parents[1]
REFERENCE = CHECKOUT / "docs" / "reference"
WIDTH = 100  # columns of a help text

SHARDS = ("build", "index", "verify", "info", "preview", "plan")
MASKFEAT = {
    "Runs": ("pretrain", "finetune", "validate", "probe", "predict", "export", "report", "doctor"),
    "Recipes": ("settings", "estimate"),
    "Weights and targets": ("convert", "words"),
    "Launching": ("supervise", "stop"),
}
MEASURING = ("compare", "motion_classes")
MODULES = {"pipeline.cli": "maskfeat-shards", "pipeline.console": "maskfeat"}
COMMANDS = """# Commands

The help texts of the programs, as `--help` prints them. `scripts/docs_pages.py` writes this page from the code. The
measurements of `scripts/bench.py` are in [Benchmarks](../explanation/benchmarks.md).

Exit statuses are the same everywhere: 0 done, 1 a problem in the data or an error of one line, 2 invalid arguments; and
75 for a run that was [stopped as asked](../how-to/resuming.md).

In a checkout, `scripts/NAME.py` is the command `maskfeat NAME` for a launcher of your own, as in
`deepspeed scripts/pretrain.py RECIPE`; it does not have the options of `maskfeat` that choose processes. `maskfeat
--install-completion` completes commands, recipes and paths in bash, zsh and fish.
"""

GPUS = {  # memory in GB, and dense bf16 TFLOP/s, of NVIDIA's data sheets
    "RTX 4090": (24, 165),
    "A100": (80, PEAKS["A100-SXM4-80GB"].tflops),
    "H100": (80, PEAKS["H100"].tflops),
    "B200": (180, 2250),
}
RECIPES = {  # samples of the data set that the recipe is for
    "vit_base_300e": 1_281_167,
    "vit_base_1600e": 1_281_167,
    "vit_large_1600e": 1_281_167,
    "vit_base_visible": 1_281_167,
    "vit_large_visible": 1_281_167,
    "vit_base_128": 1_281_167,
    "mvit_small_300e_k400": 240_000,
    "mvit_large_800e_k400": 240_000,
    "vit_base_video": 240_000,
}
MFU, SHARE_OF_MEMORY, RANKS = 0.4, 0.9, 8
COST = f"""# Memory and cost

**Arithmetic, not measurement:** no GPU has run these recipes here. `scripts/docs_pages.py` writes this page from the
model of `scripts/estimate.py` ([Scaling](../explanation/scaling.md)), for ImageNet-1k and Kinetics-400.

- *TFLOP* of an input are those of its forward and backward pass. Recomputed activations are not counted.
- *State* is what weights, gradients and Adam's moments take of each of {RANKS} GPUs, at the ZeRO stage of the recipe.
- *Kept* is what the forward pass of one input keeps for the backward pass, where nothing is compiled.
- *Micro-batch* is the largest power of two whose state and kept activations fill at most {SHARE_OF_MEMORY:.0%} of the
  memory, and at most the share of the batch. It is an upper bound: buffers, what is computed on the way, and the
  decoder's memory come on top. Set `engine.micro_batch` to it or to less.
- *GPU-hours* are those of the whole schedule on {RANKS} GPUs of one node, at {MFU:.0%} of the peak in the data sheet
  (dense bf16). Others report from 23% (nvSubquadratic, a supervised ViT-B on H100) to 58% (CAPI, a ViT of 3 billion
  parameters on A100). Multiply by the price of a GPU-hour to get the cost.
"""


def help_of(program: str, *arguments: str) -> str:
    """Return a program's output for `--help`: a file of scripts/, or a module with a dot in its name."""
    said = io.StringIO()
    name = MODULES.get(program, f"{Path(program).name}.py")
    with (
        mock.patch.object(sys, "argv", [name, *arguments, "--help"]),
        mock.patch.object(sys, "path", [str((CHECKOUT / "scripts" / program).parent), *sys.path]),
        mock.patch.dict(os.environ, {"COLUMNS": str(WIDTH), "TERM": "dumb", "NO_COLOR": "1"}),
        contextlib.redirect_stdout(said),
        contextlib.suppress(SystemExit),
    ):
        if "." in program:
            runpy.run_module(program, run_name="__main__")
        else:
            runpy.run_path(str(CHECKOUT / "scripts" / f"{program}.py"), run_name="__main__")
    text = re.sub(r"^Usage: .*?(?=maskfeat-shards)", "Usage: ", said.getvalue())  # typer names what started Python
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def commands() -> str:
    """Return the page of all help texts."""
    parts = [COMMANDS, "\n## Data sets: maskfeat-shards\n"]
    parts += [f"\n### maskfeat-shards {name}\n\n```text\n{help_of('pipeline.cli', name)}\n```\n" for name in SHARDS]
    for title, names in MASKFEAT.items():
        parts.append(f"\n## {title}: maskfeat\n")
        parts += [f"\n### maskfeat {name}\n\n```text\n{help_of('pipeline.console', name)}\n```\n" for name in names]
    parts.append("\n## Measuring\n")
    parts += [f"\n### scripts/{name}.py\n\n```text\n{help_of(name)}\n```\n" for name in MEASURING]
    return "".join(parts)


def settings() -> str:
    """Return the page of all settings: the present one with new tables."""
    sections = describe(Recipe)
    tables = {f"settings: {section.name}": section.settings for section in sections}
    known = {setting for section in sections for setting in section.settings}
    of_finetuning = [setting for section in describe(FinetuneRecipe) for setting in section.settings]
    tables["settings of fine-tuning"] = [setting for setting in of_finetuning if setting not in known]
    page = (REFERENCE / "settings.md").read_text()

    def filled(place: re.Match[str]) -> str:
        rows = [(f"`{row.key}`", row.values, row.default, linked(row.meaning)) for row in tables.pop(place[1])]
        return (
            f"<!-- {place[1]} -->\n\n{table(('setting', 'values', 'default', 'meaning'), rows, ':---')}\n<!-- end -->"
        )

    page = re.sub(r"<!-- (settings[^>]*) -->.*?<!-- end -->", filled, page, flags=re.DOTALL)
    if tables:
        raise ValueError(f"docs/reference/settings.md does not have a place for {', '.join(tables)}")
    return page


def linked(text: str) -> str:
    """Return a text of settings.md in which pages, such as docs/how-to/boards.md, are links that name the page."""

    def link(mention: re.Match[str]) -> str:
        path, anchor = Path(mention[1]), mention[2] or ""
        if CHECKOUT / path == REFERENCE / "settings.md":
            return f"[below]({anchor})"
        title = (CHECKOUT / path).read_text().partition("\n")[0].removeprefix("# ")
        return f"[{title}]({os.path.relpath(CHECKOUT / path, REFERENCE)}{anchor})"

    return re.sub(r"\b(docs/[\w/-]+\.md)(#[\w-]+)?", link, text)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], alignment: str = "---:") -> str:
    """Return a table in Markdown, its first column left-aligned."""
    lines = [columns, ["---", *[alignment] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def cost() -> str:
    """Return the page of memory and cost."""
    models, gpus = [], []
    for name, samples in RECIPES.items():
        recipe = load_recipe(name, ["data.shards=not read"])
        found = costs(recipe)
        state = state_bytes(recipe, found.size, RANKS)
        share = recipe.optim.batch_size // RANKS
        inputs = recipe.optim.epochs * samples * recipe.views
        models.append(
            (
                f"`{name}`",
                f"{found.size.parameters / 1e6:.1f}M",
                f"{found.flops / 1e12:.3f}",
                f"{state / 1e9:.1f} GB",
                f"{found.activations / 1e6:.0f} MB",
                f"{inputs / 1e6:,.0f}M",
            )
        )
        cells = [f"`{name}`"]
        for memory, peak in GPUS.values():
            room = SHARE_OF_MEMORY * memory * 1e9 - state
            fits = min(share, 2 ** int(math.log2(room / found.activations)))
            rate = MFU * peak * 1e12 / found.flops
            step = estimate(recipe, found.size, rate, Cluster(RANKS, RANKS, 450e9, 400e9, 1e-5))
            cells.append(f"{fits}; {inputs / step.images_per_second / 3600 * RANKS:,.0f} h")
        gpus.append(cells)
    titles = ("recipe", "parameters", "TFLOP an input", "state", "kept an input", "inputs of the schedule")
    peaks = [f"{name}, {memory} GB, {peak:,} TFLOP/s" for name, (memory, peak) in GPUS.items()]
    return (
        f"{COST}\n{table(titles, models)}\n"
        f"Micro-batch of a GPU, and GPU-hours of the schedule:\n\n{table(('recipe', *peaks), gpus)}"
    )


PAGES = {"commands.md": commands, "settings.md": settings, "cost.md": cost}

if __name__ == "__main__":
    prepare()
    Parser(__doc__).parse_args()
    for page, write in PAGES.items():
        (REFERENCE / page).write_text(write())
        say(f"wrote {REFERENCE / page}")
