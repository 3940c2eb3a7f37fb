"""Arrays of other libraries as tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from skerch.errors import SkerchError

# array types that are nothing but their numbers; so is a masked array in which nothing is masked
PLAIN_ARRAYS = (np.ndarray, np.matrix, np.memmap, np.ma.MaskedArray)


def is_array(obj: Any) -> bool:
    """Whether `obj` is a tensor, a NumPy array, a list, or something that NumPy reads as one."""
    opts_out = getattr(obj, "__array_ufunc__", True) is None  # as our operators do
    return isinstance(obj, Tensor | list | tuple) or (hasattr(obj, "__array__") and not opts_out)


def as_tensor(
    array: Any, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Tensor:
    """An array as a tensor of `dtype` on `device`, if given; foreign byte orders are swapped.

    Raises `SkerchError` for what would lose its meaning: arrays that are more than their numbers
    (masked ones), dtypes that torch lacks, and complex numbers where `dtype` is real.
    """
    if isinstance(array, torch.masked.MaskedTensor) or np.ma.is_masked(array):
        raise SkerchError(
            "A masked array has entries without a value; give them one, by array.filled(value) in "
            "NumPy or tensor.to_tensor(value) in torch."
        )
    tensor = array if isinstance(array, Tensor) else _from_numpy(array)
    if tensor.is_complex() and dtype is not None and not dtype.is_complex:
        raise SkerchError(
            f"An array of dtype {tensor.dtype} cannot become {dtype}, as only real operators are "
            "supported; pass its real or its imaginary part."
        )
    return tensor.to(device=device, dtype=dtype)


def _from_numpy(array: Any) -> Tensor:
    if isinstance(array, np.ndarray) and type(array) not in PLAIN_ARRAYS:
        raise SkerchError(
            f"An array of type {type(array).__name__} is more than its numbers; pass those alone, "
            "np.asarray(array)."
        )
    try:
        converted = np.asarray(array)
    except (ValueError, TypeError, RuntimeError) as error:  # ragged, or tensors that NumPy refuses
        raise SkerchError(f"A {type(array).__name__} is no array here ({error}).") from error
    try:
        plain = np.require(converted, converted.dtype.newbyteorder("="), ["C", "W"])
        return torch.from_numpy(plain)
    except TypeError as error:
        raise SkerchError(
            f"torch has no dtype {converted.dtype}; convert the array by .astype(np.float64)."
        ) from error
