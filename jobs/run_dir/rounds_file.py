"""rounds.json: how a Hessian's rounds were judged against the target, and a hash of itself.

The rounds end after the one that reached it. What was judged for another target, or for another
number of eigenpairs, does not count; nor does a damaged file, as rounds are judged anew.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from skerch.decompositions.recoveries import Round
from skerch.decompositions.target import Judgement
from skerch.errors import SkerchError
from skerch.files import write_atomically
from skerch.jobs.config import Config
from skerch.jobs.config.methods import METHODS
from skerch.jobs.config.schema import Sketch
from skerch.jobs.run_dir import StepDir
from skerch.jobs.run_dir.paths import RunDirError
from skerch.measurements import manifest


def rounds(directory: StepDir, sketch: Sketch) -> list[Round]:
    """The rounds that a Hessian needs: those of the plan, up to the one that reached the target."""
    plan = sketch.each_round()
    reached = (number for number, each in judgements(directory, sketch).items() if each.reached)
    return plan[: next(reached, len(plan))]


def judgements(directory: StepDir, sketch: Sketch) -> dict[int, Judgement]:
    """What was judged for the target and the `outer` of a config, by the number of the round."""
    if sketch.target is None or not directory.rounds.exists():
        return {}
    try:
        content = _read(directory.rounds)
        if content["asked"] == _asked(sketch):
            return {each.pop("round"): Judgement(**each) for each in content["judged"]}
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        pass
    return {}


def add(directory: StepDir, sketch: Sketch, number: int, judgement: Judgement) -> None:
    """Add what the rounds up to `number` came to, atomically."""
    known = judgements(directory, sketch) | {number: judgement}
    content = {
        "asked": _asked(sketch),
        "judged": [{"round": n} | asdict(each) for n, each in sorted(known.items())],
    }
    whole = json.dumps(content | {"hash": _hash(content)}, indent=1)
    write_atomically(
        directory.rounds, lambda temporary: temporary.write_text(whole, encoding="utf-8")
    )


def check(path: Path) -> None:
    """Raise SkerchError for a file that is not as it was written."""
    try:
        _read(path)
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        raise SkerchError(
            f"{path} is damaged; delete it, and the rounds are judged again."
        ) from None


def check_growth(directory: StepDir, config: Config) -> None:
    """Refuse a plan of rounds that does not begin with those that are measured."""
    plan, needed = config.sketch.each_round(), rounds(directory, config.sketch)
    method = METHODS[config.method]
    arrays = [manifest.read(path) for path in method.manifests_in(directory.path)]
    for array in arrays:
        asked = plan[array.round - 1 : array.round]
        if [asdict(each) for each in asked] != [
            {f.name: getattr(array, f.name) for f in fields(Round)}
        ]:
            measured = [each.columns for each in sorted(arrays, key=lambda array: array.round)]
            raise RunDirError(
                f"{directory.path} has rounds of {measured} matvecs, and sketch asks for "
                f"{[each.columns for each in plan]} (recovery={config.sketch.recovery}, "
                f"outer={config.sketch.outer}): a run grows by further rounds of at most as many, "
                "and loses none. Leave sketch.inner and sketch.rounds away, or set another "
                f"name (as in name={config.method}-2)."
            )
    from skerch import hdf5  # h5py takes a tenth of a second

    merged = 0
    with suppress(SkerchError), hdf5.open_for_reading(directory.merged) as file:
        merged = len(hdf5.attribute(file, "manifests").split())
    blocks = directory.path.glob("measurements/round-*/blocks/*.h5")
    if 0 < merged < len(needed) and not any(blocks):
        raise RunDirError(
            f"{directory.path} has no blocks any more (keep_blocks=false), in which further rounds "
            f"would be found; set another name (as in name={config.method}-2)."
        )


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if content.pop("hash") != _hash(content):
        raise ValueError
    return content


def _asked(sketch: Sketch) -> dict[str, Any]:
    return {"target": sketch.target, "outer": sketch.outer}


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
