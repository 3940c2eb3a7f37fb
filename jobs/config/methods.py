"""The methods that can be asked for: one row each.

What else is a method's own stands under the name of its family: the tasks of one Hessian, what its
config must fulfil and how its files are looked at for damage in `pipeline/<family>.py`; what it
shows in `commands/<family>/`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Method:
    """What a run directory is told of a method."""

    name: str
    family: str  # of methods that share modules
    sections: tuple[str, ...]  # of a config: what gives results their value besides the training
    result: str  # below a step's folder, the file that is there once all is done
    manifests: str | None = None  # below a step's folder: files that hold the identity of its files

    def manifests_in(self, folder: Path, steps: str = "") -> Iterator[Path]:
        """The manifests in a step's folder, or in those of the method's folder that are `steps`."""
        return iter(()) if self.manifests is None else folder.glob(steps + self.manifests)


def _krylov(name: str) -> Method:
    """A method with one task a Hessian."""
    return Method(name, "krylov", ("hessian", name), f"{name}.json", "provenance.json")


def _kronecker(name: str) -> Method:
    """A method of sums over parts of the data."""
    sections = "hessian", "kronecker"
    return Method(name, "kronecker", sections, f"{name}.json", "provenance.json")


METHODS = {
    method.name: method
    for method in (
        Method(
            "seigh",
            "seigh",
            ("hessian", "sketch"),
            "overlap.json",
            "measurements/round-*/manifest.json",
        ),
        _krylov("lanczos"),
        _krylov("trace"),
        _krylov("density"),
        _kronecker("kfac"),
        _kronecker("ekfac"),
        _kronecker("tkfac"),
        _kronecker("shampoo"),
        _kronecker("nearest"),
        _kronecker("autocorrelation"),
    )
}
