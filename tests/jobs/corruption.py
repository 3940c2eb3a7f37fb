"""Damage the files of a finished run, one at a time, and see what comes of it.

    python tests/jobs/corruption.py --flips 1000 [--seed 0]

Each case damages one file in a copy of the run. `status --verify` must then name the file, or the
file still says what it said. Next, what was made from the file is removed, so that `run` reads it
again: it must refuse and name the file, or end with the data of the undamaged run. After a refusal
what is named is deleted, and `run` must bring those data back. All else is a defect: other data, a
traceback, a crash, a hang, a refusal that names nothing.

Prints Markdown, and exits 1 if there was a defect.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout, suppress
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

import h5py
import matplotlib.backends.backend_agg  # noqa: F401  this and torch._dynamo: for the children
import numpy as np
import torch
import torch._dynamo
import yaml

from skerch.__main__ import main as skerch
from skerch.jobs.config.stages import REPORT, STAGES
from skerch.jobs.problems import load_problem

EXPERIMENT = [
    "training.max_steps=40",
    "training.record_steps=[20,40]",
    "hessian.splits=[test]",
    "hessian.datapoints=100",
    "hessian.strategy=batched",
    "sketch.outer=10",
    "sketch.inner=20",
    "sketch.rounds=2",
    "sketch.block_size=8",
    "sketch.probes=4",
    "launcher.blocks_per_task=2",
    "launcher.threads=1",
]
STEP, OTHER_STEP = "seigh/step-000040-test", "seigh/step-000020-test"
ROUND_1, ROUND_2 = f"{STEP}/measurements/round-1", f"{STEP}/measurements/round-2"
SOLVED = [f"{STEP}/eigh.h5"]
MERGED = [f"{STEP}/merged.h5", *SOLVED]
MEASURED = ["seigh/step-*/measurements", "seigh/step-*/merged.h5", "seigh/step-*/eigh.h5"]
LIMIT = 120.0  # seconds after which a command hangs

# files by what they are, and what is made from them
FILES = {
    "blocks, round 1": (f"{ROUND_1}/blocks/*.h5", [f"{ROUND_2}/range.h5", *MERGED]),
    "blocks, round 2": (f"{ROUND_2}/blocks/*.h5", MERGED),
    "manifest.json": (f"{STEP}/measurements/*/manifest.json", MERGED),
    "range.h5": (f"{ROUND_2}/range.h5", [f"{ROUND_2}/blocks", *MERGED]),
    "merged.h5": (f"{STEP}/merged.h5", SOLVED),
    "eigh.h5": (f"{STEP}/eigh.h5", [f"{STEP}/overlap.json"]),
    "overlap.json": (f"{STEP}/overlap.json", []),
    "parameters.h5": ("training/parameters.h5", MEASURED),
    "hessian_data.pt": ("training/hessian_data.pt", MEASURED),
    "checkpoint.pt": ("training/checkpoint.pt", ["training/parameters.h5"]),
    "log.jsonl": ("training/log.jsonl", ["training/parameters.h5"]),
    "config.yaml": ("config.yaml", SOLVED),
    "training_config.yaml": ("training/training_config.yaml", SOLVED),
    "hessian_config.yaml": ("seigh/hessian_config.yaml", SOLVED),
}

Damage = Callable[[Path], bytes | None]  # the new content of a file; None deletes it
COLUMNS = ("cases", "named", "intact", "refused", "same data", "repaired")


def forked(call: Callable[[], object]) -> tuple[int | None, str]:
    """The exit status of a call in a child (None: it hung), and what it printed.

    Imports are made once, before, and a crash is the child's.
    """
    with tempfile.TemporaryFile("w+") as output:

        def redirected() -> None:
            sys.stdout = sys.stderr = output
            call()

        child = multiprocessing.get_context("fork").Process(target=redirected)
        child.start()
        child.join(LIMIT)
        hangs = child.is_alive()
        if hangs:
            child.kill()
            child.join()
        output.seek(0)
        return None if hangs else child.exitcode, output.read()


def command(*arguments: str) -> tuple[int | None, str]:
    """A command line of skerch, in a child."""

    def call() -> None:
        sys.argv = ["skerch", *arguments]
        skerch()

    return forked(call)


def import_all(run_dir: Path) -> None:
    """Import what commands import, here, once for all children."""
    stages = [f"jobs.stages.{stage}" for stage in STAGES if stage != REPORT.name]
    for module in [*stages, "jobs.commands.seigh.plan", "decompositions.recoveries.nystrom"]:
        import_module(f"skerch.{module}")
    load_problem({"name": "digits_mlp"})
    sys.argv = ["skerch", "status", str(run_dir), "--verify"]
    with redirect_stdout(StringIO()), suppress(SystemExit):
        skerch()


def make(run_dir: Path, *overrides: str) -> None:
    """A finished run."""
    exit_status, output = command("run", "digits", f"run_dir={run_dir}", *EXPERIMENT, *overrides)
    if exit_status:
        sys.exit(f"the undamaged run failed:\n{output}")


def decoded(path: Path) -> Any:
    """What a file says, read without skerch."""
    if path.suffix == ".h5":
        found: dict[str, Any] = {}
        with h5py.File(path) as file:
            found["attributes"] = {name: repr(value) for name, value in file.attrs.items()}
            file.visititems(
                lambda name, node: (
                    found.update({name: (node.dtype.str, node.shape, node[...].tobytes())})
                    if isinstance(node, h5py.Dataset)
                    else None
                )
            )
        return found
    if path.suffix == ".pt":
        return plain(torch.load(path, weights_only=True))
    text = path.read_text()
    if path.suffix == ".json":
        return json.loads(text)
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return {key: value for key, value in yaml.safe_load(text).items() if key != "run_dir"}


def plain(tree: Any) -> Any:
    """A tree whose tensors are replaced by their dtype, shape and bytes."""
    if isinstance(tree, torch.Tensor):
        return str(tree.dtype), tuple(tree.shape), tree.contiguous().numpy().tobytes()
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    return [plain(item) for item in tree] if isinstance(tree, list | tuple) else tree


class Laboratory:
    """A finished run, and copies of it that are damaged."""

    def __init__(self, folder: Path):
        self.reference, self.copy = folder / "reference", folder / "copy"
        make(self.reference)
        import_all(self.reference)
        everywhere = [pattern.replace(STEP, "seigh/step-*") for pattern, _ in FILES.values()]
        self.content = {
            str(path.relative_to(self.reference)): decoded(path)
            for pattern in everywhere
            for path in self.reference.glob(pattern)
        }
        self.defects: list[str] = []

    def names(self, kind: str) -> list[str]:
        """The files of a kind, in order."""
        paths = self.reference.glob(FILES[kind][0])
        return sorted(str(path.relative_to(self.reference)) for path in paths)

    def case(self, kind: str, name: str, damage: Damage, what: str) -> list[str]:
        """What comes of one damage, as the columns in which it counts."""
        shutil.rmtree(self.copy, ignore_errors=True)
        shutil.copytree(self.reference, self.copy)
        target = self.copy / name
        content = damage(target)
        if content is None:
            target.unlink()
        else:
            target.write_bytes(content)
        try:
            return ["cases", *self._outcomes(kind, target)]
        except DefectError as error:
            self.defects.append(f"{name}, {what}: {error.args[0]}")
            print(self.defects[-1], *error.args[1:], sep="\n", file=sys.stderr, flush=True)
            return ["cases"]

    def _outcomes(self, kind: str, target: Path) -> Iterator[str]:
        name = str(target.relative_to(self.copy))
        exists = target.exists()
        if exists:
            refused = self._refuses(target, command("status", str(self.copy), "--verify"))
            if not refused:
                self._compare([name])
            yield "named" if refused else "intact"
        for pattern in FILES[kind][1]:
            for path in self.copy.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        as_it_is = ["run", str(self.copy)]
        anew = ["run", "digits", f"run_dir={self.copy}", *EXPERIMENT]
        again = anew if kind == "config.yaml" else as_it_is
        result = command(*(as_it_is if exists else again))
        if not self._refuses(target, result):
            self._compare(self.content, besides=target)
            yield "same data"
            return
        yield "refused"
        for _ in range(2):  # two swapped files are named one after the other
            for path in map(self.copy.joinpath, self.content):
                if str(path) in result[1]:
                    path.unlink(missing_ok=True)
            result = command(*again)
            if not result[0]:
                break
        if self._refuses(target, result):
            raise DefectError("deleting what is named does not help", result[1])
        self._compare(self.content)
        yield "repaired"

    def _refuses(self, target: Path, result: tuple[int | None, str]) -> bool:
        """Whether a command failed, which it must do in words that name the file."""
        exit_status, output = result
        if exit_status is None:
            raise DefectError("a command hangs", output)
        if exit_status < 0:
            raise DefectError(f"a command is ended by signal {-exit_status}", output)
        if "traceback" in output.lower():
            raise DefectError("a command ends in a traceback", output)
        if exit_status and str(target) not in output:
            raise DefectError("a refusal does not name the file", output)
        return bool(exit_status)

    def _compare(self, names: Iterable[str], besides: Path | None = None) -> None:
        """Raise DefectError where files say something else than in the reference.

        The file `besides` may be unreadable: what came of it counts. A checkpoint may be missing,
        as only long trainings leave one.
        """

        def compare() -> None:
            for path in map(self.copy.joinpath, names):
                try:
                    same = decoded(path) == self.content[str(path.relative_to(self.copy))]
                except Exception:
                    same = path == besides or (path.name == "checkpoint.pt" and not path.exists())
                if not same:
                    print(path)

        exit_status, output = forked(compare)
        if exit_status != 0 or output:
            raise DefectError("other data, in silence", output)


class DefectError(Exception):
    """What must never come of a damaged file: a sentence, and what was printed."""


def flipped(share: float, bit: int) -> Damage:
    """One bit, at a share of the file's length."""

    def damage(path: Path) -> bytes:
        content = bytearray(path.read_bytes())
        content[int(share * len(content))] ^= 1 << bit
        return bytes(content)

    return damage


