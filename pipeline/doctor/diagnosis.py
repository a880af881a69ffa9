"""Interpret the measurements that `maskfeat doctor` collects from all ranks. Nothing is measured here."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.cluster.findings import Finding, Verdict, conclude
from pipeline.data.decode.gpu import INSTALL, Choice
from pipeline.doctor.measure import Counted, Gpu, Machine, Rate
from pipeline.doctor.network import AllReduce, Clock

_SLOW = 0.5  # share of the expected or the median node's rate below which to warn
_FILES = 512  # shards that a reader keeps open, and files of Python, torch and DALI
_CONNECTIONS = 4  # to every other rank: about the number of process groups
_SHARED_MEMORY = 2**30  # bytes: NCCL's own advice for containers
_SKEW, _GRAVE_SKEW = 1.0, 300.0  # seconds: logs of nodes disagree; object stores and Kerberos refuse requests
_TAKEN = 4 * 2**30  # bytes of a GPU: more than CUDA, NCCL and the driver take for this process
_NEARLY = 5  # degrees Celsius below the limit


@dataclass(frozen=True)
class Vitals:
    """One rank's own measurements: its place, its rates of reading and decoding, and its machine.

    `node` is the first rank of its node; `read` may be the reason why reading failed; `decoded` None: not measured.
    """

    host: str
    node: int
    read: Rate | str
    decoded: Rate | str | None
    machine: Machine


def storage(vitals: Sequence[Vitals], bad_share: float, needed: float | None, counted: Counted) -> Finding:
    """Check that samples can be read, and that no node reads slowly.

    Args:
        vitals: those of all ranks, in order, as in all functions here.
        bad_share: share of bad samples that a run tolerates.
        needed: images or clips per second that a rank needs, if known.
        counted: the samples that were read, and the inputs made of them.
    """
    remedy = (
        "fix the named problems, or raise data.read_threads (data.requests for remote shards) and set data.cache; "
        "`maskfeat-shards verify` finds all bad samples"
    )
    samples = needed / counted.repeats if needed else None
    return _rates("storage", vitals, [rank.read for rank in vitals], bad_share, samples, remedy, counted.samples)


def decoding(vitals: Sequence[Vitals], bad_share: float, needed: float | None, counted: Counted) -> Finding:
    """Check that the samples that were read can be decoded, and that no node decodes slowly."""
    remedy = (
        f"raise data.decode_threads where cores are idle, build smaller {counted.samples} (--resize), or stop other "
        "work on the slow nodes"
    )
    decoded = [rank.decoded for rank in vitals]
    return _rates("decoding", vitals, decoded, bad_share, needed, remedy, counted.inputs, counted.frames)


def gpu_decoding(vitals: Sequence[Vitals], choices: Sequence[Choice | str | None]) -> Finding:
    """Check that every GPU decodes in the best way.

    Args:
        choices: how the GPU of each rank decodes, or why it cannot; None: there is no GPU.
    """
    told, remedies = [], dict[str, None]()
    for choice in choices:
        if isinstance(choice, Choice):
            told.append((_if(bool(choice.remedy), Verdict.WARNING), choice.note))
            remedies |= dict.fromkeys([choice.remedy] if choice.remedy else [])
        else:
            told.append((Verdict.PROBLEM, choice) if choice else (Verdict.OK, "no GPU"))
    return conclude("decoding on GPUs", _hosts(vitals), told, "; ".join(remedies) or INSTALL)


def cores(vitals: Sequence[Vitals], decode_threads: int) -> Finding:
    """Check that a node has a core for every decoding thread of its ranks."""
    ranks_of = Counter(rank.node for rank in vitals)
    cores_of = defaultdict[int, set[int]](set)  # each rank may be bound to some cores
    for rank in vitals:
        cores_of[rank.node] |= rank.machine.cores
    told, fit = [], []
    for rank in vitals:
        usable = int(min(len(cores_of[rank.node]), rank.machine.quota))
        wanted = decode_threads * ranks_of[rank.node]
        fit.append(max(1, usable // ranks_of[rank.node]))
        told.append((_if(usable < wanted, Verdict.WARNING), f"{usable} for {wanted} decoding threads"))
    return conclude("cores", _hosts(vitals), told, f"set data.decode_threads={min(fit)}, or give the ranks more cores")


def open_files(vitals: Sequence[Vitals], requests: int) -> Finding:
    """Check that a rank may open its shards, its requests and its connections to all others."""
    needed = _FILES + requests + _CONNECTIONS * len(vitals)
    allowed = [rank.machine.open_files for rank in vitals]
    told = [(_if(few < needed, Verdict.PROBLEM), f"{few:,.0f} of about {needed:,} needed") for few in allowed]
    return conclude("open files", _hosts(vitals), told, "run `ulimit -n 65536` first, or set LimitNOFILE of the daemon")


def memory(vitals: Sequence[Vitals], needed: int) -> Finding:
    """Check that a node's memory holds what its ranks need: `needed` bytes each, besides decoding."""
    ranks_of = Counter(rank.node for rank in vitals)
    told = []
    for rank in vitals:
        wanted = needed * ranks_of[rank.node]
        text = f"{rank.machine.memory / 1e9:,.1f} GB available, {wanted / 1e9:,.2f} GB for weights and snapshots"
        told.append((_if(rank.machine.memory < wanted, Verdict.WARNING), text))
    return conclude("memory", _hosts(vitals), told, "use more nodes, or give the container more memory")


