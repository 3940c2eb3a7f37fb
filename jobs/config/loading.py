"""Experiment files: loading, overrides, saving. Imports no torch.

An experiment file holds the sections of `schema.Config`; only `problem` has no default. Loading
makes paths absolute and fills in what follows from other keys, so that a config means the same
wherever it is read again. Every refusal is a `ConfigError`: one sentence that names the key.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, is_dataclass
from importlib.resources import files
from io import StringIO
from pathlib import Path
from reprlib import repr as short
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from skerch.decompositions.recoveries import default_inner
from skerch.files import cause, write_atomically
from skerch.jobs.config import validation
from skerch.jobs.config.checkpoints import checkpoint_files, matches
from skerch.jobs.config.methods import METHODS
from skerch.jobs.config.resources import spelled_out, written
from skerch.jobs.config.rounds import resolve_rounds
from skerch.jobs.config.schema import Config, Sketch, method_name
from skerch.jobs.errors import ConfigError, unknown

WRITTEN, CHECKED = "# Written by skerch", "sha256 of what follows"
GLOB = r"\*|!(?!!)"  # as text may begin, but not in YAML
GLOB_IN_A_LIST = rf"([\[,]\s*)((?:{GLOB})(?:\[[^\]]*\]|[^\[\],])*)"
LONGEST_PATH = 3500  # bytes of a folder, so that what lies below it stays within 4096


def load(
    path_or_name: str | Path, overrides: Iterable[str] = (), *, queued: bool = False
) -> Config:
    """The checked config of an experiment file, with overrides `key.path=value` applied.

    A file that does not exist here may be one that comes with skerch: `digits`, `digits.yaml` and
    `config/experiment/digits.yaml` are the same. A run directory stands for its config. Values of
    overrides are YAML, those of `resources` text as it is written. Relative paths refer to the
    current folder; `training.checkpoints` that match nothing there, and the module of
    `problem.factory`, to the experiment file's folder. `sketch.rounds: auto` is what the run at
    `run_dir` has, if there is one; else many small rounds, with a block for each of several
    workers, or two where each round's tasks wait in a queue.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, a value is of a wrong type or out
            of its bounds, or checkpoints are not there.
    """
    path = _find(str(path_or_name))
    text = _read(path)
    run_dir = _run_of(path, text)
    if run_dir is not None:
        text = _intact(path, text)
    content: Any = _parse(text, str(path))
    if run_dir is not None:
        content.run_dir = ""  # it is where this file is, wherever that was moved to
    for override in overrides:
        with _clear_errors(f"The override {override[:100]!r}"):
            content = OmegaConf.merge(content, _parse_override(override))
    with _clear_errors(str(path)):
        raw = OmegaConf.to_container(content, resolve=True, throw_on_missing=True)
    node = _typed(raw)
    _resolve(node, path, run_dir)
    if node.method not in METHODS or "sketch" in METHODS[node.method].sections:
        resolve_rounds(node.sketch, node.launcher, _sketch_there(node), queued)
    elif OmegaConf.is_missing(node.sketch, "inner"):
        node.sketch.inner = default_inner(node.sketch.outer)
    config = OmegaConf.to_object(node)
    assert isinstance(config, Config)
    validation.check(config)
    return config


def parse_override(override: str) -> tuple[str, Any]:
    """The key of an override `key.path=value`, and its value.

    Raises ConfigError where it has another form.
    """
    key = override.partition("=")[0]
    with _clear_errors(f"The override {override[:100]!r}"):
        value = OmegaConf.select(_parse_override(override), key)
        return key, OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def run_directory(path_or_name: str) -> Path:
    """The `run_dir` of an experiment file or of its name, of which nothing else is read; or a path.

    Raises ConfigError where the file cannot be read.
    """
    path = None if os.path.isdir(path_or_name) else _experiment(path_or_name)
    if path is None:
        return Path(path_or_name)
    text = _read(path)
    run_dir = _run_of(path, text)
    if run_dir is not None:
        return run_dir
    with _clear_errors(str(path)):
        given = _parse(text, str(path)).get("run_dir")
    return Path(_absolute("run_dir", given or _default_run_dir(path)))


def save(config: Config, path: Path) -> None:
    """Write a config as YAML, atomically, below a checksum of itself."""
    with _clear_errors(str(path)):
        text = OmegaConf.to_yaml(OmegaConf.create(asdict(config)))
    whole = _checksum(text) + text
    write_atomically(path, lambda temporary: temporary.write_text(whole, encoding="utf-8"))


def load_resolved(path: Path) -> Config:
    """Read what `save` wrote: nothing is filled in, and a byte that changed since is refused."""
    text = _intact(path, _read(path))
    with _clear_errors(str(path)):
        config = OmegaConf.to_object(_typed(OmegaConf.to_container(_parse(text, str(path)))))
    assert isinstance(config, Config)
    validation.check(config)
    return config


def _find(name: str) -> Path:
    """An experiment file, a run directory's, or the one of that name that skerch has."""
    path = _experiment(os.path.join(name, "config.yaml")) or _experiment(name)
    if path is None:
        here = ", ".join(sorted(glob.glob("*.y*ml"))[:8]) or "none"
        raise ConfigError(
            f"There is no experiment file {name} in {os.getcwd()} (there: {here}), and none of "
            "that name comes with skerch (it has: "
            f"{', '.join(sorted(path.stem for path in _packaged()))})."
        )
    if path.suffix == ".py":
        raise ConfigError(
            f"{path} is no experiment file but Python; write one in YAML that says "
            f'problem: {{factory: "{path.stem}:FUNCTION"}}.'
        )
    return path


