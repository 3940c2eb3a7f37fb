"""Problems: what is trained, on which data, with which loss. The registry imports no torch.

A problem is one file of this folder, found by its name, with a function of the same name that
takes keyword arguments and returns a `Problem`. A user's own is `factory: "module:function"`.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from reprlib import repr as short
from types import FrameType
from typing import TYPE_CHECKING, Any

import skerch
from skerch.errors import SkerchError
from skerch.jobs.errors import ConfigError, unknown

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from torch.utils.data import Dataset

OURS = (Path(skerch.__file__).parent, Path(__file__).parents[1])
PYTHONS = Path(sysconfig.get_path("stdlib"))
INSTALLED = {"site-packages", "dist-packages"}  # folders of libraries, wherever they lie
_folders: set[str] = set()  # that factories were imported from
_factories: set[str] = set()  # top-level modules of the user's factories, which may be installed


@dataclass(frozen=True)
class Problem:
    """A model, its data and its loss, rebuilt cheaply anywhere.

    A batch is what torch's `default_collate` makes of samples: a tuple or a dict of tensors.
    """

    model: Callable[[], Module]  # builds the network, without touching data
    data: Callable[[str], Dataset[Any]]  # of a split's name; called by training only
    loss_fn: Callable[[Module, Any], Tensor]  # of (model, batch): a scalar mean
    batch_weight: Callable[[Any], float] | None = None  # what that mean divides by

    def __post_init__(self) -> None:
        """Without a weight it is what the loss says of itself, or else the number of examples."""
        if self.batch_weight is None:
            own = getattr(self.loss_fn, "batch_weight", None)
            object.__setattr__(self, "batch_weight", own)


def names() -> list[str]:
    """The problems that come with skerch."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))


def check(problem: Mapping[str, Any]) -> None:
    """Refuse a config's `problem` section that names no problem, or two; imports nothing."""
    if ("name" in problem) == ("factory" in problem):
        raise ConfigError(
            "problem needs either name or factory, as in problem.name=digits_mlp or "
            "problem.factory=my_module:make_problem."
        )
    if "name" in problem and problem["name"] not in names():
        raise ConfigError(unknown("problem", str(problem["name"]), names()))
    if "factory" in problem and not re.fullmatch(r"[\w.]+:\w+", str(problem["factory"])):
        raise ConfigError(
            f"problem.factory is {short(problem['factory'])}; it must be module:function, as in "
            "my_module:make_problem."
        )


def load_problem(problem: Mapping[str, Any], problem_path: str | None = None) -> Problem:
    """The problem of a config's `problem` section, its other keys passed on as arguments.

    The module of a `factory` is looked for in the folder `problem_path` first.

    Raises:
        ConfigError: there is no such problem, its module cannot be imported, an argument is
            unknown or missing, or what it returns is no `Problem`, or has no loss (model, batch).
    """
    check(problem)
    arguments = {k: v for k, v in problem.items() if k not in ("name", "factory")}
    make = _registered(problem["name"]) if "name" in problem else _user(problem, problem_path)
    _check_arguments(make, arguments)
    with user_code("problem failed"):
        made = make(**arguments)
    if not isinstance(made, Problem):
        raise ConfigError(
            f"problem.factory {problem['factory']} returned a {type(made).__name__}; it must "
            "return skerch.jobs.problems.Problem(model, data, loss_fn)."
        )
    _check_loss(made.loss_fn)
    return made


def _check_loss(loss_fn: Any) -> None:
    """Refuse a loss that cannot be called with (model, batch), such as what makes a loss."""
    try:
        inspect.signature(loss_fn).bind(None, None)
    except TypeError as error:
        name = getattr(loss_fn, "__name__", short(loss_fn))
        raise ConfigError(
            f"problem: loss_fn {name} does not take (model, batch): {error}. If it makes a loss, "
            f"call it, as in {name}(…)."
        ) from error
    except ValueError:  # a signature that cannot be read
        pass


