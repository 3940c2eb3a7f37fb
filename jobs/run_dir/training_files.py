"""What a training leaves for the later stages: recorded parameters and the Hessian datapoints.

`parameters.h5` holds, with checksums on every chunk:
    parameters   (N, n) one column per recorded step, in the order of `named_parameters`
    buffers      (B, n) float64, likewise, where the model has persistent buffers
    steps        (n,) int64
    description  JSON as bytes: names and shapes of both, the identity of the training and its
                 number of threads, the hash of each split's datapoints and of each file of
                 training.checkpoints, and what log.jsonl says
`hessian_data.pt` is a dict {split: batch} of tensors, tuples and dicts.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import torch
from torch import Tensor, nn

from skerch.curvature.parameters import load_vector, params_to_vector
from skerch.errors import SkerchError, first_line
from skerch.files import cause, stream_atomically, write_atomically
from skerch.hdf5 import create_dataset, open_hdf5, reading, write_arrays, write_hdf5
from skerch.jobs.problems import Problem, build_model
from skerch.jobs.run_dir import RunDir
from skerch.jobs.run_dir.provenance import Description


class RecordedError(SkerchError):
    """Parameters or datapoints that are missing, damaged, or of another training."""


@dataclass(frozen=True)
class Column:
    """The state of a network at one step."""

    parameters: Tensor  # (N,)
    buffers: Tensor  # (B,), float64

    def hash(self) -> str:
        """The SHA-256 of both."""
        return content_hash({"parameters": self.parameters, "buffers": self.buffers})


def column(model: nn.Module) -> Column:
    """A copy of a network's parameters and persistent buffers, flattened, on the CPU."""
    buffers = {name: buffer.double() for name, buffer in _buffers(model).items()}
    return Column(
        params_to_vector(dict(model.named_parameters())).cpu(),
        params_to_vector(buffers).cpu()
        if buffers
        else torch.empty(0, dtype=torch.float64, device="cpu"),
    )


def write_parameters(
    path: Path,
    model: nn.Module,
    columns: Mapping[int, Column],
    identity: Mapping[str, Any],
    datapoints: Mapping[str, str],
    log: Sequence[dict[str, Any]] = (),
    checkpoints: Mapping[int, str] | None = None,
) -> None:
    """Write the columns of a model in the order of their steps, atomically.

    With them go the hashes of what they depend on.
    """
    order = sorted(columns)
    description = Description(
        parameters=_shapes(dict(model.named_parameters())),
        buffers=_shapes(_buffers(model)),
        identity=identity,
        datapoints=datapoints,
        threads=torch.get_num_threads(),
        log=log,
        checkpoints=dict(sorted((checkpoints or {}).items())),
        steps=order,
    )

    def fill(file: h5py.File) -> None:
        _write_columns(file, "parameters", [columns[s].parameters for s in order])
        if description.buffers:
            _write_columns(file, "buffers", [columns[s].buffers for s in order])
        text = bytearray(json.dumps(description.content()).encode())
        small = {
            "steps": torch.tensor(order, dtype=torch.int64, device="cpu"),
            "description": torch.frombuffer(text, dtype=torch.uint8),
        }
        write_arrays(file, small, {})

    write_hdf5(path, fill)


def describe(run: RunDir) -> Description:
    """Of what the recorded parameters are."""
    with _open(run) as file:
        return _description(file)


def load_parameters(run: RunDir, step: int) -> Tensor:
    """The parameters (N,) at a recorded step, in the order of `named_parameters`."""
    with _open(run) as file:
        return _read_column(file, "parameters", _position(run, file, step))


def load_column(run: RunDir, step: int) -> Column:
    """The state that is recorded at a step."""
    with _open(run) as file:
        return _column(file, _position(run, file, step))


def load_model(run: RunDir, problem: Problem, step: int) -> nn.Module:
    """The network at a recorded step, in eval mode, without touching any dataset.

    Raises:
        RecordedError: nothing is recorded at that step, the file is missing or damaged, or the
            problem's network is no longer the one that was trained.
    """
    with _open(run) as file:
        position = _position(run, file, step)
        description, state = _description(file), _column(file, position)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(problem)
    kinds: dict[str, Mapping[str, Tensor]]
    kinds = {"parameters": dict(model.named_parameters()), "buffers": _buffers(model)}
    for kind, named in kinds.items():
        expected, found = getattr(description, kind), _shapes(named)
        if found != expected:
            new, old = next(
                pair for pair in zip([*found, None], [*expected, None], strict=False)
                if pair[0] != pair[1]
            )  # fmt: skip
            raise RecordedError(
                f"The problem's network is not the one recorded in {run.parameters}: its {kind} "
                f"differ first in {new}, recorded as {old}; take the old model back, or set "
                "another run_dir."
            )
    load_vector(state.parameters, kinds["parameters"])
    if len(state.buffers):
        load_vector(state.buffers, kinds["buffers"])
    return model.eval()


def check_checkpoints(run: RunDir, files: Mapping[int, Path]) -> None:
    """Raise RecordedError where a state dict changed since its parameters were recorded."""
    for step, digest in describe(run).checkpoints.items():
        path = files.get(step)
        if path is not None and file_hash(path) != digest:
            raise RecordedError(
                f"{path} has changed since its parameters were recorded in {run.parameters}; put "
                "the old file back, or set another run_dir."
            )


