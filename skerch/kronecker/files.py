"""Files of sums, factors, eigenbases, eigenvalues and operators: safetensors, without pickle.

A tensor of a layer is named `<layer>/<tensor>`. The one entry `skerch` of the metadata is JSON, so
that the same content is the same bytes: `version`, `kind` of the content, `about` it, and `sha256`
of all that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from skerch.files import FileError, refusals_named, write_atomically
from skerch.kronecker.eigenbasis import Basis
from skerch.kronecker.layers import layer_from_json
from skerch.kronecker.operator import Block, DenseBlock, KroneckerBlock, KroneckerOperator

VERSION = 1
OPERATOR = "operator.safetensors"
Layered = Mapping[str, Mapping[str, Tensor]]  # by layer, then by name


@dataclass(frozen=True)
class Content:
    """What a file has."""

    kind: str
    layers: dict[str, dict[str, Tensor]]  # by layer, then by name
    about: dict[str, Any]


def write(
    path: Path | str, kind: str, layers: Layered, about: Mapping[str, Any] | None = None
) -> None:
    """Write tensors of layers, and what is known about them as JSON, atomically.

    Raises FileError where the operating system refuses.
    """
    tensors = {
        f"{layer}/{name}": _alone(tensor)
        for layer, own in layers.items()
        for name, tensor in own.items()
    }
    header = {"version": VERSION, "kind": kind, "about": dict(about or {})}
    header["sha256"] = _hash(header, tensors)
    metadata = {"skerch": json.dumps(header, sort_keys=True)}

    def fill(temporary: Path) -> None:
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:
            raise FileError(f"{path} cannot be written: {error}.") from error

    write_atomically(path, fill)


def read(path: Path | str, kind: str | None = None, device: torch.device | str = "cpu") -> Content:
    """Read a file, onto a device.

    Raises FileError for one that is missing, damaged, of a newer version or of another `kind`.
    """
    remedy = "Remove it, then run again what made it."
    tensors: dict[str, Tensor] = {}
    with refusals_named():
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get("skerch", "{}"))
                if header.get("version", 0) > VERSION:
                    raise FileError(
                        f"{path} is of version {header['version']}, and this skerch reads up to "
                        f"{VERSION}; update skerch."
                    )
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError as error:
            raise FileError(f"{path} is missing; run what makes it, or give its path.") from error
        except (SafetensorError, json.JSONDecodeError) as error:
            raise FileError(f"{path} is damaged ({error}). {remedy}") from error
    if "sha256" not in header:
        raise FileError(f"{path} is no file of skerch's Kronecker factors.")
    if header.pop("sha256") != _hash(header, tensors):
        raise FileError(f"{path} is damaged: its hash is not that of its content. {remedy}")
    if kind is not None and header["kind"] != kind:
        raise FileError(f"{path} has {header['kind']}, not {kind}; give the path of another file.")
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, own = name.rpartition("/")
        layers.setdefault(layer, {})[own] = tensor.to(device)
    return Content(header["kind"], layers, header["about"])


def basis_tensors(S: Basis, A: Basis) -> dict[str, Tensor]:
    """Bases of a layer as tensors of a file; `bases_of` is the inverse."""
    found = {}
    for name, basis in (("S", S), ("A", A)):
        found[f"{name}.values"] = basis.values
        if basis.vectors is not None:
            found[f"{name}.vectors"] = basis.vectors
    return found


def bases_of(tensors: Mapping[str, Tensor]) -> tuple[Basis, Basis]:
    """The bases of S and A of a layer's tensors."""
    S, A = (
        Basis(
            tensors.get(f"{name}.vectors"),
            tensors[f"{name}.values"],
            tensors.get(f"{name}.vectors", tensors[f"{name}.values"].mT).shape[-2],
        )
        for name in ("S", "A")
    )
    return S, A


def save(directory: Path | str, op: KroneckerOperator, **about: Any) -> None:
    """Write an operator, and what else is to be known about it, such as its `method`."""
    known = {
        "layers": [block.layer.to_json() for block in op.blocks],
        "shapes": [[name, list(shape)] for name, shape in op.shapes.items()],
        "uncovered": op.uncovered,
        "dtype": str(op.dtype).removeprefix("torch."),
        "elsewhere": op.elsewhere,
    }
    layers = {block.layer.name: _block_tensors(block) for block in op.blocks}
    write(Path(directory) / OPERATOR, "operator", layers, {**about, **known})


def load(directory: Path | str, device: torch.device | str = "cpu") -> KroneckerOperator:
    """The operator that `save` wrote, without its network, on a device.

    Raises FileError for one that is missing or damaged.
    """
    found = read(Path(directory) / OPERATOR, "operator", device)
    about = found.about
    blocks: list[Block] = []
    for data in about["layers"]:
        layer = layer_from_json(data)
        tensors = found.layers[layer.name]
        if "vectors" in tensors:
            blocks.append(DenseBlock(layer, tensors["values"], tensors["vectors"]))
        else:
            blocks.append(KroneckerBlock.of(layer, *bases_of(tensors), tensors.get("values")))
    return KroneckerOperator(
        dict(about["shapes"]),
        blocks,
        uncovered=about["uncovered"],
        dtype=getattr(torch, about["dtype"]),
        device=device,
        elsewhere=about["elsewhere"],
    )


def _block_tensors(block: Block) -> dict[str, Tensor]:
    if isinstance(block, KroneckerBlock):
        own = {"values": block.values} if block.corrected else {}
        return {**basis_tensors(block.S, block.A), **own}
    assert isinstance(block, DenseBlock)
    return {"values": block.values, "vectors": block.vectors}


def _alone(tensor: Tensor) -> Tensor:
    """On the CPU, contiguous and with memory of its own."""
    tensor = tensor.detach().cpu().contiguous()
    is_part = tensor.untyped_storage().nbytes() != tensor.nbytes
    return tensor.clone() if is_part else tensor


def _hash(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(bytes(tensor.flatten().view(torch.uint8).numpy().data))
    return found.hexdigest()
