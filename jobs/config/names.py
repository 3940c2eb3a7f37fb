"""Names of methods' folders, which lie inside the run directory."""

from __future__ import annotations

import re
from reprlib import repr as short

from skerch.jobs.errors import ConfigError

RESERVED_NAMES = ("training", "figures", "logs", "slurm", "config.yaml", "report.html")


def check_name(key: str, name: str | None) -> None:
    """Refuse a name that is none of a folder there can be."""
    if name is None:
        return
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII) or len(name) > 100:
        raise ConfigError(
            f"{key} is {short(name)}; it names a folder: letters, digits, '-', '_' and '.', "
            "the first one a letter or digit."
        )
    if name in RESERVED_NAMES:
        raise ConfigError(f"{key} is {name!r}, which every run directory may hold; choose another.")
