"""The system (A + δ I) x = g of a run: the exact curvature, gradients, and approximate inverses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from skerch.curvature.gradients import example_gradients, mean_gradient
from skerch.curvature.operator import LossCurvature
from skerch.jobs.commands.load import Hessian, load
from skerch.jobs.config import ConfigError
from skerch.jobs.config.methods import METHODS
from skerch.jobs.run_dir import RunDir
from skerch.jobs.run_dir.training_files import load_hessian_data
from skerch.jobs.stages.context import Context
from skerch.jobs.stages.inputs import load_inputs
from skerch.jobs.stages.operator import curvature_operator
from skerch.jobs.stages.sketch import SketchFiles
from skerch.kronecker.gradients import flat_gradients
from skerch.kronecker.operator import KroneckerOperator
from skerch.krylov import DeflatedInverse
from skerch.linops.base import LinearOperator
from skerch.randomness import stream

SIGNS = 5  # random vectors
WAYS = {  # what inverts A: of which families it needs a method's folder
    "factors": ("kronecker",),
    "cg": ("kronecker",),
    "sketch": ("seigh", "krylov"),
    "deflated": ("seigh", "krylov"),
}


@dataclass(frozen=True)
class System:
    """The exact curvature A of a folder's step and split, and what is to invert it."""

    run: RunDir
    by: str  # a key of WAYS
    hessian: Hessian
    A: LossCurvature
    factors: KroneckerOperator | None
    pairs: tuple[Tensor, Tensor, float] | None  # λ (k,), W (N, k), the trace of all or of them

    @classmethod
    def of(
        cls,
        run: RunDir,
        by: str,
        factors: str | None,
        pairs: str | None,
        step: int | None,
        split: str | None,
    ) -> System:
        """The system by the folders of these names.

        Raises ConfigError where there is no such folder, or more than one that could be meant.
        """
        if by not in WAYS:
            raise ConfigError(f"--by {by} is unknown; choose {', '.join(WAYS)}.")
        by_factors = "kronecker" in WAYS[by]
        if by_factors or (factors is not None and by == "deflated"):
            factors = _folder(run, "--name", factors, ("kronecker",))
        name = factors if by_factors else _folder(run, "--pairs", pairs, WAYS[by])
        method = load(run.path, name)
        step = method.steps[-1] if step is None else step
        hessian: Any = method[step, method.splits[0] if split is None else split]
        A = _curvature(hessian.context)
        K = None
        if factors is not None and by != "sketch":
            K = _as(load(run.path, factors)[step, hessian.split].approximation(), A)
        return cls(run, by, hessian, A, K, None if by_factors else _eigenpairs(hessian.context))

    @property
    def mean(self) -> float:
        """The mean eigenvalue of A, by what is to invert it."""
        if self.pairs is not None:
            return abs(self.pairs[2]) / self.A.shape[0]
        assert self.factors is not None
        return self.factors.mean

    def inverse(self, damping: float, own: float, kind: str) -> LinearOperator:
        """An approximation of (A + δ I)⁻¹, for which factors are damped by `own`."""
        M, K = None, self.factors
        if K is not None:
            M = K.inverse(own, kind if self.by == "factors" else "damped")
        if M is not None and K is not None and K.uncovered and self.by != "factors":
            M.elsewhere = 1 / (self.uncovered_mean + own)  # 1 / own would make CG worse than none
        if self.pairs is None:
            assert M is not None
            return M
        values, vectors, trace = self.pairs
        return DeflatedInverse((values, vectors), damping, trace=trace, complement=M, absolute=True)

    @cached_property
    def uncovered_mean(self) -> float:
        """The mean eigenvalue of A on parameters in no layer, by random signs."""
        assert self.factors is not None
        K, n = self.factors, self.factors.size - self.factors.covered
        signs = torch.zeros(K.size, SIGNS, dtype=self.A.dtype, device="cpu")
        for name in K.uncovered:
            rows = signs[K.columns[name]]
            drawn = stream(0, "estimate", 0, K.columns[name].start).integers(0, 2, rows.shape)
            rows.copy_(torch.from_numpy(2.0 * drawn - 1))
        V = signs.to(self.A.device)
        return max(0.0, float((V * (self.A @ V)).sum()) / (SIGNS * n))

    def gradients(self, how: str, of: str | None, numbers: Sequence[int] | None) -> Tensor:
        """(N, q): of the `mean` loss of a split's datapoints, of `each` example, or of a file."""
        if how not in ("mean", "each"):
            return self._from_file(Path(how))
        data = load_hessian_data(self.run, of or self.hessian.split)
        if how == "mean":
            size = self.hessian.context.config.hessian.batch_size
            return mean_gradient(self.A, data, size)[:, None]
        return example_gradients(self.A, data, numbers)

    def held_out(self, count: int) -> Tensor:
        """Gradients (N, q) of examples of another split.

        Raises ConfigError where there is none.
        """
        split = self.hessian.split
        splits = self.run.grown(self.hessian.context.config).hessian.splits
        others = [each for each in splits if each != split]
        if not others:
            raise ConfigError(
                f"--inverse-damping auto takes gradients of another split than {split}; run with "
                "hessian.splits=[train,test], or give a damping."
            )
        return example_gradients(self.A, load_hessian_data(self.run, others[0]), range(count))

    def _from_file(self, path: Path) -> Tensor:
        """Gradients by parameter's name in a safetensors file."""
        if not path.exists():
            raise ConfigError(f"--gradients {path} is no file; give one, or mean, or each.")
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise ConfigError(f"--gradients {path} is no safetensors file: {error}.") from error
        A, shapes = self.A, {name: tuple(p.shape) for name, p in self.A.params.items()}
        whole = KroneckerOperator(shapes, [], dtype=A.dtype, device=A.device)
        return flat_gradients(tensors, self.factors or whole)


