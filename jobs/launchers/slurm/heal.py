"""The job that ends a chain: it submits what is missing, and writes the report of what is there.

    python -m skerch.jobs.launchers.slurm.heal RUN --name seigh

Its exit status is 1 where it gives up, so that mail_type=FAIL tells.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

PERSISTENCE = 900  # seconds for which a busy Slurm, and a locked run, are asked again


def main() -> None:
    """Heal, then report."""
    from skerch.errors import SkerchError
    from skerch.files import print_always, refusals_named
    from skerch.jobs.launchers.slurm import programs
    from skerch.jobs.launchers.slurm.submit import submit
    from skerch.jobs.run_dir import RunDir
    from skerch.jobs.run_dir.binding import LockedError

    parser = argparse.ArgumentParser(prog="python -m skerch.jobs.launchers.slurm.heal")
    parser.add_argument("run", type=Path, help="the run directory")
    parser.add_argument("--name", help="the method's folder; default: that of the latest run")
    options = parser.parse_args()
    print_always()
    os.environ.setdefault(programs.PERSISTENCE, str(PERSISTENCE))
    well, end = False, time.monotonic() + PERSISTENCE
    while True:
        try:
            with refusals_named():
                well = submit(RunDir(options.run).load(options.name), heal=True)
        except LockedError as error:
            if time.monotonic() < end:
                time.sleep(5.0)
                continue
            print(f"error: {error}", file=sys.stderr)
        except SkerchError as error:
            print(f"error: {error}", file=sys.stderr)
        break
    report = subprocess.run([sys.executable, "-m", "skerch", "report", str(options.run)])
    sys.exit(0 if well and not report.returncode else 1)


if __name__ == "__main__":
    main()
