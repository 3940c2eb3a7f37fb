"""What of a command is a method's own: the module of the command's name in its family's folder."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from skerch.jobs.config import Config
from skerch.jobs.config.methods import METHODS


def of(config: Config, command: str) -> Any:
    """The part of a command that the config's method has."""
    return import_module(f"skerch.jobs.commands.{METHODS[config.method].family}.{command}")
