"""Find the visual words of a data set, for target.kind=tokens: k-means of its patches, in one pass over the shards.

    maskfeat words SHARDS OUT [--of hog|pixels|TEACHER] [--words 256] [section.key=value ...]

A patch is described by its HOG, by its normalised pixels, or by the features of TEACHER, any value of target.teacher:
an encoder that this project trained and exported, or a timm model. Its word is the nearest centroid. Settings are those
of pre-training: data.image_size, model.name and model.options (which decide the patches), optim.batch_size, run.seed.
For a mixture, give null for SHARDS, and data.mixture. One process without the launcher works too. Equal settings and
numbers of processes give equal words.

To train with them:

    maskfeat pretrain vit_base_300e_tokens data.shards=SHARDS target.tokenizer=OUT

Examples, each on one line:

    maskfeat words /data/train /words/hog256

    maskfeat words --processes 1 shards words --words 64 data.image_size=96 optim.batch_size=64

    maskfeat words null /words/mixed 'data.mixture={a: {shards: /data/a}, b: {shards: /data/b}}'
"""

import math
import time
from pathlib import Path

from pipeline.cluster.launchers import accept_local_rank, accept_usage_check
from pipeline.cluster.world import join
from pipeline.config import load_recipe
from pipeline.train.command import status_of
from pipeline.words import Found, find_words
from shards.terminal import Parser, say

PLAIN = ("vit_base_300e", "optim.batch_size=256", "optim.warmup_epochs=0", "engine.micro_batch=null")


def main() -> int:
    """Return 0 on success, 1 for an error, 2 for wrong usage."""
    parser = Parser(__doc__)
    parser.add_argument("shards", help="folder or URL of a data set of maskfeat-shards; null with data.mixture")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="section.key=value", help="settings that override the defaults"
    )
    parser.add_argument("--of", default="hog", metavar="hog|pixels|TEACHER", help="the target to cluster (%(default)s)")
    parser.add_argument("--words", type=int, default=256, help="number of words (%(default)s)")
    accept_local_rank(parser)
    accept_usage_check(parser)
    arguments = parser.parse_intermixed_args()
    if not 2 <= arguments.words <= 65_536:
        parser.error("--words must be from 2 to 65,536")
    kind = arguments.of if arguments.of in ("hog", "pixels") else "features"
    teacher = None if kind == arguments.of else arguments.of
    if teacher and Path(teacher).is_dir():
        teacher = str(Path(teacher).resolve())  # training may start in another folder
    for override in arguments.overrides:
        if override.startswith("target.") and not (teacher and override.startswith("target.teacher_weights=")):
            parser.error(f"{override} has no effect here: --of sets the target")
    described = [f"target.kind={kind}", *([f"target.teacher={teacher}"] if teacher else [])]

    def find() -> None:
        shards = f"data.shards={arguments.shards}"
        recipe = load_recipe(PLAIN[0], [*PLAIN[1:], shards, *described, *arguments.overrides])
        if arguments.check_usage:
            return
        world = join()
        begin = time.perf_counter()
        found = find_words(recipe, arguments.words, arguments.out, world)
        if world.rank == 0:
            report(found, arguments.words, arguments.out, time.perf_counter() - begin)

    return status_of(find)


def report(found: Found, words: int, out: Path, seconds: float) -> None:
    """Print how well the words fit the data set, and how to train with them."""
    say(
        f"{found.used:,} of {words:,} words are used, {found.entropy:.2f} of {math.log2(words):.2f} bits; they explain "
        f"{found.explained:.0%} of the variance of the patches; {found.restarts:,} restarts; {seconds:.0f} s"
    )
    say(f"train with: target.kind=tokens target.tokenizer={out}")
