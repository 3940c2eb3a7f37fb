"""What is asked for: experiment files, their keys, and the cluster file. Imports no torch."""

from skerch.jobs.config.identity import difference, grown, identity
from skerch.jobs.config.loading import load, load_resolved, parse_override, run_directory, save
from skerch.jobs.config.schema import Config, method_name
from skerch.jobs.errors import ConfigError

__all__ = [
    "Config",
    "ConfigError",
    "difference",
    "grown",
    "identity",
    "load",
    "load_resolved",
    "method_name",
    "parse_override",
    "run_directory",
    "save",
]
