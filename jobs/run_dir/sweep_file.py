"""What a sweep's folder holds beside its runs: `sweep.json`, which says what each one is."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from skerch.errors import SkerchError
from skerch.files import write_atomically


@dataclass(frozen=True)
class Member:
    """One method of one run, by the values that it has."""

    run: str  # its directory, below the sweep's folder
    name: str  # the method's folder in it
    values: dict[str, Any]  # by key


def path(folder: Path) -> Path:
    """The file in a sweep's folder."""
    return folder / "sweep.json"


def exists(folder: Path) -> bool:
    """Whether a folder is a sweep's; no path that cannot be is one."""
    return os.path.isfile(path(folder))


def write(folder: Path, members: Sequence[Member]) -> None:
    """Write down what a sweep is of."""
    text = json.dumps({"members": [asdict(each) for each in members]}, indent=1) + "\n"
    write_atomically(path(folder), lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read(folder: Path) -> list[Member]:
    """What a sweep is of; nothing where there is none.

    Raises SkerchError where the file is damaged.
    """
    if not exists(folder):
        return []
    try:
        content = json.loads(path(folder).read_text(encoding="utf-8"))
        return [Member(**member) for member in content["members"]]
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise SkerchError(
            f"{path(folder)} is damaged; delete it, and the same sweep again writes it anew."
        ) from error


def text(value: Any) -> str:
    """A value in characters that names of folders may have."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value).replace("+", "")
    words = value if isinstance(value, str) else json.dumps(value)
    return re.sub(r"[^\w.-]+", "-", words, flags=re.ASCII).strip("-")
