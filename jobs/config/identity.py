"""What gives a run's numbers their value, and in what two configs differ."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

from skerch.jobs.config.methods import METHODS
from skerch.jobs.config.schema import Config

LATER_KEYS = {  # and their defaults
    "hessian.memory_format": "auto",
    "hessian.mode": "eval",
    "sketch.start": None,
}
GROWING = (  # what may change as a run grows: results say of what they are
    "training.max_steps",
    "training.record_steps",
    "training.eval_samples",
    "hessian.splits",
    "sketch.outer",
    "sketch.inner",
    "sketch.rounds",
    "sketch.target",
)
STATE_DICTS = "state dicts"  # what an identity has for a training done elsewhere


def identity(config: Config, part: str) -> dict[str, Any]:
    """What gives the numbers of a part ("training" or "method") their value, as from JSON.

    Never part of it: where data, modules and results lie, how the numbers are computed (launcher,
    cluster, resources, keep_blocks, consolidate), and what grows: steps and splits, and the
    numbers of rounds, matvecs and eigenpairs.
    """
    whole = asdict(config)
    for section, key in (growing.split(".") for growing in GROWING):
        del whole[section][key]
    whole["training"]["checkpoints"] = config.training.checkpoints and STATE_DICTS
    data = {key: whole["hessian"][key] for key in ("datapoints", "subset")}
    problem = {k: v for k, v in whole["problem"].items() if k not in ("root", "download")}
    parts = {"problem": problem, "training": whole["training"], "hessian": data}
    if part == "method":
        parts |= {section: whole[section] for section in METHODS[config.method].sections}
    return dict(json.loads(json.dumps(parts)))


def difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Lines `key.path: old -> new` for the leaves in which two nested mappings differ.

    What was written before a key was there counts as having its default, and what it says of the
    keys of `GROWING` does not count.
    """
    old, new = ({k: v for k, v in _leaves(tree) if k not in GROWING} for tree in (a, b))
    old = {key: value for key, value in LATER_KEYS.items() if key in new} | old
    if old.get("training.checkpoints"):  # once the pattern itself
        old["training.checkpoints"] = STATE_DICTS
    absent = "(not set)"
    return [
        f"{key}: {old.get(key, absent)} -> {new.get(key, absent)}"
        for key in [*old, *(key for key in new if key not in old)]
        if key not in old or key not in new or old[key] != new[key]
    ]


def grown(config: Config, steps: Iterable[int], splits: Iterable[str]) -> Config:
    """A config with further steps to record, and further splits."""
    hessian, training = config.hessian, config.training
    hessian = replace(hessian, splits=list(dict.fromkeys([*hessian.splits, *splits])))
    whole = sorted({*training.record_steps, *steps})
    last = training.max_steps if training.checkpoints else max(training.max_steps, *whole)
    training = replace(training, record_steps=whole, max_steps=last)
    return replace(config, hessian=hessian, training=training)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