def build_model(problem: Problem) -> Module:
    """The network of a problem; what its own code raises is named with its file and line."""
    from torch.nn import Module

    from skerch.curvature.parameters import check_shapes

    if isinstance(problem.model, Module):
        raise ConfigError("problem: model is a network; give a function that builds it.")
    with user_code("problem: model() failed"):
        model = problem.model()
    if not isinstance(model, Module):
        raise ConfigError(
            f"problem: model() returned a {type(model).__name__}; it must return a torch.nn.Module."
        )
    try:
        check_shapes(model)
    except SkerchError as error:
        raise ConfigError(f"problem: model(): {error}") from error
    return model


def load_data(problem: Problem, split: str) -> Dataset[Any]:
    """The dataset of a split; what the problem's own code raises is named likewise."""
    with user_code(f"problem: data({split!r}) failed"):
        return problem.data(split)


def _registered(name: str) -> Callable[..., Problem]:
    make: Callable[..., Problem] = getattr(
        importlib.import_module(f"skerch.jobs.problems.{name}"), name
    )
    return make


def _user(problem: Mapping[str, Any], problem_path: str | None) -> Callable[..., Any]:
    """The function of a `module:function`."""
    module_name, function_name = problem["factory"].split(":")
    _factories.add(module_name.partition(".")[0])
    if problem_path is not None:
        _prefer(problem_path, module_name)
    with user_code(f"problem.factory {problem['factory']} cannot be imported"):
        module = importlib.import_module(module_name)
    function: Callable[..., Any] | None = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(
            f"problem.factory: {getattr(module, '__file__', module_name)} has no function "
            f"{function_name}."
        )
    return function


def _prefer(folder: str, module_name: str) -> None:
    """Have a module, and what it imports from there, come from a folder.

    This process may have modules of the same names from other places, as of another run's problem.
    """
    sys.path[:] = [folder, *(path for path in sys.path if path != folder)]
    top = module_name.partition(".")[0]
    there = PathFinder.find_spec(top, [folder])
    for name, loaded in list(sys.modules.items()):
        file = getattr(loaded, "__file__", None) or ""
        another = name == top and there and there.origin != file
        if another or str(Path(file).parent) in _folders - {folder}:
            del sys.modules[name]
    _folders.add(folder)


def _check_arguments(make: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that the signature does not have, and missing ones."""
    try:
        parameters = inspect.signature(make).parameters.values()
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"problem.factory: the arguments of it cannot be read ({error}); give a function of "
            "your own."
        ) from error
    named = {p.name: p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for key in arguments:
            if key not in named:
                raise ConfigError(unknown("key", f"problem.{key}", named))
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in arguments:
            raise ConfigError(
                f"problem.{name} is missing; {getattr(make, '__name__', 'the factory')} needs it."
            )


@contextmanager
def user_code(what: str) -> Iterator[None]:
    """Name the cause, and its file and line, of whatever a problem's own code raises."""
    try:
        yield
    except SkerchError:
        raise
    except (Exception, SystemExit) as error:  # the code is the user's: it may raise anything
        raise ConfigError(f"{what}: {describe(error).rstrip('.')}.") from error


def describe(error: BaseException) -> str:
    """An error's name, first words, and the last line of the user's own code that it came through.

    One of ours is its sentence; what another was raised from is named with it.
    """
    if isinstance(error, SkerchError):
        return str(error)
    origin = f", from {_named(error.__cause__)}" if error.__cause__ else ""
    return f"{_named(error)}{origin}"


def _named(error: BaseException) -> str:
    said = str(traceback.TracebackException.from_exception(error))  # also where str(error) fails
    first = re.match(r"\s*((?:.*:\n)*.*)", said)  # a line, and the next where it ends in a colon
    words = " ".join(first[1].split()) if first else ""
    own = [(f, line) for f, line in traceback.walk_tb(error.__traceback__) if _is_own(f)]
    place = f" ({own[-1][0].f_code.co_filename}:{own[-1][1]})" if own else ""
    return type(error).__name__ + (words and f": {words}") + place


def _is_own(frame: FrameType) -> bool:
    """Whether a frame is of the user's code: neither ours, nor Python's, nor of a library."""
    if str(frame.f_globals.get("__name__")).partition(".")[0] in _factories:
        return True
    path = Path(frame.f_code.co_filename)
    return not (
        frame.f_code.co_filename.startswith("<")
        or INSTALLED & set(path.parts)
        or any(path.is_relative_to(folder) for folder in (*OURS, PYTHONS))
    )
