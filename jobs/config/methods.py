"""The methods that can be asked for: one row each.

The tasks of one Hessian by a method, and how its files are looked at for damage, are in the module
of its name in `skerch.jobs.pipeline`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Method:
    """What a run directory is told of a method."""

    name: str
    sections: tuple[str, ...]  # of a config: what gives results their value besides the training
    result: str  # below a step's folder, the file that is there once all is done
    manifests: str | None = None  # below a step's folder: files that hold the identity of its files

    def manifests_in(self, folder: Path, steps: str = "") -> Iterator[Path]:
        """The manifests in a step's folder, or in those of the method's folder that are `steps`."""
        return iter(()) if self.manifests is None else folder.glob(steps + self.manifests)


METHODS = {
    method.name: method
    for method in (
        Method(
            "seigh", ("hessian", "sketch"), "overlap.json", "measurements/round-*/manifest.json"
        ),
    )
}
