"""The tasks of one Hessian's sketched eigendecomposition.

layout → measure … → (range_finder → layout → measure … →)… merge → decompose → analyze

With a start, a range_finder comes before the first layout, after another Hessian's decompose.

Where there are more than two rounds, and none has more blocks than one task measures, one task
`rounds` stands for all before the merge. Tasks of rounds after the one that reached the target
leave nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from skerch.analysis.results import HessianResults
from skerch.decompositions.recoveries import Round, check_dimension
from skerch.errors import SkerchError
from skerch.jobs.config import Config
from skerch.jobs.config.schema import Sketch
from skerch.jobs.config.start import source_of
from skerch.jobs.pipeline.task import Task, refusal
from skerch.jobs.run_dir import RunDir, StepDir, method_name, results_file, rounds_file
from skerch.measurements.manifest import block_path, manifest_path, read


def check(config: Config, N: int) -> None:
    """Refuse sizes of the sketch that N parameters have not."""
    sketch = config.sketch
    check_dimension(N, sketch.outer, sketch.inner, sketch.target is not None)


def hessian_tasks(config: Config, run: RunDir, step: int, split: str) -> Iterator[Task]:
    """The tasks of one Hessian."""
    name = method_name(config)
    directory = run.step(name, step, split)
    needed = len(rounds_file.rounds(directory, config.sketch))

    def task(
        stage: str,
        outputs: list[Path],
        needs: list[str],
        suffix: str = "",
        current: Callable[[], bool] | None = None,
        **arguments: Any,
    ) -> Task:
        if arguments.get("round", 1) > needed:
            outputs = []
        return Task(
            f"{name}.{directory.path.name}.{stage}{suffix}",
            stage,
            {"name": name, "step": step, "split": split, **arguments},
            tuple(outputs),
            tuple(needs),
            current=current,
        )

    source = source_of(config, step, split)
    sources = [] if source is None else [f"{name}.{run.step(name, *source).path.name}.decompose"]
    tasks_of = _in_one if at_once(config) else _apart
    measuring = list(tasks_of(config, directory, task, sources))
    yield from measuring

    def ids(*stages: str) -> list[str]:
        return [each.id for stage in stages for each in measuring if each.stage == stage]

    finders = ids("range_finder")
    start = finders[:1] if sources else []
    later = finders[len(start) :]

    def current(path: Path, outer: int | None = config.sketch.outer) -> Callable[[], bool]:
        return partial(_is_current, path, needed, outer)

    blocks = ids("measure", "rounds")
    needs = [*ids("layout"), *blocks, *start, *later[needed - 2 :][:1]]
    merge = task("merge", [directory.merged], needs, current=current(directory.merged, None))
    yield merge
    needs = [merge.id, *ids("layout"), *([] if config.consolidate else [*start, *blocks])]
    solved = partial(_is_solved, directory, config.sketch)
    decompose = task("decompose", [directory.eigh], needs, current=solved)
    yield decompose
    outputs = [directory.overlap, run.figure(name, step, split)]
    needs = ["train", decompose.id]
    analyzed = partial(_is_analyzed, directory.overlap, needed, config)
    yield task("analyze", outputs, needs, current=analyzed)


def _is_current(path: Path, rounds: int, outer: int | None) -> bool:
    """Whether a file is of so many rounds, and has what could be had of `outer` eigenpairs.

    A damaged file counts as such: who reads it refuses it by name.
    """
    try:
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
            manifests, found = content["manifests"], content.get("outer", len(content["overlap"]))
        else:
            from skerch.hdf5 import open_hdf5  # h5py takes a tenth of a second

            with open_hdf5(path) as file:
                manifests = str(file.attrs["manifests"]).split()
                found = outer and file.attrs.get("outer", len(file["eigenvalues"]))
    except (OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError):
        return True
    return len(manifests) == rounds and found == outer


def _is_analyzed(path: Path, rounds: int, config: Config) -> bool:
    """Whether overlap.json is current, and of the masks that are asked for."""
    with suppress(OSError, ValueError, AttributeError):  # as in `_is_current`
        if json.loads(path.read_text(encoding="utf-8")).get("masks", {}) != config.masks:
            return False
    return _is_current(path, rounds, config.sketch.outer)


def _is_solved(directory: StepDir, sketch: Sketch) -> bool:
    """Whether the eigenpairs are of all rounds that are needed, and judged where they are to be."""
    judged = sketch.target is None or bool(rounds_file.judgements(directory, sketch))
    needed = len(rounds_file.rounds(directory, sketch))
    return judged and _is_current(directory.eigh, needed, sketch.outer)


def at_once(config: Config) -> bool:
    """Whether one task measures all rounds: there are many, and each has no more than a task."""
    sketch, p = config.sketch, config.launcher.blocks
    rounds = sketch.each_round()
    return len(rounds) > 2 and all(each.count_blocks(sketch.block_size) <= p for each in rounds)


def _in_one(
    config: Config, directory: StepDir, task: Callable[..., Task], sources: list[str]
) -> Iterator[Task]:
    rounds = rounds_file.rounds(directory, config.sketch)
    outputs = [
        directory.range(number)
        for number in dict.fromkeys((1, len(rounds)))
        if sources or number > 1
    ]
    for each in rounds:
        array = directory.measurements(each.round)
        outputs += [manifest_path(array), *_blocks(array, each, config.sketch.block_size)]
    yield task("rounds", outputs, ["train", *sources])


def _apart(
    config: Config, directory: StepDir, task: Callable[..., Task], sources: list[str]
) -> Iterator[Task]:
    """The tasks that measure, each round's after the one before.

    With a start, which `sources` leave, the first round has a range, too, which all others read.
    """
    sketch, p = config.sketch, config.launcher.blocks
    finders: list[str] = []
    layouts: list[str] = []
    measures: list[str] = []
    for each in sketch.each_round():
        number = each.round
        array = directory.measurements(number)
        of_range: list[str] = []
        if number > 1 or sources:
            start = finders[:1] if sources else []
            finder = task(
                "range_finder",
                [directory.range(number)],
                [*layouts, *measures, *dict.fromkeys([*start, *finders[-1:]])] or sources,
                f"-{number}",
                round=number,
            )
            of_range = [finder.id]
            finders += of_range
            yield finder
        layout = task(
            "layout",
            [manifest_path(array)],
            ["train", *layouts, *of_range],
            f"-{number}",
            round=number,
        )
        layouts.append(layout.id)
        yield layout
        blocks = list(_blocks(array, each, sketch.block_size))
        for index in range(-(-len(blocks) // p)):
            measure = task(
                "measure",
                blocks[index * p : (index + 1) * p],
                ["train", layout.id, *of_range],
                f"-{number}.{index}",
                round=number,
                tasks=[index],
            )
            measures.append(measure.id)
            yield measure


def _blocks(array: Path, each: Round, block_size: int) -> Iterator[Path]:
    """The files of a round's blocks."""
    return (block_path(array, index) for index in range(each.count_blocks(block_size)))