def _experiment(name: str) -> Path | None:
    """An experiment file here, or the one of that name that skerch has, if there is one."""
    if os.path.isfile(name):
        return Path(name).absolute()
    packaged = {path.stem: path for path in _packaged()}
    stem = Path(name).stem
    named = name in (stem, f"{stem}.yaml", f"config/experiment/{stem}.yaml")
    return packaged.get(stem) if named else None


def _packaged() -> list[Path]:
    return list(Path(str(files("skerch.config"))).glob("experiment/*.yaml"))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {cause(error)}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a text file in UTF-8: {error}.") from error


@contextmanager
def _clear_errors(source: str) -> Iterator[None]:
    """Turn what YAML and omegaconf say about `source` into one sentence."""
    try:
        yield
    except ConfigError:
        raise
    except (YAMLError, OmegaConfBaseException, ValueError, TypeError, RecursionError) as error:
        words = " ".join(str(error).split())[:300]
        globs = (
            " Quote what begins with * or !." if re.search("for the tag|an alias", words) else ""
        )
        raise ConfigError(f"{source} is not valid YAML for a config: {words}.{globs}") from error


def _parse(text: str, source: str) -> DictConfig:
    """YAML text, safely loaded, interpolations not yet resolved."""
    with _clear_errors(source):
        try:
            content = OmegaConf.load(StringIO(text))
        except (OSError, AssertionError):  # how omegaconf reports a bare number or bytes
            content = None
        if isinstance(content, DictConfig) and content.get("resources"):
            content.resources = spelled_out(written(text).get("resources"))
    if not isinstance(content, DictConfig) or not content:
        raise ConfigError(f"{source} must hold a mapping with the key problem, and others.")
    return content


def _parse_override(override: str) -> DictConfig:
    key, equals, value = override.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.[\w-]+)*", key):
        raise ConfigError(
            f"The override {override[:100]!r} has not the form key.path=value, as in "
            "training.lr=0.1."
        )
    if key.partition(".")[0] == "resources":
        return _resources(key, value.strip())
    pattern = key == "training.checkpoints" and value.startswith(("?", "[", "{"))
    if pattern or re.match(GLOB, value):  # YAML would see a collection, an alias
        value = json.dumps(value)
    elif value.startswith("[") and not re.search("['\"]", value):  # what a shell leaves of quotes
        value = re.sub(GLOB_IN_A_LIST, lambda item: item[1] + json.dumps(item[2].strip()), value)
    return OmegaConf.from_dotlist([f"{key}={value}"])


