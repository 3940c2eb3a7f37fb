"""Is this cluster fit for skerch? `table` prints what the other files find, each of one subject."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """What a check has found, and what to do about it."""

    check: str
    state: Literal["ok", "note", "warning", "fault"]  # note: not there, or not known
    found: str
    remedy: str = ""
