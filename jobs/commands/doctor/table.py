"""Is this cluster fit for skerch? All checks, as a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from skerch.errors import UsageError
from skerch.files import write_atomically
from skerch.jobs.commands.doctor import asked, folder, mpi, nodes, slurm
from skerch.jobs.commands.doctor.finding import Finding
from skerch.jobs.commands.init import cluster_file
from skerch.jobs.config import load
from skerch.jobs.config.resources import Resources, resources
from skerch.jobs.launchers.slurm import facts

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
    wanted = resources(load("digits", [f"cluster={cluster}"])) if cluster else None
    output, found = Console(), []
    waiting = output.status("") if output.is_terminal and not as_json else nullcontext()
    with waiting as status:
        say = status.update if status is not None else str
        for title, rows in _sections(where.absolute(), wanted, write, jobs, wait, say):
            found += [{"subject": title, **asdict(row)} for row in rows]
            if not as_json:
                output.print(_table(title, rows))
    fit = all(row["state"] != "fault" for row in found)
    if as_json:
        print(json.dumps({"fit": fit, "findings": found}, indent=1))
    return fit


def _sections(
    where: Path,
    wanted: dict[str, Resources] | None,
    write: Path | None,
    jobs: bool,
    wait: float,
    say: Callable[[str], object],
) -> Iterator[tuple[str, list[Finding]]]:
    """Each subject's title and what is found of it, as it is found."""
    say(f"two processes try {where}")
    here = list(folder.try_here(where))
    yield "Folder", here
    say("Slurm is asked")
    cluster, rows = slurm.ask()
    if cluster:
        rows += slurm.findings(cluster)
    yield "Slurm", rows
    if cluster and jobs and all(row.state != "fault" for row in here):
        measure = wanted["measure"] if wanted else Resources()
        yield "Nodes", list(nodes.try_nodes(where, cluster, measure, wait, say))
    say("MPI is tried")
    yield "MPI", list(mpi.findings())
    if wanted and cluster:
        say("Slurm is asked whether it takes what the cluster file asks for")
        yield "Cluster file", list(asked.findings(wanted, cluster.partitions, where))
    if write:
        yield "New cluster file", [_write(write, cluster)]


def _write(path: Path, cluster: slurm.Cluster | None) -> Finding:
    if cluster is None:
        return Finding(str(path), "fault", "not written: Slurm does not tell of partitions")
    text = cluster_file(facts.partitions())
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
