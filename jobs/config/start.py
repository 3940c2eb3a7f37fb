"""Which Hessian's eigenvectors are another's first test vectors, by `sketch.start`."""

from __future__ import annotations

from collections.abc import Mapping
from reprlib import repr as short
from typing import Any

from skerch.jobs.config.methods import METHODS
from skerch.jobs.config.schema import Config
from skerch.jobs.errors import ConfigError

PREVIOUS = "previous"  # the recorded step before, of the same split


def source_of(config: Config, step: int, split: str) -> tuple[int, str] | None:
    """The step and the split whose eigenvectors a Hessian starts with; None for random vectors."""
    start = config.sketch.start if "sketch" in METHODS[config.method].sections else None
    if start == PREVIOUS:
        before = [each for each in config.training.record_steps if each < step]
        return (max(before), split) if before else None
    if start is None or (source := (start["step"], start["split"])) == (step, split):
        return None
    return source


def in_order(config: Config) -> list[tuple[int, str]]:
    """The steps and splits of a config's Hessians, each after the one that it starts with."""
    splits = config.hessian.splits
    hessians = [(step, split) for step in config.training.record_steps for split in splits]
    return sorted(hessians, key=lambda each: source_of(config, *each) is not None)


def check_start(config: Config) -> None:
    """Refuse a start that no Hessian of the config can be, or that no recovery takes."""
    start: Any = config.sketch.start
    if start is None:
        return
    if config.sketch.recovery != "nystrom":
        raise ConfigError(
            f"sketch.start is for sketch.recovery=nystrom, not {config.sketch.recovery}; set one "
            "of them back."
        )
    if len(config.sketch.each_round()) < 2:
        raise ConfigError(
            "sketch.start needs a second round, in which it is corrected, and sketch.rounds is "
            f"{config.sketch.rounds}; take 2 or more, or auto."
        )
    if start == PREVIOUS:
        return
    if not (
        isinstance(start, Mapping)
        and set(start) == {"step", "split"}
        and type(start["step"]) is int
        and isinstance(start["split"], str)
    ):
        raise ConfigError(
            f"sketch.start is {short(start)}; it is {PREVIOUS} (the recorded step before), or a "
            "step and a split, as in {step: 1000, split: train}."
        )
    for key, there, name in (
        ("step", config.training.record_steps, "training.record_steps"),
        ("split", config.hessian.splits, "hessian.splits"),
    ):
        if start[key] not in there:
            raise ConfigError(
                f"sketch.start.{key} is {short(start[key])}, which {name} does not have; "
                "add it, or start with one of these."
            )
