"""Whose eigenpairs a method reads, by the key `deflate` of its section or `kronecker.against`."""

from __future__ import annotations

from skerch.jobs.config.methods import METHODS
from skerch.jobs.config.names import check_name
from skerch.jobs.config.schema import Config, method_name
from skerch.jobs.errors import ConfigError


def source_key(config: Config) -> str:
    """The key that names it."""
    if METHODS[config.method].family == "kronecker":
        return "kronecker.against"
    return f"{config.method}.deflate"


def source_of(config: Config) -> str | None:
    """The folder of the method whose eigenpairs are used; None for none."""
    section, key = source_key(config).split(".")
    source: str | None = getattr(getattr(config, section, None), key, None)
    return source


def check_source(config: Config) -> None:
    """Refuse a source that is no folder's name, or the method itself."""
    source, key = source_of(config), source_key(config)
    check_name(key, source)
    if source is not None and source == method_name(config):
        raise ConfigError(f"{key} is {source}, the method itself; take one that has eigenpairs.")
