"""What Slurm costs where the model costs nothing: 3,000 blocks in arrays beyond MaxArraySize.

Brings up slurm/devcluster with one node a core, where a job fills a node, submits single columns of
a quadratic's Hessian, and waits for the end: some minutes.
"""

from __future__ import annotations

import importlib
import json
import re
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median

from benchmarks.devcluster import CORES, cluster, says, skerch, wait_for_all
from benchmarks.harness import QUADRATIC, Benchmark, Options, apart, say, table

BENCHMARK = Benchmark("docs/performance.md", make="overhead")
WIDTH = 25  # blocks a task


def measure(options: Options) -> Iterator[str]:
    """Commands and the whole, a task by its parts, and the same in one process."""
    sizes = ("sketch.outer=10", "sketch.inner=2970", "sketch.probes=30")
    submit = ("submit", str(QUADRATIC), *sizes, "sketch.recovery=oversampled", "sketch.rounds=1")
    submit += ("launcher.fuse=false",)  # a task's parts, and those of its job
    with tempfile.TemporaryDirectory(prefix="skerch-overhead-") as folder, cluster(folder):
        many = queue_all(submit, f"{folder}/many")
        run, begin = f"{folder}/run", time.time()
        out, submitting = skerch(*submit, f"run_dir={run}", f"launcher.blocks_per_task={WIDTH}")
        say(out)
        wait_for_all()
        step, records = Path(run, "seigh/step-000000-test"), Path(run, "logs/tasks.jsonl")
        if not (step / "overlap.json").exists():
            raise RuntimeError(skerch("status", run)[0])
        array = step / "measurements" / "round-1"
        blocks = written(sorted(array.glob("blocks/*.h5")), begin)
        laid_out, end = written([array / "manifest.json", step / "overlap.json"], begin)
        arrays = [job for job, task in jobs(out).items() if ".measure-" in task]
        elements = times(arrays)
        lines = map(json.loads, filter(None, records.read_text(encoding="utf-8").splitlines()))
        inside = [line["seconds"] for line in lines if ".measure-" in line["id"]]
        assert len(inside) == len(elements), "a task ran twice"
        measuring = max(e for _, e in elements) - min(s for s, _ in elements)
        version, status = says("sbatch", "-V").strip(), status_seconds(run)
        found = [apart(anatomy, run) for _ in range(3)]

    here = f"{version}, {CORES} cores, as many nodes, one task a node at a time"
    yield f"`python -m benchmarks slurm`, {here}"
    rows = [
        ("arrays, of at most 100 tasks as MaxArraySize is 101", len(arrays), many["jobs"] - 5),
        ("calls of `sbatch`, with those for the other stages", len(jobs(out)), many["jobs"]),
        ("`submit`", f"{submitting:.1f} s", f"{many['submit']:.1f} s"),
        ("`submit` again, when all are queued", "", f"{many['again']:.1f} s"),
        ("`status --json`", f"{status:.1f} s", f"{many['status']:.1f} s"),
        ("`cancel`", "", f"{many['cancel']:.1f} s"),
        ("from `submit` to the layout, after a training of no steps", f"{laid_out:.1f} s", ""),
        ("from `submit` to the first block", f"{min(blocks):.1f} s", ""),
        ("measuring", f"{measuring:.0f} s", ""),
        ("from `submit` to the overlap", f"{end:.0f} s", ""),
    ]
    count = f"{len(blocks):,}"
    yield table((f"{count} blocks", f"in {len(elements)} tasks", f"in {count}, not run"), rows)
    slot, job = measuring * CORES / len(elements), fmean(e - s for s, e in elements)
    tasks = (blocks[first : first + WIDTH] for first in range(0, len(blocks), WIDTH))
    further = median(b - a for task in tasks for a, b in pairwise(task))
    rows = [
        (f"measuring × {CORES} / tasks", f"{slot:.2f}"),
        ("until Slurm fills a free node", f"{slot - job:.2f}"),
        ("batch script, srun, Python without torch, the job's end", f"{job - fmean(inside):.2f}"),
        ("the task: torch, inputs, first matvec, blocks", f"{fmean(inside):.2f}"),
        ("a further block, median", f"{further:.4f}"),
    ]
    yield table((f"a task of {WIDTH} blocks, mean", "s"), rows)
    rows = [(name, f"{1e3 * median(each[name] for each in found):.1f}") for name in found[0]]
    yield table(("the same in one process, without Slurm", "ms"), rows)


def queue_all(submit: tuple[str, ...], run: str) -> dict[str, float]:
    """The jobs of one block a task, and seconds of commands on them; nothing runs."""
    submit = (*submit, f"run_dir={run}", "launcher.blocks_per_task=1")
    out, seconds = skerch(*submit, "resources.train.sbatch={begin: now+1day}")
    say(out.splitlines()[-1])
    found = {"jobs": len(jobs(out)), "submit": seconds, "status": status_seconds(run)}
    return found | {"again": skerch(*submit)[1], "cancel": skerch("cancel", run)[1]}


def jobs(out: str) -> dict[str, str]:
    """The tasks of each job, by its id, as `submit` prints them."""
    return dict(re.findall(r"^job (\d+): (\S+)", out, re.MULTILINE))


def status_seconds(run: str) -> float:
    """Of `status --json`, the median of three."""
    return median(skerch("status", run, "--json")[1] for _ in range(3))


def written(paths: list[Path], begin: float) -> list[float]:
    """When files were written, in seconds from the begin."""
    return [path.stat().st_mtime - begin for path in paths]


def times(ids: list[str]) -> list[tuple[float, ...]]:
    """Start and end of all jobs and elements of arrays of these ids, to the second."""
    command = ("-h", "-r", "-t", "all", "-j", ",".join(ids), "-O", "StartTime:.30|,EndTime:.30")
    rows = [map(str.strip, row.split("|")) for row in says("squeue", *command).splitlines()]
    return [tuple(datetime.fromisoformat(word).timestamp() for word in row) for row in rows]


def anatomy(run_dir: str) -> dict[str, float]:
    """Do in this process what a task does: the median seconds of each part."""
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
    from skerch.curvature.strategies import Choice
    from skerch.jobs import pipeline
    from skerch.jobs.run_dir import RunDir
    from skerch.jobs.stages import context, inputs, measure, operator, sketch
    from skerch.measurements.array import MeasurementArray

    lap("other imports")
    torch.set_num_threads(1)
    run = RunDir(Path(run_dir))
    config = run.load("seigh")
    pipeline.tasks(config)
    lap("config and list of tasks")
    of_step = context.Context(run, config, "seigh", 0, "test")
    manifest = sketch.SketchFiles(of_step).array(1).manifest
    op = operator.curvature_operator(config, inputs.load_inputs(of_step), Choice("loop", 1))
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
    return {name: median(values) for name, values in laps.items()}
