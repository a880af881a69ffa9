"""The elastic matrix: runs saved at any ZeRO stage, ranks and accumulation, resumed at any other.

    python tests/faults/elastic.py SHARDS OUT [--ranks 1 2 4] [--stages 0 1 2 3]

SHARDS is a folder that `maskfeat-shards build` made of at least 64 images. Each layout, ranks x stage, runs 25 steps
undisturbed and saves after 5; each then goes on in every layout, 20 steps to the same end. Printed is a row a layout
that saved and a column a layout that resumed: the largest difference of a loss from the undisturbed run's. Exit status
1: one is above 1e-5, or above 0 within a layout, or the samples are not the plan's. Stages 1 and 3 take their batches
in two micro-batches.
"""

import argparse
import json
import shutil
import sys
from itertools import chain, product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from launching import free_port, losses, small_recipe, trace
from ranks import CHECKOUT, Ranks

from pipeline.cluster.phases import Phases
from pipeline.cluster.preemption import Preemption
from pipeline.cluster.world import join
from pipeline.data.plan import Plan
from pipeline.pretrain.task import Pretraining
from pipeline.train.setup import set_up
from shards.manifest import Manifest

SAVED, END, BATCH = 5, 25, 16
TOLERANCE = 1e-5
DEADLINE = 3600  # seconds that all cases of a number of ranks may take

Layout = tuple[int, int]  # ranks, ZeRO stage
Case = tuple[Layout] | tuple[Layout, Layout]  # undisturbed in a layout; saved in one and resumed in another


def run(shards: Path, out: Path, cases: list[Case]) -> None:
    """Run the cases, those of a number of ranks one after the other in the same processes."""
    for ranks in sorted({last(case)[0] for case in cases}):
        # ZeRO 3 replaces torch's linear layer for the rest of a process, by one that rounds differently: it is last
        chosen = sorted((case for case in cases if last(case)[0] == ranks), key=lambda case: last(case)[1])
        arguments = [str(shards.resolve()), str(out.resolve()), "--cases", json.dumps(chosen)]
        script = str(Path(__file__).resolve().relative_to(CHECKOUT))
        started = Ranks(ranks, arguments, out / f"said-{ranks}", free_port(), script)
        if (statuses := started.wait(DEADLINE)) != [0] * ranks:
            started.kill()
            raise RuntimeError(f"{ranks} ranks ended with {statuses}: {started.said()[-3000:]}")


def work(shards: Path, out: Path, cases: list[Case]) -> None:
    """Run one rank's part of cases with the same number of ranks."""
    world = join()
    for case in cases:
        folder = folder_of(out, case)
        resumes = len(case) == 2
        if resumes and world.rank == 0:
            checkpoint = Path("checkpoints") / f"step-{SAVED:08d}"
            shutil.copytree(folder_of(out, case[:1]) / checkpoint, folder / checkpoint)
        world.barrier()
        _, stage = last(case)
        settings = [
            f"engine.zero_stage={stage}",
            f"engine.micro_batch={BATCH // world.size // (1 + stage % 2)}",
            f"run.max_steps={END}",
            f"run.save_every={END if resumes else SAVED}",
            "run.keep=99",
            "model.options={embed_dim: 32, depth: 2, num_heads: 1, mlp_ratio: 1.03125}",  # 33 biases cannot be halved
            "run.trace_samples=true",
        ]
        recipe = small_recipe(shards, folder, *settings)
        with Phases(folder, world.rank, recipe.run.deadline) as phases, Preemption(world) as preemption:
            set_up(recipe, world, phases, Pretraining).run(preemption)


def difference(out: Path, case: Case, reference: Case) -> float:
    """Return the largest difference of a loss between a run and an undisturbed one."""
    seen, expected = losses(folder_of(out, case)), losses(folder_of(out, reference))
    first = SAVED if len(case) == 2 else 0
    assert sorted(seen) == list(range(first + 1, END + 1)), case
    return max(abs(seen[step] - expected[step]) for step in seen)


def samples_are_the_plans(shards: Path, out: Path, case: Case) -> bool:
    """Return whether the ranks together took the plan's samples, step by step."""
    parts = [trace(folder_of(out, case), rank) for rank in range(last(case)[0])]
    seen = {step: list(chain.from_iterable(part[step] for part in parts)) for step in parts[0]}
    plan = Plan(Manifest.load(shards).counts, 0, lanes=4)
    first = SAVED if len(case) == 2 else 0
    return seen == {step: plan.batch(step, BATCH).tolist() for step in range(first, END)}


def last(case: Case) -> Layout:
    return case[-1]


def folder_of(out: Path, case: Case) -> Path:
    return out / "-".join(f"{ranks}x{stage}" for ranks, stage in case)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--cases", type=json.loads, help=argparse.SUPPRESS)  # for one rank
    arguments = parser.parse_args()
    if arguments.cases:
        work(arguments.shards, arguments.out, arguments.cases)
        return 0

    layouts = list(product(arguments.ranks, arguments.stages))
    alone = [(layout,) for layout in layouts]
    pairs = list(product(layouts, layouts))
    run(arguments.shards, arguments.out, alone)
    run(arguments.shards, arguments.out, pairs)
    differences = {pair: difference(arguments.out, pair, pair[:1]) for pair in pairs}
    print("ranks x stage  " + " ".join(f"{ranks}x{stage:<5}" for ranks, stage in layouts))
    for saved in layouts:
        print("{}x{:<11}  ".format(*saved) + " ".join(f"{differences[saved, into]:.1e}" for into in layouts))
    wrong = [pair for pair, value in differences.items() if value > (0 if pair[0] == pair[1] else TOLERANCE)]
    wrong += [case for case in [*alone, *pairs] if not samples_are_the_plans(arguments.shards, arguments.out, case)]
    for case in wrong:
        print(f"WRONG: {folder_of(arguments.out, case)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