def shared_memory(vitals: Sequence[Vitals], gpus: Sequence[Gpu | None]) -> Finding:
    """Check that NCCL, which links the GPUs of a node through /dev/shm, has enough space there."""
    ranks_of = Counter(rank.node for rank in vitals)
    told = []
    for rank, gpu in zip(vitals, gpus, strict=True):
        little = gpu is not None and ranks_of[rank.node] > 1 and rank.machine.shared_memory < _SHARED_MEMORY
        told.append((_if(little, Verdict.WARNING), f"{rank.machine.shared_memory / 2**30:.1f} GiB free"))
    remedy = "give the container more: --shm-size=8g, or an emptyDir in memory"
    return conclude("/dev/shm", _hosts(vitals), told, remedy)


def room(vitals: Sequence[Vitals], checkpoint: int, wanted: int) -> Finding:
    """Check that `run.dir`, which all ranks share, has space for `wanted` checkpoints of `checkpoint` bytes."""
    free = vitals[0].machine.run_room
    fit = free // checkpoint
    text = f"{free / 1e9:,.1f} GB free, room for {fit:,} checkpoints of {checkpoint / 1e9:.2f} GB"
    verdict = max(_if(fit < wanted, Verdict.WARNING), _if(fit < min(wanted, 2), Verdict.PROBLEM))
    remedy = f"free {(wanted * checkpoint - free) / 1e9:,.1f} GB in run.dir, or lower run.keep"
    return conclude("room for checkpoints", _hosts(vitals[:1]), [(verdict, text)], remedy)


def cache(vitals: Sequence[Vitals], wanted: int | None) -> Finding:
    """Check that `data.cache` can be written and grow to its `wanted` bytes, if limited, on every node."""
    told = []
    for rank in vitals:
        has = rank.machine.cache_room or 0
        verdict = max(_if(wanted is not None and has < wanted, Verdict.WARNING), _if(not has, Verdict.PROBLEM))
        told.append((verdict, f"{has / 1e9:,.0f} GB" if has else "cannot be written"))
    remedy = "choose a folder with enough space on a local disk, or lower cache_size"
    return conclude("data.cache", _hosts(vitals), told, remedy)


def clocks(vitals: Sequence[Vitals], measured: Sequence[Clock]) -> Finding:
    """Check that the nodes' clocks agree with rank 0's."""
    told = []
    for clock in measured:
        surely = abs(clock.ahead) - clock.bound
        verdict = max(_if(surely > _SKEW, Verdict.WARNING), _if(surely > _GRAVE_SKEW, Verdict.PROBLEM))
        told.append((verdict, f"{clock.ahead:+.3f} s ± {clock.bound:.3f} s"))
    return conclude("clocks", _hosts(vitals), told, "start chrony or another NTP client on these nodes")


def network(vitals: Sequence[Vitals], measured: AllReduce, expected: float | None) -> Finding:
    """Check that an all-reduce is right and at least half as fast as `expected`, in bytes per second, if known."""
    text = f"{measured.bytes / 1e6:,.2f} MB in {measured.seconds * 1e3:,.1f} ms"
    if measured.ranks > 1:
        text += f", bus bandwidth {measured.bus_bandwidth / 1e9:,.2f} GB/s"
    slow = expected is not None and measured.ranks > 1 and measured.bus_bandwidth < _SLOW * expected
    if slow and expected:
        text += f" of {expected / 1e9:,.0f} expected"
    verdict = _if(slow, Verdict.WARNING) if measured.correct else Verdict.PROBLEM
    remedy = (
        "NCCL_DEBUG=INFO shows which cards are used, NCCL_IB_HCA and NCCL_SOCKET_IFNAME choose them; "
        "if the network is as it should be, set its speed by --network or --link"
        if measured.correct
        else "some memory, GPU or card corrupts data: test the nodes one by one and leave that one out"
    )
    text = text if measured.correct else f"the sum is wrong ({text})"
    return conclude("all-reduce", _hosts(vitals), [(verdict, text)] * len(vitals), remedy)