def _folder(run: RunDir, option: str, name: str | None, families: Sequence[str]) -> str:
    """The folder of a method of these families: of that name, or the only one."""
    of = {each: METHODS[run.load(each).method] for each in run.methods}
    fit = [n for n, m in of.items() if m.family in families and m.name not in ("trace", "density")]
    if name in fit or (name is None and len(fit) == 1):
        return name or fit[0]
    if not fit:
        way = "method=ekfac" if "kronecker" in families else "method=seigh"
        raise ConfigError(f"{run.path} has nothing to invert by; run it with {way} first.")
    given = "names none" if name is None else f"is {name}"
    raise ConfigError(f"{option} {given}, and {run.path} has {', '.join(fit)}; give one of them.")


def _curvature(context: Context) -> LossCurvature:
    """The exact curvature; of the exact Fisher matrix also where factors are of drawn labels."""
    config = context.config
    if METHODS[config.method].family == "kronecker" and config.kronecker.fisher == "mc":
        config = replace(config, kronecker=replace(config.kronecker, fisher="type2"))
    return curvature_operator(config, load_inputs(context), context.provenance)


def _as(K: KroneckerOperator, A: LossCurvature) -> KroneckerOperator:
    """The approximation in the curvature's dtype and on its device."""
    if K.shape != A.shape:
        raise ConfigError(
            f"The factors are of {K.shape[0]:,} parameters, the curvature of {A.shape[0]:,}; take "
            "methods with one hessian.param_filter."
        )
    return KroneckerOperator(
        K.shapes, K.blocks, uncovered=K.uncovered, dtype=A.dtype, device=A.device
    )


def _eigenpairs(context: Context) -> tuple[Tensor, Tensor, float]:
    with SketchFiles(context).eigh() as file:
        values = file.eigenvalues
        trace = float(values.sum()) if file.trace is None else file.trace.value
        return values, file.eigenvectors[:], trace