def truncated(share: float) -> Damage:
    """Only a share of the file."""
    return lambda path: path.read_bytes()[: int(share * path.stat().st_size)]


def zeroed(share: float) -> Damage:
    """A sector of the disk is zero, at a share of the file's length."""

    def damage(path: Path) -> bytes:
        content = bytearray(path.read_bytes())
        begin = int(share * len(content)) // 512 * 512
        content[begin : begin + 512] = bytes(len(content[begin : begin + 512]))
        return bytes(content)

    return damage


def replaced(source: Path) -> Damage:
    """Another file's content."""
    return lambda _: source.read_bytes()


def swapped(name: str) -> Damage:
    """The content of another file beside this one, which gets this one's."""

    def damage(path: Path) -> bytes:
        other = path.with_name(name)
        ours, theirs = path.read_bytes(), other.read_bytes()
        other.write_bytes(ours)
        return theirs

    return damage


Case = tuple[str, str, str, Damage, str]  # row, kind and name of the file, damage and its words


def flips(laboratory: Laboratory, count: int, generator: np.random.Generator) -> Iterator[Case]:
    """Single bits anywhere, equally many in each kind of file."""
    for index in range(count):
        kind = list(FILES)[index % len(FILES)]
        name = str(generator.choice(laboratory.names(kind)))
        share, bit = generator.random(), int(generator.integers(8))
        yield kind, kind, name, flipped(share, bit), f"bit {bit} at {share!r} of its length"


