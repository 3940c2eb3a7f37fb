"""Refuse configs that cannot work, as far as that shows without the data and N."""

from __future__ import annotations

import json
import re
from dataclasses import fields, is_dataclass
from reprlib import repr as short
from typing import Any

from skerch import sketch_operators
from skerch.decompositions import recoveries
from skerch.decompositions.target import Target
from skerch.errors import SkerchError
from skerch.jobs import problems
from skerch.jobs.config import resources as cluster
from skerch.jobs.config.methods import METHODS
from skerch.jobs.config.names import check_name
from skerch.jobs.config.pairs import check_source
from skerch.jobs.config.schema import LARGEST, Config, Hessian, Sketch, Training
from skerch.jobs.config.start import check_start
from skerch.jobs.errors import ConfigError

LARGEST_RATE = 3e38  # of float32
MASKS = "gradient", "layers"
MOST_BLOCKS = 1_000_000  # of a run, as its tasks are listed in memory


def check(config: Config) -> None:
    """Refuse values out of their bounds, as far as they can be known without N and the data."""
    _check_fields(config, "")
    problems.check(config.problem)
    check_name("name", config.name)
    check_source(config)
    _check_training(config.training)
    _check_hessian(config.hessian)
    if "sketch" in METHODS[config.method].sections:
        _check_sketch(config.sketch)
        check_start(config)
        _check_columns(config)
        _check_blocks(config)
    _check_krylov(config)
    if METHODS[config.method].family == "kronecker":
        _check_kronecker(config)
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", config.launcher.device):
        raise ConfigError(
            f"launcher.device is {short(config.launcher.device)}; it must be auto, cpu, "
            "cuda or cuda:0."
        )
    blocks = config.launcher.blocks_per_task
    if blocks != "auto" and not (type(blocks) is int and 1 <= blocks <= LARGEST):
        raise ConfigError(
            f"launcher.blocks_per_task is {short(blocks)}; it is auto, or a number from 1 on."
        )
    cluster.check(config.resources)
    for name in {*config.masks} & {*MASKS}:
        raise ConfigError(f"masks.{name} is the name of a mask that is always there; take another.")


