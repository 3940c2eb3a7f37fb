"""The masks besides the largest parameters whose overlap is taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from skerch.analysis.masks import given_mask, layer_order, magnitude_order
from skerch.curvature.parameters import params_to_vector
from skerch.errors import SkerchError, first_line
from skerch.jobs.config import ConfigError
from skerch.jobs.run_dir import gradient_file
from skerch.jobs.stages.context import Context


@dataclass(frozen=True)
class OtherMasks:
    """Masks by name."""

    orders: Mapping[str, Tensor]  # (N,) whose first k are a mask of k parameters
    given: Mapping[str, Tensor]  # (m,) that are the same for every k

    @property
    def fields(self) -> dict[str, Any]:
        """What `HessianResults` says of them."""
        sizes = [None for _ in self.orders] + [len(mask) for mask in self.given.values()]
        return {"other_masks": [*self.orders, *self.given], "other_sizes": sizes}


def other_masks(context: Context, selected: Mapping[str, Tensor]) -> OtherMasks:
    """Those by gradient and by layer, of the selected parameters, and those of the config."""
    gradient = gradient_file.read(context.directory.gradient)
    orders = {} if gradient is None else {"gradient": magnitude_order(gradient)}
    sizes = [parameter.numel() for parameter in selected.values()]
    orders["layers"] = layer_order(params_to_vector(selected), sizes)
    given = {
        name: read(f"masks.{name}", Path(path), selected)
        for name, path in context.config.masks.items()
    }
    return OtherMasks(orders, given)


def read(key: str, path: Path, selected: Mapping[str, Tensor]) -> Tensor:
    """The indices (m,) of the mask that a key's file holds, of the selected parameters.

    A .npy file has the indices, or 0 and 1 for all N parameters; a .safetensors file likewise, or 0
    and 1 by the parameters' names.

    Raises ConfigError where it has not.
    """
    try:
        if path.suffix == ".npy":
            values = torch.from_numpy(np.load(path, allow_pickle=False))
        else:
            tensors = load_file(path)
            named = {name: tensors[name] for name in selected if name in tensors}
            if len(tensors) > 1 and len(named) < len(selected):
                raise ValueError(f"it lacks {next(iter(selected.keys() - named.keys()))}")
            for name, tensor in named.items():  # another shape has its entries in another order
                if tensor.shape != selected[name].shape:
                    raise ValueError(
                        f"{name} has the shape {tuple(tensor.shape)}, and the parameter "
                        f"{tuple(selected[name].shape)}"
                    )
            values = params_to_vector(named or tensors)
    except (OSError, ValueError, TypeError, LookupError, SafetensorError) as error:
        raise ConfigError(
            f"{key}: {path} cannot be read as .npy or .safetensors ({first_line(error)})."
        ) from error
    try:
        return given_mask(values, sum(parameter.numel() for parameter in selected.values()))
    except SkerchError as error:
        raise ConfigError(f"{key}: {path}: {error}") from error
