"""What the stages of Kronecker-factored methods share: partial sums, their merge, the files."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch

from skerch.curvature.batching import count_examples, split_batch, to_device
from skerch.curvature.fisher import FisherOperator, Numbered
from skerch.errors import SkerchError
from skerch.jobs.config import Config
from skerch.jobs.pipeline.kronecker import factor_file, is_corrected
from skerch.jobs.problems import user_code
from skerch.jobs.run_dir import StepDir, provenance, results_file
from skerch.jobs.run_dir.layers_file import LayersFile
from skerch.jobs.stages.choice import MeasureError, operator, require_same
from skerch.jobs.stages.context import Context
from skerch.jobs.stages.inputs import load_inputs
from skerch.kronecker import files
from skerch.kronecker.fit import Bases, factors_of
from skerch.kronecker.layers import Layer, Layers, layer_from_json
from skerch.kronecker.methods import make
from skerch.kronecker.methods.base import Method, Tensors
from skerch.kronecker.operator import Block, DenseBlock, KroneckerBlock, KroneckerOperator
from skerch.kronecker.sums import Scored, Sums, sum_up

MethodOf = Callable[[int], Method]  # of a partition


@dataclass(frozen=True)
class KroneckerFiles:
    """The files of one Hessian's factors, each refused where it is of something else."""

    directory: StepDir
    config: Config

    @cached_property
    def found(self) -> LayersFile:
        """The layers, as the first task has found them."""
        return results_file.read(self.directory.layers, LayersFile)

    @cached_property
    def partitions(self) -> list[list[Layer]]:
        """The layers of each partition."""
        layers = Layers([layer_from_json(dict(each)) for each in self.found.layers], {})
        return layers.partition(self.config.kronecker.partitions)

    @property
    def parts(self) -> int:
        """The parts of the datapoints."""
        return self.config.kronecker.count_parts(self.config.hessian.datapoints)

    @property
    def units(self) -> range:
        """Numbers of partial sums: unit u is of partition u mod partitions, of part u over them."""
        return range(self.parts * self.config.kronecker.partitions)

    def tensors(self, what: str, partition: int) -> Path:
        """The file of a partition's factors, eigenbasis or eigenvalues."""
        return self.directory.tensors(what, partition, self.config.kronecker.partitions)

    def read(self, path: Path) -> tuple[dict[str, Tensors], dict[str, Any]]:
        """The tensors of a file by layer, and what it says of itself."""
        found = files.read(path)
        if not self.directory.measured([found.about["manifest"]]):
            raise SkerchError(
                f"{path} is of other measurements than are there now; delete it and run again."
            )
        return found.layers, found.about

    def write(self, path: Path, kind: str, layers: Mapping[str, Tensors], **about: Any) -> None:
        """Write tensors by layer, bound to this Hessian."""
        about |= {"manifest": provenance.digest(self.directory.provenance)}
        files.write(path, kind, layers, {"method": self.config.method, **about})

    def method(self, number: int, partition: int) -> Method:
        """The method of a pass over a partition of the layers."""
        name, asked = self.config.method, self.config.kronecker
        options: dict[str, Any] = {}
        if name in ("kfac", "ekfac"):
            options = {"sharing": asked.sharing}
        elif name == "autocorrelation":
            options = {"project": asked.project, "seed": asked.seed}
        elif name == "nearest":
            path = factor_file(self.config, self.directory, number - 1, partition)
            options = {"number": number, "before": self.read(path)[0] if number > 1 else None}
        made: Method = make(name, **options)
        return made

    def bases(self, partition: int) -> Bases:
        """The eigenbases of S and A by layer."""
        tensors, _ = self.read(self.tensors("eigenbasis", partition))
        return {name: files.bases_of(own) for name, own in tensors.items()}

    def factors(self) -> dict[str, Tensors]:
        """S and A by layer, and norms of nearest; or the whole blocks C of autocorrelation."""
        count = self.config.kronecker.partitions
        paths = [self.tensors("factors", partition) for partition in range(count)]
        return {name: found for path in paths for name, found in self.read(path)[0].items()}

    def operator(self) -> KroneckerOperator:
        """The approximation."""
        blocks: dict[str, Block] = {}
        for partition, layers in enumerate(self.partitions):
            if self.config.method == "autocorrelation":
                tensors, _ = self.read(self.tensors("eigenbasis", partition))
                for layer in layers:
                    blocks[layer.name] = DenseBlock(layer, **tensors[layer.name])
                continue
            bases, values = self.bases(partition), dict[str, Tensors]()
            if is_corrected(self.config):
                values, _ = self.read(self.tensors("eigenvalues", partition))
            for layer in layers:
                own = values.get(layer.name, {}).get("values")
                blocks[layer.name] = KroneckerBlock.of(layer, *bases[layer.name], own)
        ordered = [blocks[str(layer["name"])] for layer in self.found.layers]
        shapes = {name: tuple(shape) for name, shape in self.found.shapes.items()}
        dtype = getattr(torch, self.config.hessian.dtype)
        return KroneckerOperator(shapes, ordered, uncovered=self.found.uncovered, dtype=dtype)

    def clear(self) -> None:
        """Delete what is left of partial sums."""
        shutil.rmtree(self.directory.path / "partial", ignore_errors=True)


