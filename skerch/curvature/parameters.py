"""Which parameters span the Hessian, and their flat vector θ of length N.

The vector concatenates the parameters in the order of `model.named_parameters()`, each in row-major
order. A tied parameter counts once, under its first name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from reprlib import repr as short

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.parameter import is_lazy

from skerch.errors import ShapeError, SkerchError

ParamFilter = Callable[[str, Parameter], bool]  # of a name and its parameter
Filter = ParamFilter | str | Sequence[str]  # glob patterns, too


def match_names(*patterns: str) -> ParamFilter:
    """The filter that takes names that match one of the glob patterns."""
    return lambda name, _: bool(_matching([name], patterns))


def match_regex(*patterns: str) -> ParamFilter:
    """The filter that takes names in which one of the regular expressions is found."""
    compiled = [re.compile(pattern) for pattern in patterns]
    return lambda name, _: any(pattern.search(name) for pattern in compiled)


def select_parameters(model: Module, param_filter: Filter | None = None) -> dict[str, Parameter]:
    """The trainable parameters that a filter takes, in order; None takes all.

    A filter is a callable of a name and its parameter, or glob patterns: those that begin with !
    take away from what the others select, or from all.

    Raises SkerchError for a pattern that matches nothing, where nothing is left, for a complex
    parameter, and for a model without trainable parameters or with a shape that is not known yet.
    """
    check_shapes(model)
    known = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not known:
        raise SkerchError("The model has no parameter with requires_grad=True; set it on some.")
    return _real(known if param_filter is None else filter_parameters(known, param_filter))


def filter_parameters(known: Mapping[str, Parameter], param_filter: Filter) -> dict[str, Parameter]:
    """Those of the known parameters that a filter takes; raises as `select_parameters`."""
    if callable(param_filter):
        taken = {name: p for name, p in known.items() if param_filter(name, p)}
        if not taken:
            raise SkerchError(
                f"The param_filter selects zero parameters; the model has {', '.join(known)}."
            )
        return taken
    patterns = [param_filter] if isinstance(param_filter, str) else list(param_filter)
    if not patterns:
        raise SkerchError("An empty param_filter selects nothing; leave it out to select all.")
    for pattern in patterns:
        if not _matching(known, [pattern.removeprefix("!")]):
            raise SkerchError(
                f"The pattern {short(pattern)} matches no trainable parameter; the model has "
                f"{', '.join(known)}."
            )
    chosen = _matching(known, [q for q in patterns if q[:1] != "!"] or ["*"])
    chosen -= _matching(known, [q[1:] for q in patterns if q[:1] == "!"])
    if not chosen:
        raise SkerchError(
            f"The patterns {', '.join(map(short, patterns))} leave no parameter; those with ! take "
            f"away all that the others select of {', '.join(known)}."
        )
    return {name: p for name, p in known.items() if name in chosen}


def _real(params: dict[str, Parameter]) -> dict[str, Parameter]:
    for name, p in params.items():
        if hasattr(p, "placements"):  # of a DTensor
            raise SkerchError(
                f"The parameter {name} is sharded over ranks; FSDPHessianOperator and others in "
                "skerch.curvature.sharded are of such networks."
            )
        if p.is_complex():
            raise SkerchError(
                f"The parameter {name} is complex, and Hessians are of real ones; make its "
                "torch.view_as_real the parameter, or leave it out by param_filter."
            )
    return params


def _matching(names: Iterable[str], patterns: Sequence[str]) -> set[str]:
    """The names that match one of the patterns."""
    return {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}


def check_shapes(model: Module) -> None:
    """Raise SkerchError for a parameter or buffer that gets its shape from a first batch."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise SkerchError(
                f"The model's {name} has no shape before the first batch (lazy modules); build the "
                "network with its shapes, or run it on a batch where it is built."
            )


def as_precision(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A floating tensor in `dtype`, a complex one in that of two of these; others as they are."""
    if tensor.is_complex():
        return tensor.to(dtype.to_complex())
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def total_size(params: Mapping[str, Tensor] | Iterable[Tensor]) -> int:
    """N, the number of entries of the parameters."""
    return sum(p.numel() for p in (params.values() if isinstance(params, Mapping) else params))


def params_to_vector(params: Mapping[str, Tensor]) -> Tensor:
    """The parameters as one detached copy of shape (N,)."""
    return torch.cat([p.detach().reshape(-1) for p in params.values()])


def vector_to_params(vector: Tensor, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A vector of shape (N,) in parts by name, shaped as the parameters; views of it.

    Raises ShapeError when the vector's shape is not (N,).
    """
    size = total_size(params)
    if vector.shape != (size,):
        raise ShapeError(
            f"The parameters have {size} elements and take a 1-D vector of shape ({size},), not "
            f"{tuple(vector.shape)}."
        )
    parts = torch.split(vector, [p.numel() for p in params.values()])
    return {name: part.view_as(p) for (name, p), part in zip(params.items(), parts, strict=True)}


def load_vector(vector: Tensor, params: Mapping[str, Tensor]) -> None:
    """Copy a vector of shape (N,) into the parameters, in place; raises as `vector_to_params`."""
    parts = vector_to_params(vector, params)
    with torch.no_grad():
        for name, p in params.items():
            p.copy_(parts[name])
