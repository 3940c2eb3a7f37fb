"""What Slurm costs where the model costs nothing: 3,000 blocks in arrays beyond MaxArraySize.

    python benchmarks/slurm_overhead.py [--blocks-per-task 25]

Brings up slurm/devcluster with one node a core, where a job fills a node, submits single columns of
a quadratic's Hessian, waits for the end, and prints Markdown. Takes some minutes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "slurm" / "devcluster" / "devcluster.sh"
CORES = len(os.sched_getaffinity(0))
PROBLEM = """
import torch
from torch.utils.data import TensorDataset
from skerch.jobs.problems import Problem


class Quadratic(torch.nn.Module):
    def __init__(self, n):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.ones(n))

    def forward(self, _):
        return self.theta


def make(n):
    curvature = 1 / torch.arange(1.0, n + 1)
    return Problem(
        lambda: Quadratic(n),
        lambda split: TensorDataset(torch.zeros(1, 1)),
        lambda model, batch: (curvature * model(batch[0]) ** 2).sum() / 2,
    )
"""
EXPERIMENT = """
problem: {factory: "quadratic:make", n: 3000}
training: {max_steps: 0, record_steps: [0], batch_size: 1}
hessian: {splits: [test], datapoints: 1, subset: first, strategy: loop}
sketch: {recovery: oversampled, outer: 10, inner: 2970, probes: 30, block_size: 1}
launcher: {threads: 1}
cluster: devcluster
resources: {all: {cpus: 4, memory: 2G}, measure: {throttle: null}}
"""


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--blocks-per-task", type=int, default=25)
    parser.add_argument("--anatomy", type=Path, metavar="RUN", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.anatomy:
        print(json.dumps(anatomy(options.anatomy)))
        return
    with tempfile.TemporaryDirectory(prefix="skerch-overhead-") as folder, cluster(Path(folder)):
        os.chdir(folder)
        Path("quadratic.py").write_text(PROBLEM)
        Path("overhead.yaml").write_text(EXPERIMENT)
        many = queue_all()
        run(options.blocks_per_task, many)


@contextmanager
def cluster(folder: Path, nodes: int = CORES) -> Iterator[None]:
    """A devcluster that remembers all jobs, for the commands of this process."""
    directory = str(folder / "cluster")
    os.environ |= {
        "DEVCLUSTER_MIN_JOB_AGE": "86400",
        "SLURM_CONF": f"{directory}/slurm.conf",
        "OMP_NUM_THREADS": "1",
    }
    try:
        subprocess.run([SCRIPT, "up", "--nodes", str(nodes), directory], check=True, stdout=2)
        yield
    finally:
        subprocess.run([SCRIPT, "down", directory])


def skerch(*arguments: str) -> tuple[str, float]:
    """What a command prints, and the seconds that it takes."""
    begin = time.monotonic()
    command = [sys.executable, "-m", "skerch", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout, time.monotonic() - begin


def status_seconds(run_dir: str) -> float:
    """Of `status --json`, the median of three."""
    return statistics.median(skerch("status", run_dir, "--json")[1] for _ in range(3))


def queue_all() -> dict[str, float]:
    """The jobs of one block a task, and seconds of commands on them; nothing runs."""
    submit = ("overhead.yaml", "run_dir=many", "launcher.blocks_per_task=1")
    later = "resources.train.sbatch={begin: now+1day}"
    out, seconds = skerch("submit", *submit, later)
    say(out.splitlines()[-1])
    figures = {"jobs": len(jobs(out)), "submit": seconds, "status": status_seconds("many")}
    return figures | {"again": skerch("submit", *submit)[1], "cancel": skerch("cancel", "many")[1]}


def jobs(out: str) -> dict[str, str]:
    """The tasks of each job, by its id, as `submit` prints them."""
    return dict(re.findall(r"^job (\d+): (\S+)", out, re.MULTILINE))


def run(blocks_per_task: int, many: dict[str, float]) -> None:
    """Submit, wait, and print what it took."""
    begin = time.time()
    options = ("run_dir=run", f"launcher.blocks_per_task={blocks_per_task}")
    out, submit = skerch("submit", "overhead.yaml", *options)
    say(out)
    while squeue("-h", "-t", "PENDING,RUNNING,COMPLETING"):
        time.sleep(1)
    folder = Path("run/seigh/step-000000-test")
    if not (folder / "overlap.json").exists():
        sys.exit(skerch("status", "run")[0])
    end = (folder / "overlap.json").stat().st_mtime
    arrays = [job for job, task in jobs(out).items() if ".measure-" in task]
    spans = times(arrays)
    lines = Path("run/logs/tasks.jsonl").read_text().splitlines()
    records = [r for line in lines if line and ".measure-" in (r := json.loads(line))["id"]]
    tasks = len(spans)
    assert len(records) == tasks, "a task ran twice"
    measuring = max(e for _, e in spans) - min(s for s, _ in spans)
    slot = measuring * CORES / tasks
    job = mean_length(spans)
    inside = statistics.mean(record["seconds"] for record in records)
    files = sorted(folder.glob("measurements/round-1/blocks/*.h5"))
    blocks = [path.stat().st_mtime for path in files]
    p = blocks_per_task
    gaps = [b - a for t in range(tasks) for a, b in pairwise(blocks[t * p : (t + 1) * p])]
    laid_out = (folder / "measurements/round-1/manifest.json").stat().st_mtime
    alone = anatomy_of("run")
    version = subprocess.run(["sbatch", "-V"], stdout=subprocess.PIPE, text=True).stdout.strip()

    print(
        f"`python benchmarks/slurm_overhead.py --blocks-per-task {blocks_per_task}`, {version}, "
        f"{CORES} cores, as many nodes, one task a node at a time\n"
    )
    rows = [
        ("arrays, of at most 100 tasks as MaxArraySize is 101", len(arrays), many["jobs"] - 5),
        ("calls of `sbatch`, with those for the other stages", len(jobs(out)), many["jobs"]),
        ("`submit`", f"{submit:.1f} s", f"{many['submit']:.1f} s"),
        ("`submit` again, when all are queued", "", f"{many['again']:.1f} s"),
        ("`status --json`", f"{status_seconds('run'):.1f} s", f"{many['status']:.1f} s"),
        ("`cancel`", "", f"{many['cancel']:.1f} s"),
        (
            "from `submit` to the layout, after a training of no steps",
            f"{laid_out - begin:.1f} s",
            "",
        ),
        ("from `submit` to the first block", f"{min(blocks) - begin:.1f} s", ""),
        ("measuring", f"{measuring:.0f} s", ""),
        ("from `submit` to the overlap", f"{end - begin:.0f} s", ""),
    ]
    heads = (f"{len(blocks):,} blocks", f"in {tasks} tasks", f"in {len(blocks):,}, not run")
    print_table(heads, rows)
    rows = [
        (f"measuring × {CORES} / tasks", f"{slot:.2f}"),
        ("until Slurm fills a free node", f"{slot - job:.2f}"),
        ("batch script, srun, Python without torch, the job's end", f"{job - inside:.2f}"),
        ("the task: torch, inputs, first matvec, blocks", f"{inside:.2f}"),
        ("a further block, median", f"{statistics.median(gaps):.4f}"),
    ]
    print_table((f"a task of {blocks_per_task} blocks, mean", "s"), rows)
    rows = [(name, f"{1e3 * seconds:.1f}") for name, seconds in alone.items()]
    print_table(("the same in one process, without Slurm", "ms"), rows)


def times(ids: list[str]) -> list[tuple[float, ...]]:
    """Start and end of all jobs and elements of arrays of these ids, to the second."""
    command = ("-h", "-r", "-t", "all", "-j", ",".join(ids), "-O", "StartTime:.30|,EndTime:.30")
    rows = [map(str.strip, row.split("|")) for row in squeue(*command).splitlines()]
    return [tuple(datetime.fromisoformat(word).timestamp() for word in row) for row in rows]


def mean_length(spans: list[tuple[float, ...]]) -> float:
    """The mean seconds from start to end."""
    return statistics.mean(end - start for start, end in spans)


def squeue(*arguments: str) -> str:
    """What squeue says."""
    return subprocess.run(
        ["squeue", *arguments], check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def say(progress: str) -> None:
    """A line of progress."""
    print(progress, file=sys.stderr, flush=True)


def print_table(heads: Iterable[object], rows: Iterable[Iterable[object]]) -> None:
    """A Markdown table."""
    heads = list(heads)
    for row in (heads, ["---", *["---:"] * (len(heads) - 1)], *rows):
        print(f"| {' | '.join(map(str, row))} |")
    print(flush=True)


def anatomy_of(run_dir: str) -> dict[str, float]:
    """Seconds of each part of a measurement task, medians of three processes."""
    command = [sys.executable, __file__, "--anatomy", run_dir]
    found = [
        json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        for _ in range(3)
    ]
    return {name: statistics.median(each[name] for each in found) for name in found[0]}


def anatomy(run_dir: Path) -> dict[str, float]:
    """Do in this process what a task does, and time the parts."""
    laps: dict[str, list[float]] = {}
    last = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal last
        now = time.perf_counter()
        laps.setdefault(name, []).append(now - last)
        last = time.perf_counter()

    import torch

    lap("import torch")
    importlib.import_module("skerch.jobs.launchers.slurm.task")
    from skerch.curvature.backends import Choice
    from skerch.jobs import pipeline
    from skerch.jobs.run_dir import RunDir
    from skerch.jobs.stages import context as stage
    from skerch.jobs.stages import measure
    from skerch.jobs.stages import operator as operators
    from skerch.measurements.array import MeasurementArray

    lap("other imports")
    torch.set_num_threads(1)
    run = RunDir(run_dir)
    config = run.load("seigh")
    pipeline.tasks(config)
    lap("config and list of tasks")
    context = stage.Context(run, config, "seigh", 0, "test")
    manifest = context.array(1).manifest
    inputs = operators.load_inputs(context)
    op = operators.hessian_operator(config, inputs, Choice("loop", 1))
    measurer = measure.Measurer(manifest, "cpu")
    blocks = manifest.blocks()
    X = measurer.test_vectors(blocks[0])
    lap("reading inputs, sketch maps")
    op @ X
    lap("first matvec (torch imports sympy)")
    with tempfile.TemporaryDirectory(dir=run_dir) as scratch:
        array = MeasurementArray.create(Path(scratch), manifest)
        for block in blocks[:200]:
            arrays = measurer.measure(op, block)
            lap("a block: test vector, matvec, sketches")
            op @ X
            lap("a block: of these the matvec")
            array.write(block, arrays)
            lap("a block: its file")
    return {name: statistics.median(values) for name, values in laps.items()}


if __name__ == "__main__":
    main()
