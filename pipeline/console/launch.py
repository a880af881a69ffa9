"""Start a command on the processes of this machine: one per GPU, or several that share the CPU's cores.

A single process becomes the command itself. Several are started by DeepSpeed's launcher of one node, and nodes of a
host file by `deepspeed`. A signal to this program is passed to all of them. Under torchrun, srun or `deepspeed`, this
program becomes the process that it was started for.
"""

import base64
import json
import os
import signal
import subprocess
import sys
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import psutil

from pipeline.cluster.launchers import CHECK_USAGE, free_port, launched
from pipeline.console import rank
from pipeline.console.machine import batch_of, cores, cpu_processes, gpu_processes, gpus
from pipeline.recipe_files import RECIPES, read_recipe, recipe_path
from pipeline.settings import ConfigError
from pipeline.supervisor.hostfile import HostFileError, read_hostfile
from pipeline.supervisor.hosts import Hosts
from pipeline.supervisor.signals import STOP, Signals
from pipeline.supervisor.stop import run_dir
from shards.terminal import Parser, note

STOPPED = 75  # the exit status of a run that was asked to stop, and resumes
PYTHON = (sys.executable, "-P", "-u")  # no module is imported from the working directory
DRY_RUN = "--dry-run"  # one process shows what all of them would do
TRAINING = ("pretrain", "finetune")  # commands that save when asked to stop
CHECKED = ("probe", "validate", "words", "doctor")  # commands whose arguments one process checks before several start


def options_parser(command: str) -> Parser:
    """Return the parser of the options that control how `maskfeat` starts a command."""
    parser = Parser(None, prog=f"maskfeat {command}", add_help=False, allow_abbrev=False)
    group = parser.add_argument_group("processes, chosen for this machine unless given")
    group.add_argument("--gpus", type=int, metavar="N", help="number of GPUs, one process each; 0: the CPU")
    group.add_argument("--processes", type=int, metavar="N", help="number of processes on the CPU")
    group.add_argument("--hostfile", type=Path, metavar="FILE", help="nodes, one line 'NAME slots=GPUS' each, for ssh")
    group.add_argument("--master-port", type=int, metavar="PORT", help="port of the rendezvous (default: a free one)")
    return parser


def start(command: str, arguments: list[str]) -> int:
    """Run a command and return its exit status, or become it.

    Args:
        command: a module of `pipeline.commands`.
        arguments: those of the command and of `options_parser`.
    """
    if launched(os.environ):
        _become([command, *arguments], dict(os.environ))
    parser = options_parser(command)
    options, rest = parser.parse_known_args(arguments)
    if problem := _conflict(options):
        parser.error(problem)
    if options.hostfile:
        return _start_nodes(command, rest, options, parser)
    available = [] if options.gpus == 0 or options.processes else _gpus()
    if options.gpus and options.gpus > len(available):
        parser.error(f"--gpus {options.gpus}: this machine has {len(available)}: give fewer, or 0 for the CPU")
    batch, unit = _batch(command, rest)
    environment = dict(os.environ)
    if available:
        size = options.gpus or gpu_processes(len(available), batch, unit)
    else:
        environment["DS_ACCELERATOR"] = "cpu"
        size = options.processes or cpu_processes(cores(), batch, unit)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, cores() // size)))
    if DRY_RUN in rest:
        _become([command, *rest], environment | {"WORLD_SIZE": str(size)})
    if size < len(available):
        note(f"{size} of {len(available)} GPUs are used")
    if size == 1:
        if available:
            environment["CUDA_VISIBLE_DEVICES"] = available[0]
        _become([command, *rest], environment)
    if status := _check_usage(command, rest):
        return status
    nodes = {"localhost": available[:size] or [*range(size)]}
    launcher = [
        *(*PYTHON, "-m", "deepspeed.launcher.launch", "--log_level=critical", "--no_local_rank"),
        f"--world_info={base64.urlsafe_b64encode(json.dumps(nodes).encode()).decode()}",
        *("--master_addr=127.0.0.1", f"--master_port={options.master_port or free_port()}"),
    ]
    return _await([*launcher, rank.__file__, command, *rest], environment, command, None)


