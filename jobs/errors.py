"""What is wrong with a config, and the sentence on a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from skerch.errors import SkerchError


class ConfigError(SkerchError):
    """A config that cannot be used; the message names the key, what it may be, and the way out."""

    exit_status = 2


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """A sentence on a name (of a key, a problem, …) that does not exist, with the nearest one."""
    names = list(known)
    if not names:
        return f"There is no {what} {name[:100]}, nor any other."
    prefix, dot, leaf = name.rpartition(".")
    if what not in ("key", "stage"):
        prefix = dot = ""
    matcher = difflib.SequenceMatcher(b=leaf.lower())

    def likeness(other: str) -> float:
        matcher.set_seq1(other.lower())
        return matcher.ratio()

    nearest = max(names, key=likeness)
    return (
        f"There is no {what} {name[:100]}; did you mean {prefix}{dot}{nearest}? "
        f"There are {', '.join(names)}."
    )
