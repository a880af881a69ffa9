"""Evaluate frozen features by a linear classifier and by nearest neighbours.

    maskfeat probe RUN|WEIGHTS data.shards=TRAIN data.validation=VALIDATION [section.key=value ...]

RUN is a run.dir of maskfeat pretrain: its newest valid checkpoint, or --step N, or --untrained for comparison.
WEIGHTS is any value of model.init (give model.name and model.options where the file does not contain them), or the name
of a timm model. Both data sets need labels. One process without the launcher works too.

Features are computed once and cached under --out, so that the next probe of them takes seconds. NAME.json with all
numbers, pictures, and curves are there, too: tensorboard --logdir RUN shows them beside those of the run.

Examples, each on one line:

    maskfeat probe runs/vit_base_300e data.shards=/data/train data.validation=/data/val --layer -1 -4

    maskfeat probe --processes 1 runs/demo data.shards=train data.validation=val --untrained
"""

import math
from pathlib import Path

from pipeline.cluster.launchers import accept_local_rank, accept_usage_check
from pipeline.cluster.world import join
from pipeline.data.views import CENTRE
from pipeline.probe.judge import Settings
from pipeline.probe.probe import Asked, check, probe
from pipeline.train.command import status_of
from shards.terminal import Parser


def main() -> int:
    """Return 0 on success, 1 for an error, 2 for wrong usage."""
    parser, usual = Parser(__doc__), Settings()
    parser.add_argument("source", metavar="RUN|WEIGHTS", help="a run.dir, weights, or a timm model")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="section.key=value", help="settings that override the recipe's"
    )
    parser.add_argument("--step", type=int, help="step of a run's older checkpoint")
    parser.add_argument("--untrained", action="store_true", help="the same architecture and seed without any training")
    parser.add_argument(
        "--layer", type=int, nargs="+", default=[-1], metavar="N", help="blocks, from 0, or -1 for the last"
    )
    parser.add_argument("--pool", choices=("mean", "class"), default="mean", help="patch tokens' mean, or class token")
    parser.add_argument("--crop", type=float, default=CENTRE, help="share of the largest centred crop (%(default)s)")
    parser.add_argument("--k", type=int, nargs="+", default=usual.k, metavar="K", help="neighbours that vote (20)")
    parser.add_argument("--temperature", type=float, default=usual.temperature, help="for the votes (%(default)s)")
    parser.add_argument(
        "--rates", type=float, nargs="+", default=usual.rates, metavar="LR", help="learning rates, trained side by side"
    )
    parser.add_argument("--epochs", type=int, default=usual.epochs, help="epochs of the classifier (%(default)s)")
    parser.add_argument(
        "--batch-size", type=int, default=usual.batch_size, help="batch size of the linear classifier (%(default)s)"
    )
    parser.add_argument(
        "--held-out",
        type=float,
        default=usual.held_out,
        metavar="SHARE",
        help="share of training held out to choose the rate (%(default)s)",
    )
    parser.add_argument("--out", type=Path, help="folder of results and features (RUN/probe, or runs/probe-WEIGHTS)")
    parser.add_argument("--json", action="store_true", help="print one JSON object: the content of NAME.json")
    accept_local_rank(parser)
    accept_usage_check(parser)
    arguments = parser.parse_intermixed_args()
    if not (0 < arguments.crop <= 1 and 0 < arguments.held_out < 1):
        parser.error("--crop must be in (0, 1], --held-out in (0, 1)")
    if not all(0 < value < math.inf for value in (arguments.temperature, *arguments.rates)):
        parser.error("--temperature and --rates must be above 0")
    if min(*arguments.k, arguments.epochs, arguments.batch_size) < 1:
        parser.error("--k, --epochs and --batch-size must be at least 1")

    def judge() -> None:
        asked = Asked(
            arguments.source,
            arguments.overrides,
            arguments.step,
            arguments.untrained,
            arguments.layer,
            arguments.pool,
            arguments.crop,
            arguments.out,
        )
        check(asked)
        if arguments.check_usage:
            return
        settings = Settings(
            arguments.k,
            arguments.temperature,
            sorted(set(arguments.rates)),
            arguments.epochs,
            arguments.batch_size,
            arguments.held_out,
        )
        probe(asked, settings, join(), arguments.json)

    return status_of(judge)
