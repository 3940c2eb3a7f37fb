"""Is this cluster fit for skerch? All checks, as a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from skerch.errors import UsageError
from skerch.files import write_atomically
from skerch.jobs.commands.doctor import Finding, asked, folder, mpi, nodes, slurm
from skerch.jobs.commands.init import cluster_file
from skerch.jobs.config import load
from skerch.jobs.config.resources import Resources, resources
from skerch.jobs.launchers.slurm import facts
from skerch.jobs.launchers.slurm.programs import SlurmError

COLOURS = {"ok": "green", "note": "dim", "warning": "yellow", "fault": "red"}


def print_doctor(
    where: Path, cluster: Path | None, write: Path | None, *, jobs: bool, wait: float, as_json: bool
) -> bool:
    """Print what is found, section by section; true if nothing is a fault.

    Raises ConfigError for a cluster file that cannot be read, UsageError where none can be written,
    where the folder is none, and for a negative time.
    """
    if not wait >= 0:
        raise UsageError(f"--wait {wait:g} must be 0 seconds or more.")
    if write is not None and write.exists():
        raise UsageError(f"--write {write} is there already; name a new file, or remove it.")
    if write is not None and not write.parent.is_dir():
        raise UsageError(f"--write {write}: there is no folder {write.parent}; make it first.")
    wanted = resources(load("digits", [f"cluster={cluster}"])) if cluster else {}
    output = Console(stderr=as_json)
    found: list[dict[str, str]] = []

    def show(title: str, rows: Iterable[Finding]) -> bool:
        """Print a section as soon as it is known; true if nothing in it is a fault."""
        rows = list(rows)
        found.extend({"subject": title, **asdict(row)} for row in rows)
        if not as_json:
            output.print(_table(title, rows))
        return all(row.state != "fault" for row in rows)

    with output.status("half a minute, and what a job waits in the queue"):
        where = where.absolute()
        sound = show("Folder", folder.try_here(where))
        partitions, rows = slurm.ask()
        show("Slurm", rows)
        if partitions and jobs and sound:
            measure = wanted.get("measure", Resources())
            show("Nodes", nodes.try_nodes(where, partitions, measure, wait))
        show("MPI", mpi.findings())
        if partitions and wanted:
            show("Cluster file", asked.findings(wanted, partitions, where))
        if write:
            show("New cluster file", [_write(write)])
    fit = all(row["state"] != "fault" for row in found)
    if as_json:
        print(json.dumps({"fit": fit, "findings": found}, indent=1))
    return fit


def _write(path: Path) -> Finding:
    try:
        text = cluster_file(facts.partitions())
    except SlurmError as error:
        return Finding(str(path), "fault", f"not written: {error}")
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return Finding(str(path), "ok", "written; look through it, then try it with --cluster")


def _table(title: str, rows: list[Finding]) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, show_header=False
    )
    table.add_column(no_wrap=True, min_width=7)
    table.add_column(no_wrap=True, min_width=13)
    table.add_column(overflow="fold")
    for row in rows:
        words = row.found + (f"\n→ {row.remedy}" if row.remedy else "")
        table.add_row(Text(row.state, COLOURS[row.state]), Text(row.check), Text(words))
    return table
