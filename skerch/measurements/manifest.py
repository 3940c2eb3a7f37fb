"""The manifest: everything that decides the bits of a measurement array, and its blocks.

It is written once, by `create`, and every block file carries its hash. It imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from skerch.errors import SkerchError
from skerch.files import write_atomically

FORMAT = 1


class ManifestError(SkerchError):
    """A manifest that is missing, damaged, or belongs to other measurements."""


@dataclass(frozen=True)
class Block:
    """A range of columns: the unit of work, of atomic write and of resume."""

    index: int
    kind: str  # "test" (test vectors of Ω or of the range) or "probe"
    start: int  # first column among those of its kind
    stop: int
    stored: bool  # whether the (N, stop - start) measurements are stored, or only their sketches


@dataclass(frozen=True)
class Manifest:
    """One round's measurement array: `columns` test vectors, `probes` probes, in blocks."""

    size: int  # N
    dtype: str  # "float32" or "float64", of the matvecs and of what is stored
    columns: int  # test vectors of this round
    stored: int  # the first of them are stored whole
    probes: int  # held-out Gaussian vectors, stored whole
    block_size: int
    sketch: str  # kind of the sketch operators
    seed: int
    compresses: bool  # whether the columns are also compressed by Ψ
    round: int = 1
    range_hash: str | None = None  # the test vectors are the columns of the file with this hash
    provenance: Mapping[str, Any] = field(default_factory=dict)  # JSON: whose matvecs, and how made
    format: int = FORMAT

    def blocks(self) -> list[Block]:
        """All blocks: stored test vectors, then the other test vectors, then probes."""
        ranges = [
            ("test", 0, self.stored, True),
            ("test", self.stored, self.columns, False),
            ("probe", 0, self.probes, True),
        ]
        return [
            Block(index, kind, start, min(start + self.block_size, end), stored)
            for index, (kind, start, end, stored) in enumerate(
                (kind, start, end, stored)
                for kind, begin, end, stored in ranges
                for start in range(begin, end, self.block_size)
            )
        ]

    def hash(self) -> str:
        """SHA-256 of the manifest as canonical JSON."""
        return self._hash

    @cached_property
    def _hash(self) -> str:
        canonical = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def text(self) -> str:
        """The manifest with its hash, as it is written."""
        return json.dumps(asdict(self) | {"hash": self.hash()}, indent=1)


def manifest_path(directory: Path) -> Path:
    """The manifest of the array in a directory."""
    return directory / "manifest.json"


def block_path(directory: Path, index: int) -> Path:
    """The file of a block of the array in a directory."""
    return directory / "blocks" / f"block-{index:06d}.h5"


def range_path(directory: Path) -> Path:
    """The range that a later round's array in a directory is measured with."""
    return directory / "range.h5"


def create(path: Path, manifest: Manifest) -> None:
    """Write the manifest; raises ManifestError where another one is there already."""

    def write(temporary: Path) -> None:
        temporary.write_text(manifest.text(), encoding="utf-8")

    if not path.exists():
        write_atomically(path, write, once=True)
    existing = read(path)
    if existing != manifest:
        old, new = asdict(existing), asdict(manifest)
        pairs = [(k, old[k], new[k]) for k in old if k != "provenance"]
        pairs += [
            (k, old["provenance"].get(k), new["provenance"].get(k)) for k in new["provenance"]
        ]
        changes = ", ".join(f"{k}: {a} -> {b}" for k, a, b in pairs if a != b)
        raise ManifestError(
            f"{path} describes other measurements ({changes}); "
            "delete its folder to measure anew, or use another name or run_dir."
        )


def read(path: Path) -> Manifest:
    """Read and check a manifest."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ManifestError(f"{path} is missing; the layout stage writes it.") from None
    except ValueError:
        text = ""
    return parse(text, path)


def parse(text: str, path: Path) -> Manifest:
    """The manifest in a text from `path`; raises ManifestError unless it is as it was written."""
    try:
        content = json.loads(text)
        expected = content.pop("hash")
        manifest = Manifest(**{f.name: content.pop(f.name) for f in fields(Manifest)})
    except (ValueError, KeyError, TypeError, AttributeError):
        manifest, expected, content = None, None, {}
    if manifest is None or content or manifest.hash() != expected:
        raise ManifestError(
            f"{path} is damaged; delete it, and the layout stage restores it from a block."
        )
    if manifest.format != FORMAT:
        raise ManifestError(
            f"{path} has format {manifest.format}, this skerch reads format {FORMAT}; "
            "use the skerch that wrote it."
        )
    return manifest