def damage(directory: StepDir, outputs: Iterable[Path]) -> Iterator[str]:
    """A sentence on each output in a Hessian's folder that cannot be read as it was written."""
    from skerch.hdf5 import verify  # h5py takes a tenth of a second

    for path in outputs:
        if path.suffix == ".h5":
            yield from refusal(path, partial(verify, path))
        if path.suffix == ".h5" and path.parent.name != "blocks":
            yield from refusal(path, partial(_check_measured, path, directory))
        elif path.name == "manifest.json" and path.exists():
            yield from _array_damage(path.parent)
        elif path.name == "overlap.json":
            yield from refusal(path, partial(results_file.read, path, HessianResults))
        if path == directory.eigh:
            yield from refusal(directory.rounds, partial(rounds_file.check, directory.rounds))


def _check_measured(path: Path, directory: StepDir) -> None:
    """Refuse a file that is of other measurements than are there."""
    from skerch import hdf5

    with hdf5.open_for_reading(path) as file:
        hashes = hdf5.attribute(file, "manifests").split()
        start = path == directory.range(1) and hdf5.attribute(file, "hash")
    array = manifest_path(directory.measurements(1))
    if start and (not array.exists() or read(array).range_hash == start):
        return
    if not directory.measured(hashes):
        raise SkerchError(
            f"{path} is of other measurements than are there now; delete it and run again."
        )


def _array_damage(directory: Path) -> Iterator[str]:
    """A sentence on each block that is not as its array's manifest says."""
    from skerch.measurements.array import MeasurementArray  # imports torch

    try:
        array = MeasurementArray(directory)
    except SkerchError as error:
        yield str(error)
        return
    for block in array.manifest.blocks():
        yield from refusal(array.path(block.index), partial(array.open, block))
