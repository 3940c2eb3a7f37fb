"""The methods that can be asked for: one row each.

The tasks of one Hessian by a method, and how its files are looked at for damage, are in the module
of its name in `skerch.jobs.pipeline`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """What a run directory is told of a method."""

    name: str
    sections: tuple[str, ...]  # of a config: what gives results their value besides the training
    manifests: str  # below a step's folder, the files that hold the identity of what is there


METHODS = {
    method.name: method
    for method in (Method("seigh", ("hessian", "sketch"), "measurements/round-*/manifest.json"),)
}