def _resources(key: str, value: str) -> DictConfig:
    """An override of `resources`, its values as they are written; YAML where it has brackets."""
    tree = written(value) if value.startswith(("[", "{", "'", '"')) else value
    for part in reversed(key.split(".")[1:]):
        tree = {part: tree}
    return DictConfig({"resources": spelled_out(tree)})


def _typed(raw: Any) -> DictConfig:
    """A config from plain mappings, whose keys have their types."""
    for section, key in (("hessian", "param_filter"), ("hessian", "splits")):
        values = raw.get(section)
        if isinstance(values, dict) and isinstance(values.get(key), str):
            values[key] = [values[key]]
    node: DictConfig = OmegaConf.structured(Config)
    _assign(node, Config, raw, "")
    return node


def _assign(node: DictConfig, cls: type, raw: Mapping[Any, Any], prefix: str) -> None:
    """Set a section's keys one by one, so that a refusal names its key."""
    hints = get_type_hints(cls)
    for key, value in raw.items():
        full_key = f"{prefix}{key}"
        if key not in hints:
            raise ConfigError(_unknown(full_key, hints))
        hint: type = hints[key]
        if is_dataclass(hint):
            if value is None:
                continue
            if not isinstance(value, Mapping):
                raise ConfigError(f"{full_key} expects a mapping, not {short(value)}.")
            _assign(node[key], hint, value, f"{full_key}.")
            continue
        if value is None and OmegaConf.is_missing(node, key):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", FutureWarning)  # conversions between types
                takes_floats = hint is float or float in get_args(hint)
                node[key] = float(value) if takes_floats and type(value) is int else value
        except (OmegaConfBaseException, TypeError, OverflowError, FutureWarning) as error:
            raise ConfigError(
                f"{full_key} expects {_expected(hint)}, not {short(value)}."
            ) from error


def _unknown(full_key: str, hints: Mapping[str, Any]) -> str:
    """The sentence on an unknown key; the same key of another section is nearest."""
    leaf = full_key.rpartition(".")[2]
    for section, hint in get_type_hints(Config).items():
        if is_dataclass(hint) and leaf in get_type_hints(hint):
            return f"There is no key {full_key}; did you mean {section}.{leaf}?"
    return unknown("key", full_key, hints)