def others(laboratory: Laboratory, donor: Path, generator: np.random.Generator) -> Iterator[Case]:
    """Coarser damages of each kind of file, and blocks in the place of others."""
    for kind in FILES:
        name = str(generator.choice(laboratory.names(kind)))
        yield "deleted", kind, name, lambda _: None, "deleted"
        yield "empty", kind, name, lambda _: b"", "empty"
        share = generator.random()
        yield "cut off", kind, name, truncated(share), f"cut off at {share!r}"
        share = generator.random()
        yield "512 bytes zero", kind, name, zeroed(share), f"zero at {share!r}"
    block = "blocks/block-000000.h5"
    name = f"{ROUND_1}/{block}"
    for row, damage in (
        ("of another step", replaced(laboratory.reference / name.replace(STEP, OTHER_STEP))),
        ("of another seed", replaced(donor / name)),
        ("of the other round", replaced(laboratory.reference / f"{ROUND_2}/{block}")),
        ("swapped with another", swapped("block-000001.h5")),
    ):
        yield f"a block {row}", "blocks, round 1", name, damage, row


def print_table(heading: str, counts: dict[str, Counter[str]]) -> None:
    """A row of counts for each key, and their sum."""
    print(
        f"| {heading} | cases | `status --verify` names it | it says the same | `run` refuses | ",
        end="",
    )
    print("same data | repaired |\n|---|---:|---:|---:|---:|---:|---:|")
    for row, counter in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
        print(f"| {row} |", " | ".join(str(counter[column]) for column in COLUMNS), "|")
    print()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Damage the files of a run.")
    parser.add_argument("--flips", type=int, default=1000, help="in all, over all kinds of files")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator = np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        laboratory, donor = Laboratory(Path(folder)), Path(folder) / "donor"
        make(donor, "sketch.seed=7")

        def count(cases: Iterable[Case]) -> dict[str, Counter[str]]:
            counts: dict[str, Counter[str]] = defaultdict(Counter)
            for index, (row, *case) in enumerate(cases, 1):
                counts[row].update(laboratory.case(*case))
                if index % 50 == 0:
                    print(f"{index} cases", file=sys.stderr, flush=True)
            return counts

        by_file = count(flips(laboratory, options.flips, generator))
        by_damage = count(others(laboratory, donor, generator))
    print(
        f"{options.flips:,} single bits flipped anywhere in the files of a finished run, and other "
        "damages of the same files (`python tests/jobs/corruption.py "
        f"--flips {options.flips} --seed {options.seed}`):\n"
    )
    print_table("one bit flipped in", by_file)
    print_table("other damages", by_damage)
    total = sum((*by_file.values(), *by_damage.values()), Counter())
    print(
        f"Of {total['cases']:,} cases, {len(laboratory.defects)} ended in other data, a traceback, "
        "a crash, a hang or a refusal that does not name the file."
    )
    for defect in laboratory.defects:
        print(f"- {defect}")
    sys.exit(bool(laboratory.defects))


if __name__ == "__main__":
    main()
