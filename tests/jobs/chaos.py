"""Kill runs at random instants, resume them, and compare every file with an undisturbed run's.

    python tests/jobs/chaos.py --kills 200 [--seed 1] [--experiment digits] [--cold] [key=value …]

Prints Markdown. Exits 1 if a run ended with other bytes, made a finished file again, left a
temporary file or could not go on, or if a stage was never struck.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

# A killed run forks from here, so what it needs is imported here.
import matplotlib.backends.backend_agg  # noqa: F401
import torch._dynamo

from skerch.__main__ import main as skerch
from skerch.jobs import pipeline
from skerch.jobs.commands import results  # noqa: F401
from skerch.jobs.config import Config, load
from skerch.jobs.launchers import complete, local  # noqa: F401
from skerch.jobs.pipeline import Task, task_log
from skerch.jobs.problems import load_data, load_problem
from skerch.jobs.run_dir import RunDir
from skerch.jobs.stages import (  # noqa: F401
    analyze,
    decompose,
    layout,
    measure,
    merge,
    range_finder,
    rounds,
    train,
)
from skerch.jobs.training import session

# Small enough for many runs, large enough for every stage to be struck.
SIZES = [
    "training.max_steps=1000",
    "training.record_steps=[300,1000]",
    "hessian.splits=[test]",
    "hessian.datapoints=200",
    "hessian.strategy=batched",
    "sketch.outer=100",
    "sketch.rounds=2",
    "sketch.block_size=16",
    "launcher.blocks_per_task=2",
    "launcher.workers=2",
    "launcher.threads=1",
]
KILLS_PER_RUN = 5
MORE_KILLS = 40  # at most, until every stage has been struck
CHECKPOINT_SECONDS = 0.2
PATIENCE = 300  # seconds after which a run counts as hanging
BEFORE, BETWEEN = "start, before the first task", "between tasks, and the end"
FAULTS = [
    "files with other bytes",
    "finished files made again",
    "temporary files left",
    "runs that could not go on",
    "runs that hung",
]
# They say when and where a run was made, or depend on when it was killed, or are a mere view.
NOT_COMPARED = ("config.yaml", ".log", "tasks.jsonl", "checkpoint.pt", "_ALL.h5", "report.html")
SUPERSEDED = ("merged.h5", "eigh.h5", "overlap.json")  # as a run grows
FORK = multiprocessing.get_context("fork")
PR_SET_CHILD_SUBREAPER = 36

Marks = dict[Path, tuple[int, int]]


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file that belongs to a run's results, or should not be there."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(NOT_COMPARED)
    }


def finished(folder: Path) -> Marks:
    """The files that are never to be made twice, each with what would change if it were.

    A gradient is one of them as soon as its layout is done, whose last file is the manifest.
    """
    return {
        path: (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in folder.rglob("[!.]*")
        if not path.name.endswith(NOT_COMPARED)
        and (path.name != "gradient.h5" or any(path.parent.rglob("manifest.json")))
        and (
            path.suffix in (".h5", ".safetensors") or path.name in ("manifest.json", "overlap.json")
        )
    }


def stage(task: Task) -> str:
    """A task's stage, and its round where there are several."""
    return " ".join(str(part) for part in (task.stage, task.arguments.get("round")) if part)


class Victim:
    """A process group at work on a run."""

    def __init__(self, config: Config, arguments: list[str], cold: bool):
        self.run = RunDir(config.run_dir)
        self.output = self.run.path.with_suffix(".out")
        self._tasks = pipeline.tasks(config)
        self._before = {task.id: self._log_size(task) for task in self._tasks}
        self._process = FORK.Process(target=_work, args=(arguments, self.output, cold))
        self._process.start()
        pid = self._process.pid
        assert pid is not None
        self._group = pid
        with suppress(OSError):  # it did so itself
            os.setpgid(pid, pid)

    def wait(self, seconds: float) -> int | None:
        """The exit status, or None if it is still at work after so many seconds."""
        self._process.join(seconds)
        return self._process.exitcode

    def has_started(self, task: Task) -> bool:
        """Whether it has started a task."""
        return self._log_size(task) > self._before[task.id]

    def kill(self) -> None:
        """SIGKILL to all of the group, and wait until the last of it is gone."""
        with suppress(ProcessLookupError):
            os.killpg(self._group, signal.SIGKILL)
        self._process.join()
        with suppress(ChildProcessError):
            while True:
                os.waitpid(-self._group, 0)  # its workers: this process adopts orphans

    def struck(self) -> dict[str, bool]:
        """The stages of the tasks that had started and not ended, and whether one left a file."""
        writers = {path.name.split(".")[-2] for path in self.run.path.rglob(".*.tmp")}
        found: dict[str, bool] = {}
        started = [task for task in self._tasks if self.has_started(task)]
        for task in started:
            last = self.run.task_log(task.id).read_text().rpartition(" starts on ")[2]
            if " done, " not in last:
                pid = last.partition("pid ")[2].split()[0]
                found[stage(task)] = found.get(stage(task), False) or pid in writers
        return found or {BETWEEN if started else BEFORE: bool(writers)}

    def _log_size(self, task: Task) -> int:
        path = self.run.task_log(task.id)
        return path.stat().st_size if path.exists() else 0


