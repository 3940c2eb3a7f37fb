"""Files of tensors from elsewhere, read without running code of theirs: .pt and .safetensors."""

from __future__ import annotations

import pickle
import re
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from skerch.errors import SkerchError, first_line

STEPS = ("global_step", "step", "iter_num")  # of Lightning, of tutorials, of nanoGPT


class StateDictError(SkerchError):
    """A file that holds no state dict of the problem's network; the message names the file."""


def step_inside(path: Path) -> int | None:
    """The training step that a file tells beside its tensors.

    None where it tells none, or cannot be read: what is wrong with it is said when it is loaded.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                content = file.metadata()
        else:
            content = _unpickle(path, mmap=zipfile.is_zipfile(path))  # which reads no tensor
    except Exception:  # a damaged file leads the unpickler anywhere
        return None
    for key in STEPS if isinstance(content, Mapping) else ():
        value = content.get(key)
        if type(value) is int or (isinstance(value, str) and value.isdecimal()):
            return int(value)
    return None


def read(path: Path) -> Any:
    """What a file holds, on the CPU; no code of it is run."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if zipfile.is_zipfile(path):  # whose checksums torch does not look at
            with zipfile.ZipFile(path) as archive:
                if archive.testzip() is not None:
                    raise StateDictError(f"{path} is damaged; bring back a sound copy.")
        return _unpickle(path)
    except SkerchError:
        raise
    except pickle.UnpicklingError as error:
        kind = re.search(r"GLOBAL (\S+)", str(error))
        raise StateDictError(
            f"{path} holds more than tensors{f' ({kind[1]})' if kind else ''}, or is damaged; save "
            "model.state_dict() alone: load it once with weights_only=False, if you trust it, and "
            "torch.save its state dict."
        ) from error
    except Exception as error:  # a damaged file leads the unpickler anywhere
        raise StateDictError(
            f"{path} cannot be read: {first_line(error).partition('. ')[0]}; save "
            "model.state_dict() alone, with torch.save."
        ) from error


def _unpickle(path: Path, *, mmap: bool = False) -> Any:
    torch.serialization.add_safe_globals([Namespace])  # the arguments in timm's files
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
