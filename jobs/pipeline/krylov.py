"""The task of one Hessian by a Krylov method: lanczos, trace or density.

A stage of the method's name does all of it; a task that was stopped goes on with the products that
its last attempt has left. With `deflate` it reads eigenpairs that another method has found.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from skerch.analysis.results import DensityResults, LanczosResults, TraceResults
from skerch.jobs.config import Config, ConfigError
from skerch.jobs.pipeline.pairs import check_source
from skerch.jobs.pipeline.task import Task, refusal
from skerch.jobs.run_dir import RunDir, StepDir, method_name, provenance, results_file


def hessian_tasks(config: Config, run: RunDir, step: int, split: str) -> Iterator[Task]:
    """The task of one Hessian."""
    name, stage = method_name(config), config.method
    where = name, step, split
    directory = run.step(*where)
    outputs = [directory.provenance, run.result(config, step, split), run.figure(*where)]
    if stage == "lanczos":
        outputs.append(directory.eigh)
    yield Task(
        f"{name}.{directory.path.name}.{stage}",
        stage,
        {"name": name, "step": step, "split": split},
        tuple(outputs),
        ("train",),
    )


def check(config: Config, N: int) -> None:
    """Refuse more pairs than there are, and known ones that are not there or of another matrix.

    Raises:
        ConfigError: it is so.
    """
    if config.method == "lanczos" and config.lanczos.k > N:
        raise ConfigError(
            f"lanczos.k={config.lanczos.k} eigenpairs are more than the dimension N={N}; take "
            f"k ≤ {N}."
        )
    if config.method == "density" and config.density.steps > N:
        raise ConfigError(
            f"density.steps={config.density.steps} are more than the dimension N={N}; take "
            f"steps ≤ {N}."
        )
    check_source(config, "curvature")


def damage(directory: StepDir, outputs: Iterable[Path]) -> Iterator[str]:
    """A sentence on each output in a Hessian's folder that cannot be read as it was written."""
    from skerch.hdf5 import verify  # h5py takes a tenth of a second

    kinds = {"lanczos": LanczosResults, "trace": TraceResults, "density": DensityResults}
    for path in outputs:
        if path == directory.provenance:
            yield from refusal(path, partial(provenance.read, path))
        elif path.suffix == ".h5":
            yield from refusal(path, partial(verify, path))
        elif path.suffix == ".json":
            yield from refusal(path, partial(results_file.read, path, kinds[path.stem]))
