"""The tasks of one Kronecker-factored Fisher matrix.

layers → factors … → factors_merge … (once a pass) → eigenbasis … → (correction … →
correction_merge … →) assess

Factors and corrections are sums over parts of the datapoints, each a file, as are those of each
partition of the layers. Partial sums vanish with the merge that adds them up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from skerch.analysis.results import KroneckerResults
from skerch.jobs.config import Config
from skerch.jobs.pipeline.pairs import check_source
from skerch.jobs.pipeline.task import Task, refusal
from skerch.jobs.run_dir import RunDir, StepDir, method_name, provenance, results_file
from skerch.kronecker.methods import METHODS


def check(config: Config, N: int) -> None:
    """Refuse eigenpairs to compare with that are not there, or of another loss."""
    check_source(config)


def is_corrected(config: Config) -> bool:
    """Whether eigenvalues are those of the Fisher matrix in the factors' eigenbasis."""
    asked = config.kronecker.correction
    return bool(METHODS[config.method].corrected if asked is None else asked)


def count_passes(config: Config) -> int:
    """How often factors are summed up."""
    return config.kronecker.iterations if config.method == "nearest" else 1


def factor_file(config: Config, directory: StepDir, number: int, partition: int) -> Path:
    """The factors of a partition after a pass; those of the last one stay."""
    if number < count_passes(config):
        return directory.partial("merged", number, partition)
    return directory.tensors("factors", partition, config.kronecker.partitions)


def hessian_tasks(config: Config, run: RunDir, step: int, split: str) -> Iterator[Task]:
    """The tasks of one Hessian."""
    name, asked, p = method_name(config), config.kronecker, config.launcher.blocks
    directory, partitions = run.step(name, step, split), range(asked.partitions)
    units = asked.count_parts(config.hessian.datapoints) * asked.partitions

    def task(
        stage: str, outputs: list[Path], needs: list[Task], suffix: str = "", **arguments: Any
    ) -> Task:
        return Task(
            f"{name}.{directory.path.name}.{stage}{suffix}",
            stage,
            {"name": name, "step": step, "split": split, **arguments},
            tuple(outputs),
            ("train", *(need.id for need in needs)),
        )

    def sums(stage: str, needs: list[Task], number: int) -> list[Task]:
        files = [directory.partial(stage, number, unit) for unit in range(units)]
        return [
            task(
                stage,
                files[index * p : (index + 1) * p],
                needs,
                f"-{number}.{index}",
                round=number,
                tasks=[index],
            )
            for index in range(-(-units // p))
        ]

    def merged(stage: str, files: list[Path], needs: list[Task], number: int = 1) -> list[Task]:
        return [
            task(stage, [file], needs, f"-{number}.{index}", round=number, tasks=[index])
            for index, file in enumerate(files)
        ]

    layers = task("layers", [directory.provenance, directory.layers], [])
    yield layers
    made: list[Task] = []
    for number in range(1, count_passes(config) + 1):
        parts = sums("factors", [layers, *made], number)
        yield from parts
        files = [factor_file(config, directory, number, partition) for partition in partitions]
        made = merged("factors_merge", files, [layers, *parts, *made], number)
        yield from made
    factors = made if config.method == "nearest" else []  # which tell how far they are settled
    made = merged("eigenbasis", _files(directory, "eigenbasis", config), [layers, *made])
    yield from made
    if is_corrected(config):
        parts = sums("correction", [layers, *made], 1)
        yield from parts
        files = _files(directory, "eigenvalues", config)
        values = merged("correction_merge", files, [layers, *parts, *made])
        yield from values
        made += values
    outputs = [run.result(config, step, split), run.figure(name, step, split)]
    yield task("assess", outputs, [layers, *factors, *made])


def _files(directory: StepDir, what: str, config: Config) -> list[Path]:
    count = config.kronecker.partitions
    return [directory.tensors(what, partition, count) for partition in range(count)]


def damage(directory: StepDir, outputs: Iterable[Path]) -> Iterator[str]:
    """A sentence on each output in a Hessian's folder that cannot be read as it was written."""
    from skerch.jobs.run_dir.layers_file import LayersFile
    from skerch.kronecker import files  # imports torch

    for path in outputs:
        if path == directory.provenance:
            yield from refusal(path, partial(provenance.read, path))
        elif path == directory.layers:
            yield from refusal(path, partial(results_file.read, path, LayersFile))
        elif path.suffix == ".safetensors":
            yield from refusal(path, partial(files.read, path))
        elif path.suffix == ".json":
            yield from refusal(path, partial(results_file.read, path, KroneckerResults))
