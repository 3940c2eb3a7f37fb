"""Whose eigenpairs a method leaves to no product, by the key `deflate` of its section."""

from __future__ import annotations

from skerch.jobs.config.names import check_name
from skerch.jobs.config.schema import Config, method_name
from skerch.jobs.errors import ConfigError


def source_of(config: Config) -> str | None:
    """The folder of the method whose eigenpairs are used; None for none."""
    source: str | None = getattr(getattr(config, config.method, None), "deflate", None)
    return source


def check_deflate(config: Config) -> None:
    """Refuse a source that is no folder's name, or the method itself."""
    source, key = source_of(config), f"{config.method}.deflate"
    check_name(key, source)
    if source is not None and source == method_name(config):
        raise ConfigError(f"{key} is {source}, the method itself; take one that has eigenpairs.")
