"""overlap.json: what the analysis of a Hessian found, whose it is, and a hash of itself."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from skerch.errors import SkerchError
from skerch.files import write_atomically
from skerch.jobs.run_dir import StepDir


def write(path: Path, content: dict[str, Any]) -> None:
    """Write numbers and lists by name, and the hashes of the `manifests`, atomically."""
    whole = json.dumps(content | {"hash": _hash(content)})
    write_atomically(path, lambda temporary: temporary.write_text(whole))


def read(path: Path) -> dict[str, Any]:
    """What `write` wrote; refused if anything changed since, or if it is of other measurements."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        intact = content.pop("hash") == _hash(content)
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        intact = False
    if not intact:
        raise SkerchError(f"{path} is damaged; delete it, and the same command makes it again.")
    if not StepDir(path.parent).measured(content.pop("manifests", [])):
        raise SkerchError(
            f"{path} is of other measurements than are there now; delete it and run again."
        )
    return content


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
