"""Descriptions of settings: every setting has one, and values and defaults are those of its declaration."""

from typing import Annotated, Literal

import pytest
from pydantic import Field

from pipeline.config import Recipe, TrainingRecipe
from pipeline.descriptions import REQUIRED, Description, chosen, describe
from pipeline.finetune.config import FinetuneRecipe
from pipeline.sections import Optim
from pipeline.settings import ConfigError, LocalPath, Section


class Tried(Section):
    """A section of settings."""

    name: Literal["a", "b"] | None = None
    """One of
    two names."""
    path: LocalPath
    """A path."""
    share: Annotated[float, Field(gt=0, le=0.5)] = 1 / 3
    """A share."""
    size: int = Field(2, gt=0, lt=2**40)
    """A size."""
    pair: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]] = (1e-6, 3)
    """A pair."""
    switch: bool = True
    """A switch."""


class TriedRecipe(TrainingRecipe):
    tried: Tried  # type: ignore[misc]


def test_a_description_is_what_is_declared() -> None:
    (section,) = chosen(TriedRecipe, "tried")
    assert (section.name, section.meaning) == ("tried", "A section of settings.")
    assert section.settings == [
        Description("tried.name", "`a`, `b`, or null", "null", "One of two names."),
        Description("tried.path", "path", REQUIRED, "A path."),
        Description("tried.share", "number above 0, at most 0.5", "0.3333", "A share."),
        Description("tried.size", "whole number from 1, below 2^40", "2", "A size."),
        Description("tried.pair", "list of 2: number from 0", "[1.0e-06, 3]", "A pair."),
        Description("tried.switch", "true, false", "true", "A switch."),
    ]


@pytest.mark.parametrize("kind", [Recipe, FinetuneRecipe])
def test_every_setting_has_a_description(kind: type[TrainingRecipe]) -> None:
    sections = describe(kind)
    assert [section.name for section in sections] == list(kind.model_fields)
    for section in sections:
        assert section.meaning.endswith(".")
        assert [setting.key for setting in section.settings if not setting.meaning.endswith(".")] == []


def test_one_setting_is_chosen_and_a_mistyped_one_is_named() -> None:
    ((setting,),) = (section.settings for section in chosen(FinetuneRecipe, "optim.lr"))
    assert setting.default == "0.001"
    assert [setting.key for setting in chosen(Recipe, "optim")[0].settings] == [
        f"optim.{name}" for name in Optim.model_fields
    ]
    for key, message in (
        ("optm", "unknown section optm: did you mean optim?"),
        ("optim.lrate", r"unknown key optim\.lrate: did you mean .*optim\.lr\b"),
        ("zzz", "unknown section zzz: there are run, data"),
    ):
        with pytest.raises(ConfigError, match=message):
            chosen(Recipe, key)
