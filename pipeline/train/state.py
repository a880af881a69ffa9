"""Every parameter's fp32 weight and moments, whole, for any ZeRO stage and number of ranks.

DeepSpeed's own checkpoints bind a run to its stage and world size. Its `safe_get_full_*` / `safe_set_full_*` do
not, but do nothing at stage 0, which is filled in here.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import isfinite, prod
from typing import Any

import torch
from deepspeed import comm
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.checkpoints.checkpoint import AVERAGE, Checkpoint
from pipeline.checkpoints.sealing import Shapes
from pipeline.cluster.world import World
from pipeline.train.engine import Engine

_SCALER_FIELDS = {"cur_scale": (float, int), "cur_iter": (int,), "last_overflow_iter": (int,), "cur_hysteresis": (int,)}


def named_parameters(engine: Engine) -> list[tuple[str, nn.Parameter]]:
    """Return the trained parameters by the model's own names, in the same order on all ranks."""
    return [(name, p) for name, p in engine.deepspeed.module.named_parameters() if p.requires_grad]


def capture(engine: Engine, world: World) -> Iterator[tuple[str, Tensor]]:
    """Yield this rank's share of all states, fp32, whole, on the device: "weight/NAME", "exp_avg/NAME" and so on.

    At stages 1 to 3, each is assembled by a collective, so all ranks must iterate over this together, and to its end.
    The tensors may be the states themselves, which the next step overwrites.
    """
    own = _share(engine, world)
    for name, state in full_states(engine):
        if name in own:
            yield from ((f"{part}/{name}", value) for part, value in state.items())


def captured_shapes(engine: Engine, world: World) -> Shapes:
    """Return names and shapes of the result of `capture` on this rank."""
    shares = _share(engine, world).items()
    return {f"{part}/{name}": shape for name, shape in shares for part in ("weight", *engine.states)}


def set_weights(engine: Engine, weights: Mapping[str, Tensor]) -> None:
    """Set the fp32 masters, which DeepSpeed makes of weights rounded to its compute precision.

    An average of the weights starts from them. All ranks call this together.
    """
    masters, averages = _stage_0_masters(engine), {AVERAGE} & set(engine.states)
    for name, parameter in named_parameters(engine):
        weight = weights[name].to(parameter.device)
        _set(engine, parameter, masters, {"weight": weight} | dict.fromkeys(averages, weight))


def restore(engine: Engine, checkpoint: Checkpoint) -> None:
    """Set masters, moments and counters of an engine whose model had `checkpoint.weights()` when it was built.

    All ranks call this together.
    """
    masters, parts = _stage_0_masters(engine), ("weight", *engine.states)
    with checkpoint.tensors() as tensors:
        for name, parameter in named_parameters(engine):
            state = {part: tensors[f"{part}/{name}"].to(parameter.device) for part in parts}
            _set(engine, parameter, masters, state)
    _set_counters(engine, checkpoint.facts.step, checkpoint.facts.counters)


def full_weights(engine: Engine) -> Iterator[tuple[str, Tensor]]:
    """Yield every trained weight by the model's own name: fp32, whole, on all ranks, which iterate as in `capture`.

    A weight may be the state itself, and is valid only until the next one is requested.
    """
    masters = _stage_0_masters(engine)
    for name, parameter in named_parameters(engine):
        yield name, safe_get_full_fp32_param(parameter) if masters is None else masters[parameter].detach()


@contextmanager
def averaged(engine: Engine) -> Iterator[None]:
    """Compute with the average of the weights in the block. Not at stage 3, where the model has only pieces of them."""
    parameters = [parameter.detach() for _, parameter in named_parameters(engine)]
    kept = [parameter.clone() for parameter in parameters]
    averages = [state[AVERAGE] for _, state in full_states(engine)]
    with torch.no_grad():
        torch._foreach_copy_(parameters, averages)
        try:
            yield
        finally:
            torch._foreach_copy_(parameters, kept)


def _set(
    engine: Engine, parameter: nn.Parameter, masters: dict[nn.Parameter, Tensor] | None, state: Mapping[str, Tensor]
) -> None:
    """Set a parameter's fp32 master, "weight", and any of `engine.states`."""
    for key, value in state.items():
        if masters is not None:
            master = masters[parameter]
            with torch.no_grad():
                (master if key == "weight" else engine.optimizer.state[master][key]).copy_(value)
        elif engine.stage == 3:  # whose safe_set_full_* fail unless a tensor's size is a multiple of the ranks
            piece = _piece(value, parameter.ds_tensor.numel())  # type: ignore[attr-defined]
            if key == "weight":
                safe_set_local_fp32_param(parameter, piece)
            else:
                safe_set_local_optimizer_state(parameter, piece, key)
        elif key == "weight":
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, key)


