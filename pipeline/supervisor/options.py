"""Parse the command line of the supervisor, and check it before anything is started."""

import argparse
import re
import shlex
from pathlib import Path

from pipeline.supervisor.hostfile import HostFileError, read_hostfile
from pipeline.supervisor.hosts import PROBE, Hosts
from pipeline.supervisor.stop import run_dir, seconds
from shards.terminal import Parser
from shards.text import one_line


def parse(description: str) -> tuple[argparse.Namespace, Path, Hosts]:
    """Return the options, the run's folder and its nodes; a mistake ends the process with one line and status 2."""
    parser = Parser(description)
    parser.add_argument("--tries", type=int, default=5, help="consecutive failures without progress (default 5)")
    parser.add_argument("--pause", type=seconds, default=15, help="seconds before the second start (default 15)")
    parser.add_argument("--longest-pause", type=seconds, default=600, help="longest pause in seconds (default 600)")
    parser.add_argument(
        "--grace", type=seconds, default=60, help="seconds from a request to stop to SIGKILL (default 60)"
    )
    parser.add_argument("--requeue", action="store_true", help="restart at once a run that others stopped (status 75)")
    parser.add_argument("--hostfile", type=Path, help="DeepSpeed's host file: lines of 'name slots=N'")
    parser.add_argument("--min-nodes", type=int, help="the fewest nodes to start with (default: all of the host file)")
    parser.add_argument("--probe", default=PROBE, help=f"succeeds on a usable node (default: {PROBE!r})")
    parser.add_argument("command", nargs="+", help="the launcher's command, after --")
    options = parser.parse_args()

    run = run_dir(options.command, Path.cwd())
    if not run:
        parser.error("the command has no run.dir=RUN, whose checkpoints show progress: add it")
    if options.tries < 1:
        parser.error(f"--tries {options.tries}: the first start is one: give 1 or more")
    if not options.hostfile:
        if options.min_nodes is not None:
            parser.error("--min-nodes is for the nodes of a host file: add --hostfile FILE, or leave it out")
        return options, run, Hosts({}, [], run)

    own = [argument for argument in options.command if re.match("-H|--hostfile(=|$)", argument)]
    if Path(options.command[0]).name != "deepspeed" or own:
        parser.error(
            "--hostfile is passed to `deepspeed`: begin the command with that, without a --hostfile of its own"
        )
    try:
        slots = read_hostfile(options.hostfile)
    except HostFileError as error:
        parser.error(str(error))
    if options.min_nodes is None:
        options.min_nodes = len(slots)
    if not 1 <= options.min_nodes <= len(slots):
        parser.error(f"--min-nodes {options.min_nodes}: the host file has {len(slots)}: give 1 to {len(slots)}")
    try:
        probe = shlex.split(options.probe)
    except ValueError as error:
        parser.error(f"--probe {one_line(options.probe)}: {error}: quote it as in a shell")
    if not probe:
        parser.error("--probe is empty: give a command that succeeds where a node may be used, or leave it out")
    return options, run, Hosts(slots, probe, run)
