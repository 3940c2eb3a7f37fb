"""A folder to begin with: an experiment, a problem to replace, and what Slurm's partitions are."""

from __future__ import annotations

import json
from functools import partial
from importlib.resources import files
from pathlib import Path

from skerch.errors import SkerchError
from skerch.files import write_atomically
from skerch.jobs.launchers.slurm import facts, programs
from skerch.jobs.run_dir import command


def init(folder: Path) -> None:
    """Write the files and print what to type next.

    Raises SkerchError where one of them is there already.
    """
    texts = {
        "experiment.yaml": (files("skerch.config") / "init" / "experiment.yaml").read_text(
            encoding="utf-8"
        ),
        "problem.py": (files("skerch.jobs.problems") / "_template.py").read_text(encoding="utf-8"),
    }
    named = json.dumps(f"runs/{folder.absolute().name}", ensure_ascii=False)  # and YAML
    texts["experiment.yaml"] = texts["experiment.yaml"].replace("runs/DIR", named)
    try:
        texts["cluster.yaml"] = cluster_file(facts.partitions())
        cluster = f"{folder / 'cluster.yaml'}, filled from sinfo: look through it"
    except programs.SlurmError as error:
        cluster = f"no file is written: {error}"
    for name in texts:
        if (folder / name).exists():
            raise SkerchError(f"{folder / name} is there already; give a new folder, or remove it.")
    for name, text in texts.items():
        write_atomically(folder / name, partial(_write, text))
    print(f"experiment {folder / 'experiment.yaml'}: what is asked for")
    print(f"problem    {folder / 'problem.py'}: put your model, data and loss there")
    print(f"cluster    {cluster}\nnext:")
    experiment = (folder / "experiment.yaml").absolute()
    for verb in ("check", "plan", "run"):
        print(f"  {command(verb, experiment)}")
    if "cluster.yaml" in texts:
        cluster = f"cluster={folder / 'cluster.yaml'}"
        print(f"  {command('submit', experiment, cluster)}")


def _write(text: str, temporary: Path) -> None:
    temporary.write_text(text, encoding="utf-8")


def cluster_file(partitions: list[facts.Partition]) -> str:
    """A cluster file for the default partition, and for the one with GPUs if there is such."""
    default = next((each for each in partitions if each.default), partitions[0])
    gpus = next((each for each in partitions if each.gpus), None)
    hours = default.longest is None or default.longest >= 60
    lines = [
        "# What jobs ask for, from what sinfo says here:",
        _row("partition", "nodes", "CPUs", "MiB a node", "time limit", "GPUs"),
        *(_row(p.name, p.nodes, p.cpus, p.memory, p.time, p.gpus) for p in partitions),
        "# config/cluster/gpu.yaml of skerch's clone explains every key. Sections are `all`, and",
        "# stages over it. python -m skerch plan experiment.yaml --calibrate tells what they need.",
        "all:",
        f"  partition: {default.name}",
        f"  cpus: {min(4, default.cpus)}",
        f"  memory: {min(16_000, default.memory * 3 // 4)}M",
        f"  time: {'1h' if hours else f'{default.longest}min'}",
        "  account: null   # sacctmgr show associations user=$USER; null: your default one",
        "  setup: []       # shell lines in each job, as [module load cuda]",
        "measure:",
        "  throttle: 64    # tasks of an array that run at once",
    ]
    if gpus:
        lines += [f"  partition: {gpus.name}", "  gpus: 1"]
        lines += [f"train: {{partition: {gpus.name}, gpus: 1}}"]
    return "\n".join([*lines, ""])


def _row(name: str, *cells: object) -> str:
    nodes, cpus, memory, time, gpus = cells
    return f"#   {name:14} {nodes:>6} {cpus:>5} {memory:>11} {time:>13}  {gpus}".rstrip()