def _work(arguments: list[str], output: Path, cold: bool) -> None:
    """The command `skerch run`, in a process group of its own."""
    with suppress(OSError):  # the parent did so
        os.setpgid(0, 0)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = ["skerch", "run", *arguments]
    if cold:
        os.execv(sys.executable, [sys.executable, "-m", *sys.argv])
    multiprocessing.get_context = lambda method=None: FORK  # workers need not import anew either
    session.train.__kwdefaults__["checkpoint_seconds"] = CHECKPOINT_SECONDS
    skerch()


class Chaos:
    """Runs of one experiment, killed and resumed, and what was seen."""

    def __init__(self, folder: Path, arguments: list[str], cold: bool, seed: int, first: list[str]):
        self.folder, self.arguments, self.cold, self.first = folder, arguments, cold, first
        self.random = random.Random(seed)
        self.kills = self.aimed = self.runs = 0
        self.struck: Counter[str] = Counter()
        self.writing: Counter[str] = Counter()  # of these, those that left a temporary file
        self.trainings: Counter[bool] = Counter()  # killed, by whether there was a checkpoint
        self.faults: Counter[str] = Counter()

        reference = self.config("reference")
        self.stages = list(dict.fromkeys(stage(task) for task in pipeline.tasks(reference)))
        load_data(load_problem(reference.problem, reference.problem_path), "train")  # its imports
        self.undisturbed(reference, cold=True)  # the command itself
        self.expected = digests(folder / "reference")
        timed = self.config("timed")
        self.total = self.undisturbed(timed, cold)
        records = task_log.records(RunDir(timed.run_dir))
        self.seconds = {task: record["seconds"] for task, record in records.items()}
        self.compare(timed, {})

    def config(self, name: str) -> Config:
        """The experiment in a folder of its own."""
        return load(self.arguments[0], [*self.arguments[1:], f"run_dir={self.folder / name}"])

    def start(self, config: Config, cold: bool, *others: str) -> Victim:
        return Victim(config, [*self.arguments, *others, f"run_dir={config.run_dir}"], cold)

    def undisturbed(self, config: Config, cold: bool, *others: str) -> float:
        """Run without a fault; the seconds that it took."""
        begin = time.monotonic()
        victim = self.start(config, cold, *others)
        status = victim.wait(PATIENCE)
        if status != 0:
            victim.kill()
            sys.exit(f"An undisturbed run ended with {status}:\n{victim.output.read_text()}")
        return time.monotonic() - begin

    def fault(self, kind: str, what: object) -> None:
        self.faults[kind] += 1
        print(f"{kind}: {what}", file=sys.stderr)

    def unstruck(self) -> list[str]:
        """The stages that no kill has struck yet."""
        return [name for name in self.stages if not self.struck[name]]

    def one_run(self) -> None:
        """A run that is killed some times, resumed each time, and completed."""
        config = self.config(f"run-{self.runs:03d}")
        run, tasks = RunDir(config.run_dir), pipeline.tasks(config)
        if self.first:
            self.undisturbed(config, self.cold, *self.first)
            self.stages = list(dict.fromkeys(map(stage, pipeline.missing(tasks))))
        of_fewer = {
            path: mark for path, mark in finished(run.path).items() if path.name in SUPERSEDED
        }
        kept: Marks = {}
        for _ in range(KILLS_PER_RUN):
            missing = pipeline.missing(tasks)
            aimed = self.kills % 2 == 1
            targets = missing
            if aimed:  # at the stage that was struck least so far
                least = min(self.stages, key=lambda name: (self.struck[name], self.random.random()))
                targets = [task for task in missing if stage(task) == least]
            if not targets:
                break
            victim = self.start(config, self.cold)
            target = self.random.choice(targets) if aimed else None
            if self.ends_before_instant(victim, missing, target):
                break
            victim.kill()
            now = finished(run.path).items()
            kept = {path: mark for path, mark in now if of_fewer.get(path) != mark} | kept
            struck = victim.struck()
            self.kills += 1
            self.aimed += aimed
            self.struck.update(struck.keys())
            self.writing.update(name for name, wrote in struck.items() if wrote)
            if "train" in struck:
                self.trainings[run.checkpoint.exists()] += 1
            print(f"{self.kills}: {run.path.name}: {', '.join(struck)}", file=sys.stderr)
        self.complete(config, kept)

    def ends_before_instant(self, victim: Victim, missing: list[Task], target: Task | None) -> bool:
        """Wait for an instant uniform over the target, or else over what is left of the run.

        True if the run ended before.
        """
        left = sum(self.seconds[task.id] for task in missing) / sum(self.seconds.values())
        delay = self.random.uniform(0, self.total * left)
        if target is not None:
            delay = self.random.uniform(0, self.seconds[target.id])
            deadline = time.monotonic() + PATIENCE
            while not victim.has_started(target):
                if victim.wait(0.0005) is not None:
                    return True
                if time.monotonic() > deadline:
                    self.fault("runs that hung", victim.run.path)
                    return False
        return victim.wait(delay) is not None

    def complete(self, config: Config, kept: Marks) -> None:
        """Run once more, to the end, and look for what a kill has spoilt."""
        self.runs += 1
        victim = self.start(config, self.cold)
        status = victim.wait(PATIENCE)
        if status == 0:
            self.compare(config, kept)
            return
        victim.kill()
        kind = "runs that hung" if status is None else "runs that could not go on"
        self.fault(kind, f"{config.run_dir}\n{victim.output.read_text()}")

    def compare(self, config: Config, kept: Marks) -> None:
        """Compare a run that has ended with the reference; it is kept if there is a fault."""
        before = self.faults.copy()
        folder = RunDir(config.run_dir).path
        found, now = digests(folder), finished(folder)
        for name in sorted(found.keys() | self.expected.keys()):
            if name.endswith(".tmp"):
                self.fault("temporary files left", folder / name)
            elif found.get(name) != self.expected.get(name):
                missing = "" if name in found else ", which is missing"
                self.fault("files with other bytes", f"{folder / name}{missing}")
        for path, mark in kept.items():
            if now.get(path, mark) != mark:  # a range goes once it is no longer in use
                self.fault("finished files made again", path)
        if self.faults == before:
            shutil.rmtree(folder)

    def markdown(self) -> str:
        """Two tables, and how to read them."""
        lines = ["| stage | kills | of them, while it wrote a file |", "|---|---|---|"]
        for name in (BEFORE, *self.stages, BETWEEN):
            lines.append(f"| {name} | {self.struck[name]} | {self.writing[name]} |")
        lines += ["", "| after the resumed runs | |", "|---|---|"]
        lines += [f"| runs, each killed up to {KILLS_PER_RUN} times | {self.runs} |"]
        lines += [f"| files compared in each | {len(self.expected)} |"]
        lines += [f"| {kind} | {self.faults[kind]} |" for kind in FAULTS]
        lines += [
            f"| trainings killed: with a checkpoint to go on from, without | "
            f"{self.trainings[True]}, {self.trainings[False]} |",
            "",
            f"An undisturbed run took {self.total:.1f} s. {self.kills - self.aimed} kills fell at "
            f"an instant uniform over what was left of the run, which hardly strikes short stages; "
            f"{self.aimed} were aimed, at an instant uniform over a task of the stage that was "
            "struck least so far. The stage is that of the task that had started and not ended, "
            "says its log; a kill that struck two workers in two stages counts in both.",
        ]
        return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--experiment", default="digits")
    parser.add_argument(
        "--first", action="append", default=[], metavar="KEY=VALUE", help="then the run grows"
    )
    parser.add_argument("--cold", action="store_true", help="each run imports everything anew")
    options = parser.parse_intermixed_args()
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1):
        sys.exit("This needs Linux, to wait for the workers of a killed run.")
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="skerch-chaos-"))
    arguments = [options.experiment, *SIZES, *options.overrides]
    chaos = Chaos(folder, arguments, options.cold, options.seed, options.first)
    while chaos.runs < options.kills + MORE_KILLS and (
        chaos.kills < options.kills
        or (chaos.unstruck() and chaos.kills < options.kills + MORE_KILLS)
    ):
        chaos.one_run()
    print(f"`python tests/jobs/chaos.py {' '.join(sys.argv[1:])}`, {chaos.kills} kills:\n")
    print(chaos.markdown())
    if chaos.unstruck():
        chaos.fault("stages that were never struck", ", ".join(chaos.unstruck()))
    if chaos.faults:
        sys.exit(f"See {folder}.")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
