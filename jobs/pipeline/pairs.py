"""Eigenpairs of another method of the run, which a method reads."""

from __future__ import annotations

from skerch.jobs.config import Config, ConfigError, difference, identity
from skerch.jobs.config.pairs import source_key, source_of
from skerch.jobs.run_dir import RunDir, command

SAME = ("datapoints", "subset", "mode", "param_filter")  # of matrices of the same loss


def check_source(config: Config, *others: str) -> None:
    """Refuse eigenpairs that are not there, or are of another loss or differ in `others`.

    Raises:
        ConfigError: it is so.
    """
    run, source = RunDir(config.run_dir), source_of(config)
    if source is None:
        return
    key = f"{source_key(config)}={source}"
    if source not in run.methods:
        raise ConfigError(
            f"{key}: {run.path} has no {source} yet; run a method with eigenpairs there first, "
            "seigh or lanczos, or leave it at null."
        )
    theirs, ours = (identity(each, "method")["hessian"] for each in (run.load(source), config))
    changes = difference(*({key: of[key] for key in (*others, *SAME)} for of in (theirs, ours)))
    if changes:
        raise ConfigError(f"{key} has eigenpairs of another matrix: {'; '.join(changes)}.")
    for step in config.training.record_steps:
        for split in config.hessian.splits:
            path = run.step(source, step, split).eigh
            if not run.result(config, step, split).exists() and not path.exists():
                raise ConfigError(
                    f"{key} has no eigenpairs of step {step}, {split}; wait for them, or run it: "
                    f"{command('run', run.hessian_config(source))}"
                )
