"""What lanczos, trace and density take; with products measured here, how long."""

from __future__ import annotations

import math

import torch
from rich.filesize import decimal

from skerch.decompositions.eigh_file import CHUNK_COLUMNS
from skerch.hdf5 import even_width, stored_size
from skerch.jobs.commands.calibrate import operator_here, repeated
from skerch.jobs.commands.plan import (
    Plan,
    Row,
    count_hessians,
    duration,
    memory_warnings,
    python_memory,
)
from skerch.jobs.commands.seigh.costs import ITEMS
from skerch.jobs.commands.seigh.disk import HEADER, training_disk
from skerch.jobs.config import Config
from skerch.jobs.config.pairs import source_of
from skerch.jobs.pipeline import Task
from skerch.jobs.run_dir import RunDir
from skerch.krylov.operand import BLOCK_BYTES, MOST_TOGETHER

SMALL = 250_000  # bytes of a Hessian's figure and numbers
BASES = {"xtrace": 1 / 2, "hutch++": 1 / 3, "hutchinson": 0, "xnystrace": 1}  # vectors a product


def calibrate(config: Config) -> tuple[float, None]:
    """The seconds of a product here; there are no blocks."""
    return _seconds(config), None


def plan(config: Config, N: int, tasks: list[Task], one: float | None) -> Plan:
    """What the tasks of a config take."""
    hessians, products = count_hessians(config), _products(config, N)
    bound = ", at most" if _stops(config) else ""
    work: list[Row] = [(f"products{bound}", f"{products:,}", f"{products * hessians:,}")]
    kept = _disk(config, N)
    made = products * N * ITEMS[config.hessian.dtype] * config.launcher.keep_products
    rest: list[Row] = [
        (f"disk: products, until the end{bound}", decimal(made), ""),
        ("disk: what stays", decimal(kept), decimal(training_disk(config, N) + hessians * kept)),
    ]
    memory = _memory(config, N)
    notes = [
        f"memory   a task about {decimal(memory)} besides the network and its activations; and "
        f"{decimal(python_memory())} for Python with PyTorch, as this process.",
        *memory_warnings(config, {config.method: memory}),
    ]
    if one is not None:
        rest += [
            ("time: a product", duration(one), ""),
            (f"time: all{bound}", duration(one * products), duration(one * products * hessians)),
        ]
        notes.append(
            "time     of products timed here, one task after the other; training, figures, queue "
            "and the start of Python are not in it."
        )
    return Plan(work, rest, notes)


def _products(config: Config, N: int) -> int:
    """The most products of one Hessian."""
    return {
        "lanczos": config.lanczos.max_products or N,
        "trace": config.trace.products,
        "density": config.density.runs * config.density.steps,
    }[config.method]


def _stops(config: Config) -> bool:
    """Whether it may end before."""
    return config.method == "lanczos" or (config.method == "trace" and bool(config.trace.tol))


def _together(config: Config, N: int) -> int:
    """The columns of a product, at most."""
    if config.method == "lanczos":
        return config.lanczos.block_size
    asked = config.trace.products if config.method == "trace" else config.density.runs
    held = max(1, BLOCK_BYTES // (N * ITEMS[config.hessian.dtype]))
    return min(MOST_TOGETHER, held, asked)


def _memory(config: Config, N: int) -> int:
    """The bytes of the vectors that a task holds, and of eigenpairs that are known."""
    vector, source, run = N * ITEMS[config.hessian.dtype], source_of(config), RunDir(config.run_dir)
    vectors = 2 * _together(config, N)  # a block and its product
    if config.method == "lanczos":
        k = config.lanczos.k
        vectors += k + max(min(BLOCK_BYTES // vector, 4 * k + 100), 2 * k + 1, 20)
    elif config.method == "trace":
        vectors += math.ceil(BASES[config.trace.estimator] * config.trace.products)
    else:
        vectors += 2 * _together(config, N)  # the vectors before
    if source in run.methods:
        theirs = run.load(source)
        vectors += theirs.lanczos.k if theirs.method == "lanczos" else theirs.sketch.outer
    return vectors * vector


def _disk(config: Config, N: int) -> int:
    """The bytes that one Hessian leaves."""
    if config.method != "lanczos":
        return SMALL
    k, item = config.lanczos.k, ITEMS[config.hessian.dtype]
    return SMALL + HEADER + stored_size((N, k), item, even_width(k, CHUNK_COLUMNS))


def _seconds(config: Config) -> float:
    """The seconds of a product here."""
    with operator_here(config, config.method) as op:
        columns = _together(config, op.shape[0])
        X = torch.ones(op.shape[0], columns, dtype=op.dtype, device=op.device)
        return repeated(lambda: (op @ X).cpu())[1] / columns
