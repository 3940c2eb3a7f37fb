"""What one check finds."""

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
