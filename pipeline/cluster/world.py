"""The processes of a run: rank, device, and the exchanges of the training loop."""

import importlib
import logging
import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import deepspeed
import torch
from deepspeed import comm
from deepspeed.accelerator import get_accelerator
from torch import Tensor
from torch.distributed import DistError, DistNetworkError, distributed_c10d

from pipeline.cluster.launchers import free_port, slurm_place, stop_with_launcher
from pipeline.settings import ConfigError

Value = TypeVar("Value")


@dataclass(frozen=True)
class World:
    """This process among all: `rank` of `size`, `local_rank` of `local_size` on its node, and its device."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device

    @property
    def gpu(self) -> int | None:
        """The CUDA device number, None on a CPU."""
        return self.device.index if self.device.type == "cuda" else None

    def sum(self, values: Tensor) -> Tensor:
        """Sum element-wise over the ranks, in place."""
        comm.all_reduce(values)
        return values

    def rows(self, values: Tensor) -> Tensor:
        """Gather the values of every rank, (n,), in rank order: (size, n)."""
        rows = values.new_empty(self.size * len(values))
        comm.all_gather_into_tensor(rows, values)
        return rows.view(self.size, -1)

    def from_first(self, value: Value) -> Value:
        """Return rank 0's value on every rank; it must be picklable."""
        box = [value]
        comm.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all ranks, in rank order, on every rank; they must be picklable."""
        values: list[Value | None] = [None] * self.size
        comm.all_gather_object(values, value)
        return cast(list[Value], values)

    def barrier(self) -> None:
        """Wait until every rank is here."""
        comm.barrier()


def record_collectives(folder: Path, rank: int) -> None:
    """Make NCCL record its last collectives, and write them to `folder`/collectives-rank{r} when one fails.

    This takes effect at the next `join`. Existing environment variables take precedence.
    """
    prefix = folder.absolute() / "collectives-rank"
    if (link := Path(f"{prefix}{rank}")).is_symlink():
        link.unlink()
    for name, earlier, value in (
        ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE", "2000"),
        ("TORCH_NCCL_DUMP_ON_TIMEOUT", "TORCH_FR_DUMP_ON_TIMEOUT", "1"),
        ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE", str(prefix)),
    ):
        if earlier not in os.environ:
            os.environ.setdefault(name, value)


def join(patience: float = 600) -> World:
    """Join the processes that the launcher started; without a launcher, be a world of one.

    Launchers are DeepSpeed's, torchrun and srun. When the launcher ends, this process is asked to stop.

    Args:
        patience: seconds after which a collective fails, which under NCCL aborts the process.

    Raises:
        ConfigError: this process cannot see its own GPU, or cannot listen for the others.
    """
    if "SLURM_STEP_NUM_TASKS" in os.environ and "RANK" not in os.environ:
        os.environ.update(slurm_place(os.environ))
    if "RANK" not in os.environ:
        os.environ.update(
            RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port())
        )
    elif not comm.is_initialized():
        stop_with_launcher()
    local_rank = int(os.environ["LOCAL_RANK"])
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE", "1"))  # torchrun or DeepSpeed
    accelerator = get_accelerator()
    if accelerator.device_name() == "cuda":
        if local_rank >= accelerator.device_count():
            raise ConfigError(
                f"process {local_rank} of its node sees {accelerator.device_count()} GPUs: show every process all of "
                "its node's (srun: --gpus-per-node with --gpu-bind=none, not --gpus-per-task)"
            )
        accelerator.set_device(local_rank)
        device = torch.device("cuda", local_rank)
    else:
        device = torch.device("cpu")
        # DeepSpeed would compile a C++ extension that only inference uses
        backend: Any = importlib.import_module("deepspeed.comm.torch")
        backend.build_shm_op = lambda: None
        # It refuses fp16 on processors without instructions for it, where torch supports it all the same
        accelerator.is_fp16_supported = lambda: True
        # torch's compiler would warn on every rank that a CUDA toolkit has no GPU here
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        if "OMP_NUM_THREADS" not in os.environ:  # ranks of a node share its cores
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_size))
    timeout = timedelta(seconds=patience)
    for name in ("default_pg_timeout", "default_pg_nccl_timeout"):  # timeouts of the groups that DeepSpeed creates
        setattr(distributed_c10d, name, timeout)
    try:
        deepspeed.init_distributed(verbose=False, timeout=timeout)
    except DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise ConfigError(
            f"port {os.environ['MASTER_PORT']} of this node is taken, by another run perhaps: give the launcher "
            "another, deepspeed --master_port M, torchrun --master-port M, or MASTER_PORT=M srun"
        ) from error
    return World(comm.get_rank(), comm.get_world_size(), local_rank, local_size, device)


def lost_a_rank(error: Exception) -> bool:
    """Return whether an error means that another rank is gone, or does not answer."""
    return isinstance(error, DistError) or "gloo" in str(error).lower()
