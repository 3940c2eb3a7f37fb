"""A JSON file of what was found of a Hessian, whose it is, and a hash of itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from skerch.errors import SkerchError
from skerch.files import write_atomically
from skerch.jobs.run_dir import StepDir, command

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Kind = TypeVar("Kind", bound="DataclassInstance")


def write(path: Path, results: DataclassInstance, manifests: Sequence[str], **asked: Any) -> None:
    """Write results, the hashes of the manifests that they are of, and what was asked for."""
    content = {"manifests": list(manifests), **asked, **asdict(results)}
    whole = json.dumps(content | {"hash": _hash(content)})
    write_atomically(path, lambda temporary: temporary.write_text(whole, encoding="utf-8"))


def read(path: Path, kind: type[Kind]) -> Kind:
    """What `write` wrote, or an older version: what that did not know of is left empty.

    Refused if anything changed since, or if it is of other measurements.
    """
    try:
        content = _content(path)
    except FileNotFoundError:
        see = command("status", path.parents[2])
        raise SkerchError(f"{path} is missing; see: {see}") from None
    if content is None:
        raise SkerchError(f"{path} is damaged; delete it, and the same command makes it again.")
    if not StepDir(path.parent).measured(content.get("manifests", [])):
        raise SkerchError(
            f"{path} is of other measurements than are there now; delete it and run again."
        )
    return _known(kind, content)


def kept(path: Path, kind: type[Kind], manifests: Sequence[str], **asked: Any) -> Kind | None:
    """What `write` wrote of just these, or None: it is not there, damaged, or of others."""
    try:
        content = _content(path)
    except FileNotFoundError:
        return None
    wanted = {"manifests": list(manifests), **asked}
    if content is None or any(content.get(name) != value for name, value in wanted.items()):
        return None
    return _known(kind, content)


def _content(path: Path) -> dict[str, Any] | None:
    """What is in a file that is there, or None if it is damaged."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content if content.pop("hash") == _hash(content) else None
    except FileNotFoundError:
        raise
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return None


def _known(kind: type[Kind], content: dict[str, Any]) -> Kind:
    known = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in content.items() if name in known})


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
