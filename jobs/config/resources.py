"""What a stage asks of a cluster: the cluster file, and `resources` of the experiment over it.

A cluster file is a mapping of sections: `all`, then stages. A stage gets the keys of `all`, of its
own section, then of `resources.all` and `resources.<stage>`; a layout, which times matvecs for the
workers, also what `measure` has. A null takes a key back, or an option of `sbatch`.

`resources: auto` stands for `resources.auto: true`: `submit` puts there, by stage, the memory and
time that it takes from what the run has used. They replace what the cluster file says of a stage.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from importlib.resources import files
from itertools import takewhile
from pathlib import Path
from reprlib import repr as short
from typing import Any

import yaml

from skerch.files import cause
from skerch.jobs.config.schema import Config
from skerch.jobs.config.stages import STAGES
from skerch.jobs.errors import ConfigError, unknown

SECTIONS = ("all", *STAGES)
AUTO = "auto"  # beside the sections, of an experiment alone
MEMORY_UNITS = {"K": 1 / 1024, "M": 1.0, "G": 1024.0, "T": 1024.0**2}  # in MiB
TIME_UNITS = {"min": 1, "h": 60, "d": 1440}  # in minutes


@dataclass(frozen=True)
class Resources:
    """What one job asks for; None leaves it to the cluster."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    gpus: int | None = None
    cpus: int | None = None
    memory: int | None = None  # MiB
    time: str | None = None  # as sbatch --time takes it
    mail_type: str | None = None
    mail_user: str | None = None
    throttle: int | None = None  # tasks of an array that run at once
    setup: tuple[str, ...] = ()  # shell lines before the program
    sbatch: dict[str, str | bool] = field(default_factory=dict)  # further options; true: a flag
    srun: tuple[str, ...] = ()  # further arguments of srun
    grace: int | None = None  # seconds before the time limit at which a task asks to be requeued
    requeues: int = 10  # how often, at most
    memory_factor: float = 2.0  # more memory after a task ran out of it
    memory_limit: int | None = None  # MiB, up to which; by default 8 times `memory`
    time_factor: float = 2.0  # more time after it was too short for a task
    time_limit: str | None = None  # up to which; by default 8 times `time`

    @property
    def most_memory(self) -> int | None:
        """Up to which memory, in MiB, a task that ran out of it is submitted again."""
        return self.memory_limit or (self.memory and 8 * self.memory)

    @property
    def minutes(self) -> int | None:
        """The time, in minutes."""
        return None if self.time is None else -(-_seconds(self.time) // 60)

    @property
    def most_minutes(self) -> int | None:
        """Up to which time, in minutes, a task for which it was too short is submitted again."""
        if self.time_limit is not None:
            return -(-_seconds(self.time_limit) // 60)
        return self.minutes and 8 * self.minutes


KEYS = tuple(f.name for f in fields(Resources))
ONE = "is not for a task, which is one process on one node; leave it out"
OWN = "is skerch's own to set; leave it out"
KEYED = {  # options of Slurm, and the key that asks for the same
    **{option: option for option in ("partition", "account", "qos", "constraint", "exclude")},
    **{"time": "time", "mem": "memory", "mail-type": "mail_type", "mail-user": "mail_user"},
    **{"cpus-per-task": "cpus", "cpus-per-gpu": "cpus", "tres-per-task": "cpus, gpus or memory"},
}
REFUSED = {  # options of Slurm that are not passed on, why, and the way out
    **{option: f"has a key of its own; write {key}" for option, key in KEYED.items()},
    **dict.fromkeys(("nodes", "ntasks", "ntasks-per-core", "ntasks-per-gpu"), ONE),
    **dict.fromkeys(("ntasks-per-node", "ntasks-per-socket", "ntasks-per-tres"), ONE),
    **dict.fromkeys(("tasks-per-node", "overcommit", "nodefile", "het-group"), ONE),
    **dict.fromkeys(("pack-group", "multi-prog", "pty", "relative"), ONE),
    **dict.fromkeys(
        ("array", "autocomplete", "chdir", "comment", "dependency", "error", "help"), OWN
    ),
    **dict.fromkeys(("jobid", "job-name", "kill-on-invalid-dep", "no-allocate", "no-requeue"), OWN),
    **dict.fromkeys(("open-mode", "output", "parsable", "quiet", "requeue", "signal"), OWN),
    **dict.fromkeys(("gid", "test-only", "uid", "usage", "version", "wait", "wrap"), OWN),
    "clusters": f"{OWN} and export SLURM_CLUSTERS",
}
EITHER = {  # options of sbatch that no task has beside this key
    **dict.fromkeys(("mem-per-cpu", "mem-per-gpu"), "memory"),
    **dict.fromkeys(("gpus", "gpus-per-node", "gpus-per-socket", "gpus-per-task", "gres"), "gpus"),
}
WHOLE = {  # and from where to where
    **{"gpus": (0, 1024), "cpus": (1, 1024), "throttle": (1, 1_000_000)},
    **{"grace": (1, 86_400), "requeues": (0, 1000)},
}


def resources(config: Config) -> dict[str, Resources]:
    """What each stage asks for, by stage.

    Raises:
        ConfigError: there is no such cluster file, or a section, key or value that cannot be.
    """
    source, sections = _load(config.cluster)
    own, taken = _parts(config.resources)
    of_file = _checked(sections, source)

    def of(stage: str) -> Resources:
        parts = _sections(stage)
        said = [
            *((f"{source}.{part}", of_file.get(part, {})) for part in parts),
            (f"resources.{AUTO}.{stage}", taken.get(stage, {})),
            *((f"resources.{part}", own.get(part, {})) for part in parts),
        ]
        values: dict[str, Any] = {}
        names: dict[str, str] = {}  # of keys and sbatch.options: where each is written
        for where, asked in said:
            options, before = asked.get("sbatch"), values.get("sbatch") or {}
            keys = [*asked, *(f"sbatch.{option}" for option in options or ())]
            names |= {key: f"{where}.{key}" for key in keys}
            values |= asked
            if options is not None:  # option by option
                values["sbatch"] = before | options
        given = {key: value for key, value in values.items() if value is not None}
        options = given.pop("sbatch", {})
        given["sbatch"] = {name: value for name, value in options.items() if value is not None}
        return _sensible(Resources(**given), names)

    return {stage: of(stage) for stage in STAGES}


def _sensible(wanted: Resources, names: Mapping[str, str]) -> Resources:
    """Refuse what contradicts itself; a short time limit has a short grace, unless one is given."""
    limit = wanted.time and _seconds(wanted.time)
    if limit and wanted.grace is not None and wanted.grace >= limit:
        raise ConfigError(
            f"{names['grace']} is {wanted.grace} s of a time of {limit} s ({names['time']}); it "
            "must be less."
        )
    if wanted.memory and wanted.memory_limit and wanted.memory_limit < wanted.memory:
        raise ConfigError(
            f"{names['memory_limit']} is {wanted.memory_limit}M, less than the memory, "
            f"{wanted.memory}M ({names['memory']}); raise it."
        )
    if wanted.minutes and wanted.time_limit and (wanted.most_minutes or 0) < wanted.minutes:
        raise ConfigError(
            f"{names['time_limit']} is {wanted.most_minutes} min, less than the time, "
            f"{wanted.minutes} min ({names['time']}); raise it."
        )
    for option, value in wanted.sbatch.items():
        key = _named(option, EITHER)
        other_gres = option == "gres" and "gpu" not in str(value)
        if key and getattr(wanted, key) is not None and not other_gres:
            raise ConfigError(
                f"{names[key]} and {names[f'sbatch.{option}']} ask for the same; take one of them "
                "back: null."
            )
    return wanted if wanted.grace else replace(wanted, grace=min(90, (limit or 360) // 4))


def _seconds(time: str) -> int:
    """A time as sbatch takes it: minutes, h:m:s, days-h, days-h:m or days-h:m:s."""
    if time.isdecimal():
        return 60 * int(time)
    days, _, rest = time.rpartition("-")
    hours, minutes, seconds = (*map(int, rest.split(":")), 0, 0)[:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def check(overrides: Mapping[str, Any]) -> None:
    """Refuse `resources` of an experiment that no cluster could take."""
    _parts(overrides)


def spelled_out(overrides: Any) -> Any:
    """`resources` of an experiment as a mapping, where it is the word auto."""
    return {AUTO: "true"} if overrides == AUTO else overrides


def is_automatic(config: Config) -> bool:
    """Whether memory and time are to be taken from what the run has used."""
    return str(config.resources.get(AUTO)).lower() == "true"


def taken(config: Config, proposal: Mapping[str, Mapping[str, str]]) -> Config:
    """A config that asks for the memory and time of a proposal, by stage.

    What the experiment's `resources` say stays, and so does memory that is asked for by CPU or GPU.
    A request is within the stage's limits, and longer than its grace.
    """
    plain = replace(config, resources={k: v for k, v in config.resources.items() if k != AUTO})
    wanted, (own, _), found = resources(plain), _parts(plain.resources), {}
    for stage, asked in proposal.items():
        now = wanted[stage]
        memory, minutes = _memory("", asked["memory"]), int(_time("", asked["time"]))
        if now.memory_limit:
            memory = min(memory, now.memory_limit)
        if now.time_limit:
            minutes = min(minutes, now.most_minutes or minutes)
        values = {"memory": f"{memory}M", "time": f"{max(minutes, (now.grace or 0) // 60 + 1)}min"}
        kept = {key for part in _sections(stage) for key in own.get(part, {})}
        kept |= {_named(option, EITHER) or "" for option in now.sbatch}
        if left := {key: value for key, value in values.items() if key not in kept}:
            found[stage] = left
    return replace(config, resources=plain.resources | {AUTO: found})


def _sections(stage: str) -> list[str]:
    """The sections that a stage has the keys of, the last one's first of all."""
    return [part for part in ("all", STAGES[stage].resources_of, stage) if part]


def _parts(overrides: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], ...]:
    """What the sections of an experiment's `resources` say, and what was taken automatically."""
    rest = dict(overrides)
    auto = rest.pop(AUTO, None)
    if not isinstance(auto, Mapping):
        if not _null(auto) and str(auto).lower() not in ("true", "false"):
            raise ConfigError(f"resources.{AUTO} is {short(auto)}; it must be true or false.")
        auto = {}
    return _checked(rest, "resources"), _checked(auto, f"resources.{AUTO}")


def written(document: str) -> Any:
    """YAML with each value as it is written: 1:30:00 is no number, and no is no truth value."""
    return yaml.load(document, _Loader)


class _Loader(yaml.SafeLoader):
    """Refuses what would be dropped: one of two values of a key, and a tag."""

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> str:
        if node.tag != self.DEFAULT_SCALAR_TAG:
            raise yaml.YAMLError(f"there is a tag, {node.tag}; quote what begins with !")
        return str(super().construct_scalar(node))

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"{key} is given twice")
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {"<": yaml.SafeLoader.yaml_implicit_resolvers["<"]}  # merge alone


def _load(cluster: str | None) -> tuple[str, Mapping[str, Any]]:
    """A cluster file's name and content: a path, or one of config/cluster by name."""
    if cluster is None:
        return "", {}
    packaged = {p.stem: p for p in Path(str(files("skerch.config"))).glob("cluster/*.yaml")}
    path = packaged.get(cluster) if not os.path.exists(cluster) else Path(cluster)
    if path is None:
        raise ConfigError(
            f"cluster={cluster}: there is no such file in {os.getcwd()}, and none of that name "
            f"comes with skerch (it has: {', '.join(sorted(packaged))})."
        )
    try:
        content = written(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cluster={path} cannot be read: {cause(error)}.") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        words = " ".join(str(error).split())
        raise ConfigError(f"cluster={path} is not valid YAML: {words}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"cluster={path} must hold a mapping of {', '.join(SECTIONS)}.")
    return str(path), content


def _checked(sections: Mapping[str, Any], source: str) -> dict[str, dict[str, Any]]:
    """The sections, their values as `Resources` has them."""
    for section, values in sections.items():
        if section not in SECTIONS:
            raise ConfigError(f"{source}: {unknown('stage', str(section), SECTIONS)}")
        if not isinstance(values, Mapping) and not _null(values):
            raise ConfigError(
                f"{source}.{section} expects a mapping, as in {section}: {{time: 60min}}, not "
                f"{short(values)}."
            )
    return {
        section: dict(_values({} if _null(values) else values, f"{source}.{section}"))
        for section, values in sections.items()
    }


def _values(section: Mapping[str, Any], source: str) -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if key not in KEYS:
            raise ConfigError(unknown("key", f"{source}.{key}", KEYS))
        name = f"{source}.{key}"
        if _null(value):
            yield key, None
        elif key in WHOLE:
            yield key, _whole(name, value, *WHOLE[key])
        elif key in ("memory", "memory_limit"):
            yield key, _memory(name, value)
        elif key in ("memory_factor", "time_factor"):
            yield key, _factor(name, value)
        elif key in ("time", "time_limit"):
            yield key, _time(name, value)
        elif key == "setup":
            yield key, _setup(name, value)
        elif key == "srun":
            yield key, _arguments(name, value)
        elif key == "sbatch":
            yield key, _options(name, value)
        else:
            yield key, _text(name, value)


def _null(value: Any) -> bool:
    """Whether it takes a key back, as YAML or as text."""
    return value is None or (isinstance(value, str) and value.lower() in ("", "null", "~"))


def _text(name: str, value: Any) -> str:
    if isinstance(value, (Mapping, list)) or re.search(r"[\0-\x1f\x7f\\\ud800-\udfff]", str(value)):
        raise ConfigError(
            f"{name} expects one line of text without backslashes, not {short(value)}."
        )
    return str(value)


def _whole(name: str, value: Any, least: int, most: int) -> int:
    number = int(value) if re.fullmatch(r"\d{1,9}", str(value)) else -1
    if not least <= number <= most:
        raise ConfigError(
            f"{name} is {short(value)}; it must be a whole number from {least} to {most}."
        )
    return number


def _factor(name: str, value: Any) -> float:
    if not re.fullmatch(r"\d{1,3}(\.\d+)?", str(value)) or float(value) < 1:
        raise ConfigError(f"{name} is {short(value)}; it must be a number from 1 to 999.")
    return float(value)


def _memory(name: str, value: Any) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT])i?B?", str(value).upper().replace("IB", "B"))
    if not found or not float(found[1]):
        raise ConfigError(f"{name} is {short(value)}; give a unit, as in 500M or 16G.")
    return max(1, round(float(found[1]) * MEMORY_UNITS[found[2]]))


def _time(name: str, value: Any) -> str:
    words = str(value)
    if re.fullmatch(r"0*[1-9]\d*(\.\d+)?", words):  # minutes for sbatch
        raise ConfigError(f"{name} is {words}; give a unit, as in 3h or 30min.")
    if re.fullmatch(r"\d+:\d+", words):
        raise ConfigError(
            f"{name} is {words}, which is minutes and seconds for sbatch; write 0:{words}, or "
            f"{words}:00 for hours and minutes."
        )
    if unit := re.fullmatch(r"(\d+(?:\.\d+)?)(min|h|d)", words):
        words = str(round(float(unit[1]) * TIME_UNITS[unit[2]]))
    elif not re.fullmatch(r"\d+-\d+(:\d+){0,2}|\d+:\d+:\d+", words):
        words = ""
    if not re.search(r"[1-9]", words):
        raise ConfigError(f'{name} is {short(value)}; write 90min, 2h, 1d or "1-12:30:00".')
    return words


def _lines(name: str, value: Any) -> tuple[str, ...]:
    lines = [value] if isinstance(value, str) else value
    if not isinstance(lines, list) or any(
        not isinstance(line, str) or re.search(r"[\0\r\ud800-\udfff]", line) for line in lines
    ):
        raise ConfigError(f"{name} expects text or a list of it, not {short(value)}.")
    return tuple(lines)


def _setup(name: str, value: Any) -> tuple[str, ...]:
    lines = _lines(name, value)
    if any(re.search(r"^#SBATCH", line, re.MULTILINE) for line in lines):
        raise ConfigError(
            f"{name} has a line #SBATCH, which Slurm would skip; write a key of sbatch."
        )
    return lines


def _arguments(name: str, value: Any) -> tuple[str, ...]:
    arguments = _lines(name, value)
    for argument in takewhile("--".__ne__, arguments):
        option = argument.partition("=")[0]
        if option == ":" or re.match(r"-(?!-[a-z-]+$)", option):
            raise ConfigError(
                f"{name} has {option}; write an option's long name, as in --mpi=none."
            )
        if option.startswith("--"):
            _refuse(option[2:], f"{name} has {option}, which")
    return arguments


def _options(name: str, value: Any) -> dict[str, str | bool | None]:
    """Options by name: text, True for a flag, None for what takes it back."""
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"{name} expects a mapping of options of sbatch, as in {{reservation: maths}}, not "
            f"{short(value)}."
        )
    flags: dict[str, bool | None] = {"true": True, "false": None}
    options: dict[str, str | bool | None] = {}
    for option, v in value.items():
        if not re.fullmatch(r"[a-z][a-z-]*", str(option)):
            raise ConfigError(
                f"{name} has {short(option)}; write an option's long name, no dashes."
            )
        where = f"{name}.{option}"
        _refuse(option, where)
        word = "false" if _null(v) else str(v).lower()
        options[option] = flags[word] if word in flags else _text(where, v)
    return options


def _refuse(option: str, where: str) -> None:
    if why := _named(option, REFUSED):
        raise ConfigError(f"{where} {why}.")


def _named(option: str, table: Mapping[str, str]) -> str | None:
    """What a table has for an option, or for one that begins so: Slurm takes it for that."""
    return next((value for name, value in table.items() if name.startswith(option)), None)
