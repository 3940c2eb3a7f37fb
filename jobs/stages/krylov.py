"""What the stages of Krylov methods share: the operator, eigenpairs that are known, the results."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from skerch.curvature.base import CurvatureOperator
from skerch.curvature.operator import LossCurvature
from skerch.jobs.config.pairs import source_of
from skerch.jobs.pipeline.task_log import Progress
from skerch.jobs.problems import user_code
from skerch.jobs.run_dir import provenance, results_file
from skerch.jobs.run_dir.products_file import Products
from skerch.jobs.stages.choice import choose, operator, require_same
from skerch.jobs.stages.context import Context
from skerch.jobs.stages.sketch import SketchFiles
from skerch.krylov.operand import MOST_TOGETHER

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from matplotlib.figure import Figure

    from skerch.decompositions.eigh_file import EighFile


class CountedOperator(CurvatureOperator):
    """An operator that tells of its products, of which there are `most`; 0 if nobody knows.

    Those that are `kept` it does not compute again.
    """

    def __init__(
        self, operator: LossCurvature, most: int, progress: Progress, kept: Products | None = None
    ):
        super().__init__(operator.shape, operator.dtype, operator.device)
        self.operator = operator
        self._kept = kept
        self._most = most
        self._done = 0
        self._progress = progress

    def _matmul(self, X: Tensor) -> Tensor:
        products = self._kept.of(X, self._multiply) if self._kept else self._multiply(X)
        self._done += X.shape[1]
        self._progress(self._done, self._most and max(self._done, self._most), "products")
        return products

    def _multiply(self, X: Tensor) -> Tensor:
        with user_code("A product cannot be computed"):
            return (self.operator @ X).contiguous()  # as it is read again, to the last bit


@contextmanager
def counted(context: Context, columns: int, most: int) -> Iterator[CountedOperator]:
    """The operator of a context's Hessian, for at most so many columns at once.

    How they are computed is written down first, unless it is: so it is the same after a kill. With
    `launcher.keep_products` they are kept until `save`.
    """
    if context.provenance is None:
        masks = context.config.method == "lanczos"  # its eigenspaces are compared with them
        _, chosen = choose(context, min(columns, MOST_TOGETHER), gradient=masks)
        provenance.write(context.directory.provenance, chosen)
    op = operator(context)
    with op.frozen():
        require_same(op, context)
        op.compare = True
        if not context.config.launcher.keep_products:
            yield CountedOperator(op, most, context.progress)
            return
        kept = Products(context.directory.products, *manifests(context))
        try:
            yield CountedOperator(op, most, context.progress, kept)
        except BaseException:
            kept.write()
            raise


def pairs_file(context: Context) -> EighFile | None:
    """The eigenpairs of another method, if any are asked for."""
    source = source_of(context.config)
    if source is None:
        return None
    return SketchFiles(replace(context, config=context.run.load(source), name=source)).eigh()


def known_pairs(context: Context, op: CurvatureOperator) -> tuple[Tensor, Tensor] | None:
    """The eigenvalues (k,) and eigenvectors (N, k) by which to deflate, if any are asked for."""
    file = pairs_file(context)
    if file is None:
        return None
    with file:
        return file.eigenvalues, file.eigenvectors[:].to(op.device, op.dtype)


def save(context: Context, results: DataclassInstance, figure: Figure) -> None:
    """Write a Hessian's figure, then its results, and let go of its products."""
    from skerch.analysis import figures  # matplotlib takes a second

    figures.save(figure, context.run.figure(context.name, *context.hessian))
    path = context.run.result(context.config, *context.hessian)
    results_file.write(path, results, manifests(context))
    shutil.rmtree(context.directory.products, ignore_errors=True)


def manifests(context: Context) -> list[str]:
    """The hash of what the results are of."""
    return [provenance.digest(context.directory.provenance)]


def title(context: Context, found: str) -> str:
    """Which Hessian it is, and what is found."""
    problem: Any = context.config.problem
    where = problem.get("name") or problem["factory"]
    return f"{where}, step {context.step}, {context.split} split\n{context.name}: {found}"