def fill(context: Context, stage: str, method_of: MethodOf) -> None:
    """Sum up the units of the context's tasks that have no file yet, each into one.

    Task t is units [t p, (t + 1) p) with p = launcher.blocks_per_task.
    """
    own, number = KroneckerFiles(context.directory, context.config), context.round
    k = context.config.kronecker.partitions
    wanted = numbers(context, len(own.units), context.config.launcher.blocks)

    def missing() -> list[int]:
        paths = {unit: own.directory.partial(stage, number, unit) for unit in wanted}
        return [unit for unit, path in paths.items() if not path.exists()]

    units = sorted(context.team.share(missing), key=lambda unit: (unit % k, unit))
    if not units:
        return
    method_of = lru_cache(maxsize=1)(method_of)
    inputs = load_inputs(context)
    op = operator(context, inputs)
    require_same(op, context)
    data = to_device(inputs.data, op.device, op.precision)
    for done, unit in enumerate(units, start=1):
        part, partition = divmod(unit, k)
        op.dataloader = batches(context.config, op, data, part)
        method = method_of(partition)
        with user_code("The factors cannot be summed up"):
            sums = sum_up(op, own.partitions[partition], method)  # type: ignore[arg-type]
        path = own.directory.partial(stage, number, unit)
        own.write(path, stage, sums.layers, total=sums.total)
        context.progress(done, len(units), "parts")


def merge(
    context: Context, stage: str, method_of: MethodOf, path_of: Callable[[int], Path]
) -> None:
    """Add up the parts of the context's partitions in order, and delete them."""
    own, number = KroneckerFiles(context.directory, context.config), context.round
    k = context.config.kronecker.partitions
    for partition in context.team.share(lambda: numbers(context, k, 1)):
        path = path_of(partition)
        parts = [own.directory.partial(stage, number, n * k + partition) for n in range(own.parts)]
        if not path.exists():
            total: Sums | None = None
            for part in parts:
                layers, about = own.read(part)
                sums = Sums(layers, about["total"])
                total = sums if total is None else total + sums
            assert total is not None
            found = factors_of(method_of(partition), own.partitions[partition], total)
            _require_finite(context, found)
            own.write(path, stage, found, total=total.total)
        files.read(path)
        for part in parts:
            part.unlink(missing_ok=True)


def batches(config: Config, op: Scored | Any, data: Any, part: int) -> list[Any]:
    """A part of the data in batches, with the numbers of examples where labels are drawn."""
    size = config.kronecker.part_size
    whole = split_batch(data, size)[part]
    found = split_batch(whole, config.hessian.batch_size or size)
    if not isinstance(op, FisherOperator) or not op.samples:
        return found
    start, numbered = part * size, []
    for batch in found:
        stop = start + count_examples(batch)
        numbered.append(Numbered(batch, torch.arange(start, stop, device="cpu")))
        start = stop
    return numbered


def numbers(context: Context, count: int, p: int) -> list[int]:
    """The numbers up to `count` that are of the context's tasks of p each; None are all."""
    if context.tasks is None:
        return list(range(count))
    if max(context.tasks) * p >= count:
        raise MeasureError(
            f"There is no task {max(context.tasks)}: {count} in tasks of {p} are tasks 0 to "
            f"{(count - 1) // p}."
        )
    return [n for t in context.tasks for n in range(t * p, min((t + 1) * p, count))]


def _require_finite(context: Context, factors: dict[str, Tensors]) -> None:
    for name, tensors in factors.items():
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            raise MeasureError(
                f"The factors of {name} are not finite; a step before training diverged, or "
                "hessian.dtype=float64, may help."
            )