def _expected(hint: Any) -> str:
    """A type in words."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if hint in words:
        return words[hint]
    if hint is type(None):
        return "null"
    if get_origin(hint) is dict:
        return "a mapping with text keys"
    if get_origin(hint) is list:
        return f"a list (each element {_expected(get_args(hint)[0])})"
    return " or ".join(map(_expected, get_args(hint)))


def _resolve(node: DictConfig, path: Path, run_dir: Path | None) -> None:
    """Fill in what follows from other keys, and make paths absolute.

    Checkpoints may be gone once a run has read them: its training stage says so if it needs them.
    """
    node.run_dir = _absolute("run_dir", node.run_dir or str(run_dir or _default_run_dir(path)))
    if node.problem.get("root") is not None:
        node.problem["root"] = _absolute("problem.root", node.problem["root"])
    if "factory" in node.problem:
        folder = node.problem_path or ""
        node.problem_path = _absolute("problem_path", os.path.join(path.parent, folder))
    for name, file in list(node.masks.items()):
        if file is None:  # masks.NAME=null takes away what the run had
            del node.masks[name]
            continue
        node.masks[name] = _absolute(f"masks.{name}", file)
        if not os.path.isfile(node.masks[name]):
            raise ConfigError(f"masks.{name}: there is no file {node.masks[name]}.")
    if node.cluster is not None and os.path.isfile(node.cluster):
        node.cluster = _absolute("cluster", node.cluster)
    training = node.training
    asked = [] if OmegaConf.is_missing(training, "record_steps") else list(training.record_steps)
    known = run_dir and asked and os.path.isabs(training.checkpoints or "")
    if training.checkpoints is not None and not known:
        training.checkpoints = _absolute_pattern(training.checkpoints, path.parent)
        found = list(checkpoint_files(training.checkpoints))
        missing = sorted(set(asked) - set(found))
        if missing:
            raise ConfigError(
                f"training.record_steps asks for {missing}, but training.checkpoints has the steps "
                f"{found}."
            )
        training.record_steps = asked or found
    elif OmegaConf.is_missing(training, "record_steps"):
        training.record_steps = sorted({0, training.max_steps})


def _sketch_there(node: DictConfig) -> Sketch | None:
    """The section `sketch` of the run at `run_dir`, if there is one of the same recovery."""
    path = Path(node.run_dir, method_name(node), "hessian_config.yaml")
    with suppress(ConfigError):  # there is none, or whoever binds the run says what is wrong
        there = load_resolved(path).sketch
        return there if there.recovery == node.sketch.recovery else None
    return None


def _default_run_dir(path: Path) -> str:
    return os.path.join("runs", path.stem)


def _absolute(key: str, path: Any) -> str:
    """A path against the current folder, with ~ expanded."""
    if not isinstance(path, str) or "\0" in path:
        raise ConfigError(f"{key} expects a path, not {short(path)}.")
    absolute = os.path.abspath(os.path.expanduser(path))
    if "${" in absolute:
        raise ConfigError(
            f"{key} has ${{ in it, a reference in YAML: {absolute}; rename the folder."
        )
    try:
        absolute.encode()
        encoded = os.fsencode(absolute)
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{key} is {absolute!a}, which is not UTF-8, or no path in this locale; set "
            "LC_ALL=C.UTF-8, or choose a path in ASCII."
        ) from error
    if len(encoded) > LONGEST_PATH or any(len(part) > 255 for part in encoded.split(b"/")):
        raise ConfigError(
            f"{key} has a name of more than 255 bytes, or more than {LONGEST_PATH} in all; choose "
            "a shorter one."
        )
    return absolute


def _absolute_pattern(pattern: str, folder: Path) -> str:
    """A glob against the current folder if it matches there, or against the given one."""
    expanded = os.path.expanduser(pattern)
    bases = list(dict.fromkeys([os.getcwd(), str(folder)]))
    for base in bases:
        absolute = os.path.join(glob.escape(base), expanded)
        if "\0" not in pattern and matches(absolute):
            return absolute
    braces = " ({step} alone stands for digits)" if set("{}") & set(pattern) else ""
    raise ConfigError(
        f"training.checkpoints: no file matches {short(pattern)} in {' or in '.join(bases)}"
        f"{braces}."
    )


def _run_of(path: Path, text: str) -> Path | None:
    """The run directory that a file of this text is the config, or a method's config, of."""
    folders = {"config.yaml": path.parent, "hessian_config.yaml": path.parent.parent}
    return folders.get(path.name) if _is_written(text) else None


def _is_written(text: str) -> bool:
    """Whether `save` wrote a text, also where a part of its first line is damaged."""
    return text.startswith(WRITTEN) or CHECKED in text.partition("\n")[0]


def _intact(path: Path, text: str) -> str:
    """What stands below the checksum; refused if anything changed since."""
    header, newline, content = text.partition("\n")
    if header + newline != _checksum(content):
        raise ConfigError(
            f"{path} is not as skerch wrote it; delete it and run the experiment file again (with "
            "changes of your own as key=value), or copy it to another name."
        )
    return content


def _checksum(text: str) -> str:
    return f"{WRITTEN}; {CHECKED}: {hashlib.sha256(text.encode()).hexdigest()}\n"