def _piece(value: Tensor, numbers: int) -> Tensor:
    """Return this rank's piece of a tensor under ZeRO 3: `numbers` numbers; the last piece is padded with zeros."""
    flat, first = value.flatten(), comm.get_rank() * numbers
    own = flat[first : first + numbers]
    return F.pad(own, (0, numbers - len(own)))


def _share(engine: Engine, world: World) -> Shapes:
    """Return the parameters, with whole shapes, whose states this rank saves: each goes to the rank with the least."""
    loads, own = [0] * world.size, {}
    for name, parameter in named_parameters(engine):
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))  # under ZeRO 3 the parameter itself is empty
        owner = loads.index(min(loads))
        loads[owner] += prod(shape)
        if owner == world.rank:
            own[name] = shape
    return own


def full_states(engine: Engine) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield "weight" and `engine.states` of every trained parameter, by its name, whole; see `full_weights`."""
    masters = _stage_0_masters(engine)
    for name, parameter in named_parameters(engine):
        if masters is not None:
            master = masters[parameter]
            moments = engine.optimizer.state[master]
            yield name, {"weight": master.detach()} | {key: moments[key] for key in engine.states}
        else:
            moments = {key: safe_get_full_optimizer_state(parameter, key) for key in engine.states}
            yield name, {"weight": safe_get_full_fp32_param(parameter)} | moments


def counters(engine: Engine) -> dict[str, Any]:
    """Return further state for the next step: the optimizer's step count and the loss scaler, as JSON values."""
    adam_step = int(engine.optimizer_states()[0]["step"])
    return {
        "adam_step": adam_step,
        "scaler": _scaler_fields(engine),
    }


def check_counters(saved: Mapping[str, Any], step: int) -> None:
    """Check that these are the counters of a run after `step` steps.

    Raises:
        ValueError: the message says which is wrong.
    """
    adam_step, scaler = saved.get("adam_step"), saved.get("scaler")
    if type(adam_step) is not int or not 0 <= adam_step <= step:
        raise ValueError(f"its adam_step is not a number of steps up to {step}")
    if not isinstance(scaler, dict) or scaler.keys() - _SCALER_FIELDS.keys():
        raise ValueError("its scaler is not an object of the fields of a loss scaler")
    for field, value in scaler.items():
        if type(value) not in _SCALER_FIELDS[field] or not isfinite(value):
            raise ValueError(f"its scaler's {field} is not a number of that kind")
    if scaler.get("cur_scale", 1) <= 0:
        raise ValueError("its scaler's cur_scale is not more than 0")


def _set_counters(engine: Engine, step: int, saved: dict[str, Any]) -> None:
    for state in engine.optimizer_states():
        state["step"].fill_(saved["adam_step"])
    engine.deepspeed.global_steps = step
    scaler = _scaler(engine)
    # Another stage's scaler may lack a field, and another precision's lacks all; those keep their initial values.
    for field in _scaler_fields(engine).keys() & saved["scaler"].keys():
        setattr(scaler, field, saved["scaler"][field])


def _stage_0_masters(engine: Engine) -> dict[nn.Parameter, Tensor] | None:
    """Return the fp32 tensor that Adam updates for each parameter at stage 0: a copy under fp16 and bf16, or itself."""
    if engine.stage:
        return None
    optimizer = engine.deepspeed.optimizer
    if engine.dtype == torch.float32:
        return {parameter: parameter for _, parameter in named_parameters(engine)}
    pairs = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
    return {low: master for lows, masters in pairs for low, master in zip(lows, masters, strict=True)}


def _scaler(engine: Engine) -> Any:
    optimizer = engine.deepspeed.optimizer
    return getattr(optimizer, "loss_scaler", None) or getattr(optimizer, "loss_scale_config", None)


def _scaler_fields(engine: Engine) -> dict[str, Any]:
    if engine.dtype != torch.float16:
        return {}
    scaler = _scaler(engine)
    return {field: getattr(scaler, field) for field in _SCALER_FIELDS if hasattr(scaler, field)}
