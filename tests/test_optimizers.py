"""The optimizers that a recipe may name: what they keep, what divides them, and that they follow their definitions."""

from collections.abc import Callable

import pytest
import torch
from torch.optim import Optimizer

from pipeline.config import load_recipe
from pipeline.optimizers import OPTIMIZERS, build_optimizer
from pipeline.settings import ConfigError

RATE, DECAY, BETAS = 0.01, 0.1, (0.9, 0.99)


def group(weights: list[torch.Tensor]) -> list[dict[str, object]]:
    return [{"params": weights, "weight_decay": DECAY}]


def stepped(name: str, start: list[torch.Tensor], gradients: list[list[torch.Tensor]]) -> tuple[Optimizer, list]:
    """Take a step for each list of gradients. Return the optimizer and the weights."""
    weights = [torch.nn.Parameter(tensor.clone()) for tensor in start]
    optimizer = build_optimizer(name, group(weights), BETAS)
    optimizer.param_groups[0]["lr"] = RATE
    for of_step in gradients:
        for weight, gradient in zip(weights, of_step, strict=True):
            weight.grad = gradient.clone()
        optimizer.step()
    return optimizer, [weight.detach() for weight in weights]


@pytest.fixture
def start() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(4, 6), torch.randn(8)]


@pytest.fixture
def gradients(start: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    torch.manual_seed(1)
    return [[torch.randn_like(tensor) for tensor in start] for _ in range(3)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_keeps_what_it_says_and_counts_its_steps(name: str, start: list, gradients: list) -> None:
    optimizer, weights = stepped(name, start, gradients)
    for weight, state in zip(weights, optimizer.state.values(), strict=True):
        assert {key for key in state if key != "step"} == set(OPTIMIZERS[name].states)
        assert all(state[key].shape == weight.shape for key in OPTIMIZERS[name].states)
        assert state["step"] == 3


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_at_zero_are_a_fresh_start_and_later_ones_continue(name: str, start: list, gradients: list) -> None:
    """Test states as `Engine` creates them, and as a checkpoint restores them."""
    want = stepped(name, start, gradients)[1]
    first, middle = stepped(name, start, gradients[:1])
    kept = [{key: state[key] for key in OPTIMIZERS[name].states} for state in first.state.values()]
    zeros = [{key: torch.zeros_like(value) for key, value in state.items()} for state in kept]
    for begin, states, done in ((start, zeros, 0), (middle, kept, 1)):
        weights = [torch.nn.Parameter(tensor.clone()) for tensor in begin]
        resumed = build_optimizer(name, group(weights), BETAS)
        resumed.param_groups[0]["lr"] = RATE
        for weight, state in zip(weights, states, strict=True):
            resumed.state[weight] = {key: value.clone() for key, value in state.items()}
            resumed.state[weight]["step"] = torch.tensor(float(done))
        for of_step in gradients[done:]:
            for weight, gradient in zip(weights, of_step, strict=True):
                weight.grad = gradient.clone()
            resumed.step()
        assert all(torch.equal(*pair) for pair in zip(weights, want, strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_only_those_that_look_at_whole_weights_cannot_be_divided(name: str, start: list, gradients: list) -> None:
    """ZeRO makes one vector of a group's weights, and gives each rank a piece."""

    def pieces(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        return list(torch.cat([tensor.flatten() for tensor in tensors]).split(20))

    whole = torch.cat([weight.flatten() for weight in stepped(name, start, gradients)[1]])
    divided = torch.cat(stepped(name, pieces(start), [pieces(of_step) for of_step in gradients])[1])
    close = torch.allclose(whole, divided, atol=1e-7, rtol=1e-6)
    assert close != OPTIMIZERS[name].whole


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_clips_and_skips_as_it_is_told(name: str, start: list, gradients: list) -> None:
    weights = [torch.nn.Parameter(tensor.clone()) for tensor in start]
    optimizer = build_optimizer(name, group(weights), BETAS)
    optimizer.param_groups[0]["lr"] = RATE
    for scale, found in ((4.0, 0.0), (1.0, 1.0)):
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(scale), torch.tensor(found)  # type: ignore[attr-defined]
        for weight, gradient in zip(weights, gradients[0], strict=True):
            weight.grad = gradient * (4 if not found else torch.nan)
        optimizer.step()
    want, (state, *_) = stepped(name, start, gradients[:1])[1], optimizer.state.values()
    assert state["step"] == 1
    assert all(torch.allclose(*pair) for pair in zip(weights, want, strict=True))


def lion(weight: torch.Tensor, gradients: list[torch.Tensor]) -> torch.Tensor:
    """Chen et al., "Symbolic Discovery of Optimization Algorithms", 2023, algorithm 2."""
    mean = torch.zeros_like(weight)
    for gradient in gradients:
        update = (BETAS[0] * mean + (1 - BETAS[0]) * gradient).sign()
        weight = weight - RATE * (update + DECAY * weight)
        mean = BETAS[1] * mean + (1 - BETAS[1]) * gradient
    return weight


def sgdw(weight: torch.Tensor, gradients: list[torch.Tensor]) -> torch.Tensor:
    """Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019, algorithm 1."""
    momentum = torch.zeros_like(weight)
    for gradient in gradients:
        momentum = BETAS[0] * momentum + gradient
        weight = weight - RATE * (momentum + DECAY * weight)
    return weight


def lamb(weight: torch.Tensor, gradients: list[torch.Tensor]) -> torch.Tensor:
    """You et al., "Large Batch Optimization for Deep Learning", 2020, algorithm 2."""
    mean = squares = torch.zeros_like(weight)
    for step, gradient in enumerate(gradients, 1):
        mean = BETAS[0] * mean + (1 - BETAS[0]) * gradient
        squares = BETAS[1] * squares + (1 - BETAS[1]) * gradient**2
        ratio = mean / (1 - BETAS[0] ** step) / ((squares / (1 - BETAS[1] ** step)).sqrt() + 1e-6)
        update = ratio + DECAY * weight
        weight = weight - RATE * weight.norm() / update.norm() * update
    return weight


@pytest.mark.parametrize(("name", "definition"), [("lion", lion), ("sgdw", sgdw), ("lamb", lamb)])
def test_it_follows_its_definition(
    name: str, definition: Callable[..., torch.Tensor], start: list, gradients: list
) -> None:
    for number, weight in enumerate(stepped(name, start, gradients)[1]):
        want = definition(start[number].double(), [of_step[number].double() for of_step in gradients])
        torch.testing.assert_close(weight.double(), want, atol=1e-6, rtol=1e-5)


def test_what_cannot_work_is_refused() -> None:
    given = ["data.shards=/nowhere"]
    with pytest.raises(
        ConfigError, match=r"optim\.name=muon is not an optimizer with which runs resume exactly: choose"
    ):
        load_recipe("demo", [*given, "optim.name=muon"])
    with pytest.raises(ConfigError, match=r"lamb needs whole weights, which engine\.zero_stage=2 partitions"):
        load_recipe("demo", [*given, "optim.name=lamb", "engine.zero_stage=2"])
    assert load_recipe("demo", [*given, "optim.name=lamb", "engine.zero_stage=0"]).optim.name == "lamb"
