"""The files of `training.checkpoints` and their steps. Imports torch only to look into files."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from skerch.jobs.config.schema import Training
from skerch.jobs.errors import ConfigError

STEP = "{step}"  # of a pattern: where a path has the step


def matches(pattern: str) -> list[Path]:
    """The paths that a pattern matches, in order."""
    return [Path(name) for name in sorted(glob.glob(pattern.replace(STEP, "[0-9]*")))]


def checkpoint_files(pattern: str) -> dict[int, Path]:
    """The files of a pattern by training step, ascending.

    The pattern is a glob. The step is the whole number at its `{step}`, which may also stand in a
    folder's name. Without `{step}` it is the one that the file itself tells, or else the only
    number in the file's name; where there are both, they must agree.

    Raises:
        ConfigError: a file has no step, or several, or the same as another.
    """
    found: dict[int, Path] = {}
    for path in matches(pattern):
        step = _marked(path, Path(pattern)) if STEP in pattern else _step(path)
        if step in found:
            raise ConfigError(
                f"training.checkpoints: {found[step]} and {path} both have step {step}; narrow the "
                "pattern."
            )
        found[step] = path
    return dict(sorted(found.items()))


def files_of(training: Training, steps: Sequence[int]) -> dict[int, Path]:
    """The file of each of some steps.

    Raises ConfigError where one is no longer there.
    """
    assert training.checkpoints is not None
    files = checkpoint_files(training.checkpoints)
    for step in steps:
        if step not in files:
            raise ConfigError(
                f"training.checkpoints {training.checkpoints} has no file of step {step}; bring it "
                "back, or take the step out of training.record_steps."
            )
    return {step: files[step] for step in steps}


def listing(training: Training) -> Iterator[str]:
    """A line on each file that is to be recorded; on none that is no longer there."""
    steps = training.record_steps
    for step, path in checkpoint_files(training.checkpoints or "").items():
        if step in steps:
            note = ", which check and --calibrate look at" if step == steps[-1] else ""
            yield f"step     {step:,} from {path}{note}"


def _marked(path: Path, pattern: Path) -> int:
    """The number at `{step}` in a path that matches a pattern."""
    numbers = {
        number
        for name, part in zip(path.parts, pattern.parts, strict=True)
        if STEP in part
        for number in _numbers(name, *part.split(STEP, 1))
    }
    if len(numbers) != 1:
        raise ConfigError(
            f"training.checkpoints: {path} has not one whole number at the {STEP} of {pattern}; "
            "narrow the pattern, or rename or move the file."
        )
    return numbers.pop()


def _step(path: Path) -> int:
    """The step that a file and its name tell."""
    from skerch.jobs.config.tensor_files import step_inside  # imports torch

    several = len(re.findall(r"\d+", path.stem)) > 1
    named = None if several else next(iter(_numbers(path.stem, "*", "*")), None)
    inside = step_inside(path)
    way_out = "write {step} where the path has the step, as in training.checkpoints=net_{step}.pt"
    if named is not None and inside is not None and named != inside:
        raise ConfigError(
            f"training.checkpoints: {path} is of step {inside} by its content and of {named} by "
            f"its name; {way_out}, or rename the file."
        )
    step = named if inside is None else inside
    if step is None:
        raise ConfigError(
            f"training.checkpoints: {path} does not tell its step: it holds none, and its name has "
            f"{'several numbers' if several else 'no number by itself'}; {way_out}."
        )
    return step


def _numbers(name: str, head: str, tail: str) -> list[int]:
    """The whole numbers of a name between what two globs match.

    Beside a `*`, a number stands by itself: 1e4, 10k, v2 and 0.33 have none.
    """
    numbers = []
    for digits in re.finditer(r"\d+", name):
        before, after = name[: digits.start()], name[digits.end() :]
        part_of_more = (head.endswith("*") and re.search(r"[^\W_]$|\d[.,]$", before)) or (
            tail.startswith("*") and re.match(r"[^\W_]|[.,]\d", after)
        )
        if not part_of_more and fnmatchcase(before, head) and fnmatchcase(after, tail):
            numbers.append(int(digits[0]))
    return numbers