def _check_fields(section: Any, prefix: str) -> None:
    """Bounds of numbers, choices of words, and that free mappings can be stored as JSON."""
    for f in fields(section):
        key, value = prefix + f.name, getattr(section, f.name)
        if is_dataclass(value):
            _check_fields(value, f"{key}.")
        if value is not None and "least" in f.metadata:
            least, most = f.metadata["least"], f.metadata["most"]
            if not least <= value <= most:
                raise ConfigError(
                    f"{key} is {short(value)}; it must lie between {least} and {most}."
                )
        if "choices" in f.metadata and value not in f.metadata["choices"]:
            choices = ", ".join(f.metadata["choices"])
            raise ConfigError(f"{key} is {short(value)}; it must be one of {choices}.")
        if isinstance(value, dict):
            try:
                json.dumps(value, sort_keys=True, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise ConfigError(
                    f"{key} holds what cannot be stored as JSON ({error}); use text, finite "
                    "numbers, lists and mappings with text keys."
                ) from error


def _check_training(training: Training) -> None:
    if not 0 < training.lr < LARGEST_RATE:
        raise ConfigError(
            f"training.lr is {training.lr}; it must be above 0 and below {LARGEST_RATE:g}."
        )
    steps = training.record_steps
    if not steps:
        raise ConfigError("training.record_steps is empty; give one step at least, as in [0].")
    if steps != sorted(set(steps)):
        raise ConfigError(
            f"training.record_steps is {short(steps)}; give each step once, in ascending order: "
            f"{sorted(set(steps))}."
        )
    last = LARGEST if training.checkpoints is not None else training.max_steps
    if steps[0] < 0 or steps[-1] > last:
        raise ConfigError(
            f"training.record_steps is {short(steps)}; steps must lie between 0 and "
            f"training.max_steps={last}."
        )


def _check_hessian(hessian: Hessian) -> None:
    splits = hessian.splits
    if not splits or len(set(splits)) < len(splits):
        raise ConfigError(f"hessian.splits is {short(splits)}; name one split or more, each once.")
    for split in splits:
        if not re.fullmatch(r"[A-Za-z0-9]\w*", split, re.ASCII) or len(split) > 100:
            raise ConfigError(
                f"hessian.splits has {short(split)}; a split's name is letters, digits "
                "and '_' (it names a folder)."
            )
    if hessian.mode == "train" and (hessian.batch_size or LARGEST) < hessian.datapoints:
        raise ConfigError(
            f"hessian.mode=train takes statistics of all the data, and hessian.batch_size is "
            f"{hessian.batch_size} of {hessian.datapoints}; set it to null."
        )
    if hessian.param_filter is not None and not hessian.param_filter:
        raise ConfigError("hessian.param_filter is empty; give patterns, or null for all.")


def _check_columns(config: Config) -> None:
    """Eigenvectors are combinations of columns, which must be kept somewhere."""
    if not config.keep_blocks and not config.consolidate:
        raise ConfigError(
            "keep_blocks and consolidate are both false, which leaves no columns to compute "
            "eigenvectors from; set one of them true."
        )


def _check_blocks(config: Config) -> None:
    """Refuse more measurements than a run can list, before N is known."""
    sketch = config.sketch
    blocks = sum(each.count_blocks(sketch.block_size) for each in sketch.each_round())
    hessians = len(config.training.record_steps) * len(config.hessian.splits)
    if blocks * hessians > MOST_BLOCKS:
        raise ConfigError(
            f"sketch.inner={sketch.inner} and sketch.probes={sketch.probes} are {blocks:,} blocks "
            f"of sketch.block_size={sketch.block_size}, {blocks * hessians:,} in all steps and "
            f"splits; a run may have {MOST_BLOCKS:,}. Measure less, or in larger blocks."
        )


def _check_sketch(sketch: Sketch) -> None:
    of_rounds = sketch.rounds if isinstance(sketch.rounds, list) else [sketch.rounds]
    if not of_rounds or not all(type(number) is int and number > 0 for number in of_rounds):
        raise ConfigError(
            f"sketch.rounds is {short(sketch.rounds)}; it is auto, a number from 1 on, or a list "
            "of the matvecs of each round."
        )
    try:
        sketch_operators.check_kind(sketch.kind)
        recoveries.check_sizes(
            sketch.recovery, sketch.rounds, sketch.outer, sketch.inner, sketch.probes
        )
        if sketch.target is not None:
            columns = [each.columns for each in sketch.each_round()]
            Target.of(sketch.target).check(sketch.recovery, columns, sketch.outer)
    except SkerchError as error:
        raise ConfigError(f"sketch: {error}") from error


def _check_krylov(config: Config) -> None:
    asked = config.lanczos
    if config.method == "lanczos" and (asked.max_products or LARGEST) < asked.k:
        raise ConfigError(
            f"lanczos.max_products={asked.max_products} is less than lanczos.k={asked.k} "
            "eigenpairs; take more, or null for as many as are needed."
        )
    positive = config.method != "trace" or config.trace.estimator != "xnystrace"
    if not positive and config.hessian.curvature == "hessian":
        raise ConfigError(
            "trace.estimator=xnystrace is for curvatures without negative eigenvalues, and a "
            "Hessian has some; take xtrace, or another hessian.curvature."
        )


def _check_kronecker(config: Config) -> None:
    asked, hessian, method = config.kronecker, config.hessian, config.method
    if hessian.curvature != "hessian":
        raise ConfigError(
            f"hessian.curvature is {hessian.curvature}, and {method} is of a Fisher matrix that "
            "kronecker.fisher names; leave hessian.curvature out."
        )
    if hessian.mode == "train":
        raise ConfigError(
            f"hessian.mode=train takes statistics of all the data, and {method} goes through parts "
            "of them; leave it at eval."
        )
    if method == "ekfac" and asked.correction is False:
        raise ConfigError("kronecker.correction=false makes kfac of ekfac; take method=kfac.")
    if method == "autocorrelation" and asked.correction is not None:
        raise ConfigError(
            "kronecker.correction is for factors, and autocorrelation has none; leave it at null."
        )
    if asked.factor_eigh == "sketched" and (asked.rank is None) == (asked.tol is None):
        raise ConfigError(
            "kronecker.factor_eigh=sketched needs kronecker.rank, as in 512, or kronecker.tol, as "
            "in 0.01, and not both."
        )
    if asked.factor_eigh == "exact" and (asked.rank, asked.tol) != (None, None):
        raise ConfigError(
            "kronecker.rank and kronecker.tol are for kronecker.factor_eigh=sketched; leave them "
            "out, or ask for that."
        )
    units = asked.count_parts(hessian.datapoints) * asked.partitions
    hessians = len(config.training.record_steps) * len(hessian.splits)
    if units * hessians * asked.iterations > MOST_BLOCKS:
        raise ConfigError(
            f"kronecker.part_size={asked.part_size} and kronecker.partitions={asked.partitions} "
            f"are {units:,} partial sums of each Hessian, too many for a run, which may have "
            f"{MOST_BLOCKS:,}; take larger parts, or fewer."
        )
