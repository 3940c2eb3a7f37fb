"""How many blocks, or parts, a task measures where `launcher.blocks_per_task` is auto.

Where a task waits in a queue, so many as take ten minutes; a round that takes longer in all is cut
into four tasks at least, if so many may run at once. A block's seconds are those of the run's tasks
so far, or of `plan --calibrate`.
"""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import replace
from statistics import median

from skerch.files import write_atomically
from skerch.jobs.config import Config, ConfigError, identity
from skerch.jobs.config.methods import METHODS
from skerch.jobs.config.resources import resources
from skerch.jobs.config.stages import STAGES
from skerch.jobs.pipeline import task_log
from skerch.jobs.run_dir import RunDir, method_name

BLOCKS = [stage.name for stage in STAGES.values() if stage.array and stage.resumes]
SECONDS = 600.0  # of a task at least
FEW = 4  # tasks of a round that takes longer, at least


def numbered(config: Config, *, queued: bool, live: bool = False) -> tuple[Config, str]:
    """The config with a number of blocks a task, and why it is that.

    What a run has stays while tasks of it are `live`, where no block has been timed, and where none
    is `queued`.
    """
    if config.launcher.blocks_per_task != "auto":
        return config, "as it is asked for"
    there, known = _bound(config), _seconds(config) if queued and not live else None
    if known is None:
        number = there or config.launcher.blocks
        why = "as the run has it" if there else "until a block is timed, as by plan --calibrate"
        why = "as live jobs have it" if live else why if queued else "as none waits in a queue"
    else:
        seconds, source = known
        number = _fitting(seconds, _most_blocks(config), _at_once(config))
        why = f"a block takes {seconds:.3g} s, {source}"
    return replace(config, launcher=replace(config.launcher, blocks_per_task=number)), why


def keep_calibrated(config: Config, seconds: float) -> None:
    """Leave a block's seconds in the run directory."""
    path = RunDir(config.run_dir).calibration(method_name(config))
    content = json.dumps({"seconds": seconds, "of": identity(config, "method")})
    write_atomically(path, lambda temporary: temporary.write_text(content, encoding="utf-8"))


def _fitting(seconds: float, blocks: int, at_once: float) -> int:
    """The blocks of a task."""
    number = max(1, math.ceil(SECONDS / max(seconds, 1e-6)))
    if blocks * seconds > SECONDS:
        number = min(number, math.ceil(blocks / min(FEW, at_once)))
    return min(number, blocks)


def _bound(config: Config) -> int | None:
    """The number that the run has."""
    run, name = RunDir(config.run_dir), method_name(config)
    with suppress(ConfigError):  # it is damaged, and written anew
        return run.load(name).launcher.blocks if name in run.methods else None
    return None


def _seconds(config: Config) -> tuple[float, str] | None:
    """A block's seconds, and whose they are."""
    run, name = RunDir(config.run_dir), method_name(config)
    times = [
        record["seconds"] / record["made"]
        for record in task_log.attempts(run)
        if record["id"].startswith(f"{name}.")
        and record["stage"] in BLOCKS
        and record["error"] is None
        and record["made"]
    ]
    if times:
        return median(times), "as this run's tasks took"
    with suppress(OSError, ValueError, LookupError, TypeError):
        content = json.loads(run.calibration(name).read_text(encoding="utf-8"))
        if content["of"] == identity(config, "method"):
            return float(content["seconds"]), "as plan --calibrate found here"
    return None


def _most_blocks(config: Config) -> int:
    """The blocks of the largest round, or the parts of a pass."""
    if METHODS[config.method].family == "kronecker":
        asked = config.kronecker
        return asked.count_parts(config.hessian.datapoints) * asked.partitions
    size = config.sketch.block_size
    return max(each.count_blocks(size) for each in config.sketch.each_round())


def _at_once(config: Config) -> float:
    """How many tasks of an array may run side by side."""
    stage = "factors" if METHODS[config.method].family == "kronecker" else "measure"
    return resources(config)[stage].throttle or math.inf