def write_log(path: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Write a training's log, one JSON object a line, atomically."""
    write_atomically(
        path, lambda temporary: temporary.write_text(_lines(entries), encoding="utf-8")
    )


def check_log(run: RunDir) -> None:
    """Raise RecordedError unless the log has all that was written; there may be more by now."""
    try:
        lines = run.log.read_bytes().split(b"\n")
    except OSError as error:
        raise RecordedError(f"{run.log} cannot be read: {cause(error)}.") from error
    if not set(_lines(describe(run).log).encode().split(b"\n")).issubset(lines):
        raise _damaged(run.log, "it is not what the training logged")


def write_hessian_data(path: Path, batches: Mapping[str, Any]) -> None:
    """Write the Hessian datapoints of each split, atomically."""
    stream_atomically(path, lambda stream: torch.save(dict(batches), stream))


def check_hessian_data(run: RunDir) -> None:
    """Raise RecordedError unless the datapoints of all recorded splits are there as written."""
    for split in describe(run).datapoints:
        load_hessian_data(run, split)


def load_hessian_data(run: RunDir, split: str) -> Any:
    """The batch of all Hessian datapoints of a split, on the CPU; the very ones of the training."""
    hashes = describe(run).datapoints
    batches = _load(run.hessian_data, mmap=True)  # which reads nothing of the other splits
    if split not in hashes:
        raise RecordedError(
            f"{run.hessian_data} has no datapoints of split {split!r}, only of {', '.join(hashes)}."
        )
    batch = deepcopy(batches.get(split))  # the file may change
    if content_hash(batch) != hashes[split]:
        raise _damaged(run.hessian_data, "its content does not have the recorded hash")
    return batch


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a tree of tensors, numbers and text, atomically, with its hash."""
    whole = {"state": state, "hash": content_hash(state)}
    stream_atomically(path, lambda stream: torch.save(whole, stream))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What `write_checkpoint` wrote, on the CPU."""
    whole = _load(path)
    if whole.keys() != {"state", "hash"} or content_hash(whole["state"]) != whole["hash"]:
        raise _damaged(path, "its content does not have its hash")
    state: dict[str, Any] = whole["state"]
    return state


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(2**20):
                digest.update(piece)
    except OSError as error:
        raise RecordedError(f"{path} cannot be read: {cause(error)}.") from error
    return digest.hexdigest()


def content_hash(tree: Any) -> str:
    """SHA-256 of a tree of mappings, sequences and tensors: names, types, shapes and bits."""
    digest = hashlib.sha256()

    def visit(node: Any) -> None:
        digest.update(f"{type(node).__name__}:".encode())
        if isinstance(node, Tensor):
            digest.update(f"{node.dtype}{tuple(node.shape)}".encode())
            digest.update(node.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(node, Mapping):
            for key, value in node.items():
                visit(key)
                visit(value)
        elif isinstance(node, list | tuple):
            for item in node:
                visit(item)
        else:
            digest.update(repr(node).encode())
        digest.update(b";")

    visit(tree)
    return digest.hexdigest()


def _load(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """A dict that `torch.save` wrote, unpickled safely.

    torch itself does not look at the archive's checksums. Those of the tensors' contents would cost
    as much as the hashes, which callers compare as they cover the rest of the archive, too.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if "/data/" not in name:
                    archive.read(name)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        if isinstance(content, dict):
            return content
        reason = "it holds no dict"
    except FileNotFoundError as error:
        raise RecordedError(f"{path} is missing; the train stage writes it.") from error
    except (
        zipfile.BadZipFile,
        zlib.error,
        pickle.UnpicklingError,
        OSError,
        RuntimeError,
        ValueError,
        KeyError,
        EOFError,
    ) as error:
        reason = first_line(error)
    raise _damaged(path, reason)


def _damaged(path: Path, reason: str) -> RecordedError:
    return RecordedError(
        f"{path} is damaged ({reason}); delete it, and the train stage writes it again."
    )


@contextmanager
def _open(run: RunDir) -> Iterator[h5py.File]:
    """The parameters file for reading."""
    path = run.parameters
    with reading(path), open_hdf5(path) as file:
        yield file


def _position(run: RunDir, file: h5py.File, step: int) -> int:
    steps = _steps(file)
    if step not in steps:
        raise RecordedError(
            f"{run.parameters} has no step {step}; training.record_steps was {steps}."
        )
    return steps.index(step)


def _steps(file: h5py.File) -> list[int]:
    return [int(step) for step in file["steps"][()]]


def _description(file: h5py.File) -> Description:
    return Description.of(json.loads(file["description"][()].tobytes()), _steps(file))


def _column(file: h5py.File, position: int) -> Column:
    parameters = _read_column(file, "parameters", position)
    if not _description(file).buffers:
        return Column(parameters, torch.empty(0, dtype=torch.float64, device="cpu"))
    return Column(parameters, _read_column(file, "buffers", position))


def _read_column(file: h5py.File, name: str, position: int) -> Tensor:
    return torch.from_numpy(file[name][:, position])


def _write_columns(file: h5py.File, name: str, columns: Sequence[Tensor]) -> None:
    shape = (len(columns[0]), len(columns))
    dataset = create_dataset(file, name, shape, columns[0].numpy().dtype, columns=1)
    for index, values in enumerate(columns):
        dataset[:, index] = values.numpy()


def _lines(entries: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that belong to a model's state."""
    state = model.state_dict()
    return {name: buffer for name, buffer in model.named_buffers() if name in state}


def _shapes(named: Mapping[str, Tensor]) -> list[list[Any]]:
    return [[name, list(tensor.shape)] for name, tensor in named.items()]