def _start_nodes(command: str, rest: list[str], options: Namespace, parser: Parser) -> int:
    run = run_dir(rest, Path.cwd())
    if command in TRAINING and not run:
        parser.error("--hostfile needs run.dir=RUN, which identifies the processes to stop on the nodes: add it")
    try:
        slots = read_hostfile(options.hostfile)
    except HostFileError as error:
        parser.error(str(error))
    if status := _check_usage(command, rest):
        return status
    hosts = Hosts(slots, [], run) if run and command in TRAINING else None
    launcher = [
        *(*PYTHON, "-m", "deepspeed.launcher.runner", "--log_level=critical", "--no_local_rank"),
        *("--hostfile", str(options.hostfile), "--force_multi"),
    ]
    if options.master_port:
        launcher += ["--master_port", str(options.master_port)]
    environment = hosts.environment() if hosts else dict(os.environ)
    return _await([*launcher, rank.__file__, command, *rest], environment, command, hosts)


def _conflict(options: Namespace) -> str | None:
    for name in ("gpus", "processes", "master_port"):
        value = getattr(options, name)
        if value is not None and value < (0 if name == "gpus" else 1):
            return f"--{name.replace('_', '-')} {value} is not a number above 0"
    if options.gpus and options.processes:
        return "--gpus has a process for each GPU, --processes is for the CPU: give one of them"
    if options.hostfile and (options.gpus is not None or options.processes):
        return "--hostfile has the GPUs of each node as its slots: leave out --gpus and --processes"
    return None


def _gpus() -> list[str]:
    return [] if os.environ.get("DS_ACCELERATOR") == "cpu" else gpus()


def _batch(command: str, arguments: list[str]) -> tuple[int, int]:
    """Return the inputs per step, and how many of them stay on one process; (0, 1) for a command without a recipe.

    Where the recipe cannot be read, return a batch of one, so that a single process reports the error.
    """
    if command not in (*TRAINING, "doctor"):
        return 0, 1
    given = [argument for argument in arguments if not argument.startswith("-")]
    folder = RECIPES / "finetune" if command == "finetune" or "--finetune" in arguments else RECIPES
    try:
        recipe = next(word for word in given if recipe_path(folder, word).is_file())
        _, settings = read_recipe(folder, recipe)
    except (StopIteration, ConfigError):
        return 1, 1
    for override in given:
        key, equals, value = override.partition("=")
        section, dot, name = key.strip().partition(".")
        if equals and dot:
            settings.setdefault(section, {})[name] = value.strip().strip("'\"")
    return batch_of(settings)


def _check_usage(command: str, arguments: list[str]) -> int:
    """Return 0, or the exit status of a process of the command that has refused the arguments."""
    if command not in CHECKED:
        return 0
    check = [*PYTHON, rank.__file__, command, *arguments, CHECK_USAGE]
    try:
        return subprocess.run(check, env=dict(os.environ) | {"DS_ACCELERATOR": "cpu"}).returncode
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _become(arguments: list[str], environment: dict[str, str]) -> NoReturn:
    """Replace this program by one process of the command, which gets its signals and returns its exit status."""
    os.execve(sys.executable, [*PYTHON, rank.__file__, *arguments], environment)


def _await(launcher: list[str], environment: dict[str, str], command: str, hosts: Hosts | None) -> int:
    """Run a launcher until everything has ended, and pass on signals to the processes that it started."""
    signals, asked = Signals(), 0
    # In a session of its own, so that Ctrl-C does not reach the launcher, which would end the processes at once
    process = subprocess.Popen(launcher, env=environment, start_new_session=True)
    while process.poll() is None:
        number = signals.next(None)
        if number in STOP:
            asked = number
            if hosts:
                reached = hosts.signal_ranks(signal.SIGTERM if number == signal.SIGHUP else number)
            else:
                reached = _signal_children(process.pid, number)
            if not reached:
                process.terminate()  # it has not started any yet
    status = process.returncode
    if asked and status not in (0, 2):
        return STOPPED if command in TRAINING else 128 + asked
    if status < 0 or status > 128:  # DeepSpeed's launcher returns 256 - the number of the signal that ended a process
        number = -status if status < 0 else 256 - status
        with suppress(ValueError):
            note(f"error: a process was ended by {signal.Signals(number).name}")
        return 1
    return status


def _signal_children(launcher: int, number: int) -> int:
    """Send a signal to the processes that a launcher of one node has started; return their number."""
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(launcher).children()
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.send_signal(number)
        return len(children)
    return 0
