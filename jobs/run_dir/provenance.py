"""Of what a run's files are: measurements by their manifests, recorded parameters by theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from skerch.measurements.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Whose matvecs a measurement array holds, and what decides their bits.

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
