"""rounds.json: how a Hessian's rounds were judged against the target, and a hash of itself.

The rounds end after the one that reached it. What was judged for another target, or for another
number of eigenpairs, does not count; nor does a damaged file, as rounds are judged anew.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from skerch.decompositions.recoveries import Round
from skerch.decompositions.target import Judgement
from skerch.errors import SkerchError
from skerch.files import write_atomically
from skerch.jobs.config.schema import Sketch
from skerch.jobs.run_dir import StepDir


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


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if content.pop("hash") != _hash(content):
        raise ValueError
    return content


def _asked(sketch: Sketch) -> dict[str, Any]:
    return {"target": sketch.target, "outer": sketch.outer}


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
