"""Of what a run's files are: a Hessian's by its manifests, recorded parameters by theirs.

The manifest of a measurement array holds its provenance. A method that has no arrays has a file
`provenance.json` instead, which is written before its first product, once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from skerch.errors import SkerchError
from skerch.files import write_atomically
from skerch.measurements import manifest
from skerch.measurements.manifest import Manifest

PROVENANCE = "provenance.json"


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Whose matvecs they are, and what decides their bits.

    What has a default was not written by older versions.
    """

    identity: Mapping[str, Any]  # the method's
    threads: int
    device: str  # cpu, cuda or mps
    processor: str = ""  # its model
    step: int
    split: str
    strategy: str
    chunk_size: int
    memory_format: str = "preserve"
    fingerprint: Mapping[str, float] | None = None  # of the loss; every worker must find it again
    versions: Mapping[str, str] = field(default_factory=dict)  # of skerch and torch
    parameters_hash: str
    datapoints_hash: str

    @classmethod
    def of(cls, manifest: Manifest) -> Provenance:
        """The provenance that a stage `layout` wrote into a manifest."""
        return cls(**_known(cls, manifest.provenance))


def read(path: Path) -> Provenance:
    """The provenance in the manifest of an array, or in a file of its own.

    Raises SkerchError where it is missing or damaged.
    """
    if path.name == PROVENANCE:
        return Provenance(**_known(Provenance, _content(path)[0]))
    return Provenance.of(manifest.read(path))


def digest(path: Path) -> str:
    """The hash in a file of its own, which results of it have, too; raises what `read` raises."""
    return _content(path)[1]


def write(path: Path, provenance: Provenance) -> None:
    """Write a file of its own, unless there is one."""
    content = asdict(provenance)
    text = json.dumps(content | {"hash": _hash(content)}, indent=1)

    def fill(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomically(path, fill, once=True)


def _content(path: Path) -> tuple[dict[str, Any], str]:
    """What is in a file of its own, and its hash."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content.pop("hash")
        intact = found == _hash(content)
    except (ValueError, LookupError, TypeError, AttributeError):
        intact = False
    if not intact:
        raise SkerchError(f"{path} is damaged; delete {path.parent} to compute all of it anew.")
    return content, found


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Description:
    """Of what training the recorded parameters are, and at which steps.

    What has a default was not written by older versions.
    """

    parameters: Sequence[Any]  # names and shapes, in the order of `named_parameters`
    buffers: Sequence[Any]  # likewise, where the model has persistent ones
    identity: Mapping[str, Any]  # the training's
    datapoints: Mapping[str, str]  # hashes of the Hessian's, by split
    threads: int | None = None
    log: Sequence[dict[str, Any]]  # what log.jsonl says
    checkpoints: Mapping[int, str] = field(default_factory=dict)  # hashes of state dicts, by step
    steps: Sequence[int]

    @classmethod
    def of(cls, content: Mapping[str, Any], steps: Sequence[int]) -> Description:
        """The description in a file's JSON, whose keys are text."""
        checkpoints = {int(step): sha for step, sha in content.get("checkpoints", {}).items()}
        return cls(**_known(cls, content) | {"checkpoints": checkpoints, "steps": steps})

    def content(self) -> dict[str, Any]:
        """What is written as JSON: all but the steps, which are an array of their own."""
        return {name: value for name, value in vars(self).items() if name != "steps"}


def _known(cls: type[Provenance] | type[Description], content: Mapping[str, Any]) -> dict[str, Any]:
    """The content that is of fields; newer versions may write more."""
    return {each.name: content[each.name] for each in fields(cls) if each.name in content}
