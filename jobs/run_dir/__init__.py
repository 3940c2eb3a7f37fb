"""What lies where in a run directory, and of what it is. This face and `paths` import no torch."""

from skerch.jobs.config import method_name
from skerch.jobs.run_dir.paths import (
    RunDir,
    StepDir,
    command,
    find_run,
    find_runs,
    find_sweep,
    shown,
)

__all__ = [
    "RunDir",
    "StepDir",
    "command",
    "find_run",
    "find_runs",
    "find_sweep",
    "method_name",
    "shown",
]
