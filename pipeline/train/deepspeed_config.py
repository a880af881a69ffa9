"""Make DeepSpeed's JSON from the settings of a run; it is not stored anywhere else."""

from typing import Any

from pipeline.sections import Engine, Optim


def deepspeed_config(engine: Engine, optim: Optim, micro_batch: int, world_size: int) -> dict[str, Any]:
    """Return DeepSpeed's JSON.

    Args:
        engine, optim: settings of the run.
        micro_batch: inputs that a rank computes at once.
        world_size: number of ranks.
    """
    stage, precision = engine.zero_stage, engine.precision
    config: dict[str, Any] = {
        "train_batch_size": optim.batch_size,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": optim.batch_size // (micro_batch * world_size),
        "zero_optimization": {"stage": stage},
        "gradient_clipping": 0.0 if clips_here(engine) else optim.clip or 0.0,
        "steps_per_print": None,
        "timers": {"throughput": {"enabled": False}},  # it synchronises the device twice per micro-batch
    }
    if stage and optim.name != "adamw":
        config["zero_allow_untested_optimizer"] = True
    if clips_here(engine) and stage and not under_bf16_optimizer(engine):
        config["zero_optimization"]["compute_grad_norm"] = False
    if precision != "fp32":
        config[precision] = {"enabled": True}
        if precision == "bf16" and clips_here(engine):
            config[precision]["check_grad_overflow"] = False
        if under_bf16_optimizer(engine):
            config[precision]["immediate_grad_update"] = True  # frees each 16-bit gradient as soon as it is accumulated
        if stage:
            config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def clips_here(engine: Engine) -> bool:
    """Return whether DeepSpeed would clip without reporting the norm, or wait for the device to do so."""
    stage, precision = engine.zero_stage, engine.precision
    return (stage == 0 and precision == "fp32") or (stage in (1, 2) and precision != "fp16")


def under_bf16_optimizer(engine: Engine) -> bool:
    """Return whether DeepSpeed uses its own bf16 optimizer, in which every rank accumulates gradients in fp32."""
    return engine.zero_stage == 1 and engine.precision == "bf16"