def gpus(vitals: Sequence[Vitals], measured: Sequence[Gpu | None]) -> Finding:
    """Check that the GPUs are healthy, at full speed, and not used by others."""
    told, remedies = [], dict[str, None]()
    for gpu in measured:
        faults = _faults(gpu) if gpu else []
        name = gpu.name if gpu else "none"
        worst = max((verdict for verdict, _, _ in faults), default=Verdict.OK)
        told.append((worst, ", ".join([name, *(text for _, text, _ in faults)])))
        remedies |= dict.fromkeys(remedy for _, _, remedy in faults)
    return conclude("GPUs", _hosts(vitals), told, "; ".join(remedies))


def _faults(gpu: Gpu) -> list[tuple[Verdict, str, str]]:
    """Return verdict, description and remedy of each problem of a GPU."""
    faults = []
    if gpu.nvml:
        faults.append((Verdict.WARNING, f"health unknown: {gpu.nvml}", "pip install nvidia-ml-py"))
    if gpu.uncorrected:
        text = f"{gpu.uncorrected} uncorrected memory errors"
        faults.append((Verdict.PROBLEM, text, "reset or replace the GPU, and leave its node out meanwhile (--exclude)"))
    if gpu.slowdowns:
        faults.append((Verdict.WARNING, f"slowed by {', '.join(gpu.slowdowns)}", "check cooling and power supply"))
    if gpu.temperature and gpu.limit and gpu.temperature > gpu.limit - _NEARLY:
        text = f"{gpu.temperature} °C, slows down at {gpu.limit}"
        faults.append((Verdict.WARNING, text, "check cooling and power supply"))
    if gpu.taken > _TAKEN:
        text = f"{gpu.taken / 2**30:.1f} GiB taken by others"
        faults.append((Verdict.WARNING, text, "end the processes that nvidia-smi shows"))
    return faults


def _rates(
    check: str,
    vitals: Sequence[Vitals],
    measured: Sequence[Rate | str | None],
    bad_share: float,
    needed: float | None,
    remedy: str,
    what: str,
    frames: int | None = None,
) -> Finding:
    images, sizes, ranks_of = (defaultdict[int, float](float) for _ in range(3))  # by node
    for rank, rate in zip(vitals, measured, strict=True):
        if isinstance(rate, Rate):
            images[rank.node] += rate.images
            sizes[rank.node] += rate.bytes
            ranks_of[rank.node] += 1
    median = statistics.median(images.values()) if images else 0
    told = []
    for rank, rate in zip(vitals, measured, strict=True):
        if rate is None:
            told.append((Verdict.OK, "not measured"))
        elif isinstance(rate, str):
            told.append((Verdict.PROBLEM, rate))
        elif rate.bad:
            verdict = Verdict.PROBLEM if rate.bad > bad_share * rate.tried else Verdict.WARNING
            told.append((verdict, f"{rate.bad} of {rate.tried} samples are bad, for instance {rate.why}"))
        else:
            node = rank.node
            text = f"{images[node]:,.0f} {what}/s" + (f", {sizes[node] / 1e6:,.0f} MB/s" if sizes[node] else "")
            text += f", {images[node] * frames:,.0f} frames/s" if frames else ""
            wanted = needed * ranks_of[node] if needed else 0.0
            if images[node] < wanted:
                text += f" of {wanted:,.0f} needed"
            elif images[node] < _SLOW * median:
                text += f", where the median node has {median:,.0f}"
            told.append((_if(images[node] < max(wanted, _SLOW * median), Verdict.WARNING), text))
    return conclude(check, _hosts(vitals), told, remedy)


def _hosts(vitals: Sequence[Vitals]) -> list[str]:
    return [rank.host for rank in vitals]


def _if(condition: bool, verdict: Verdict) -> Verdict:
    return verdict if condition else Verdict.OK
