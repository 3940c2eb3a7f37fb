"""The generalised Gauss-Newton matrix of a mean loss, as an operator on the selected parameters."""

from __future__ import annotations

from collections.abc import Iterable
from reprlib import repr as short
from typing import Any

from torch import Tensor
from torch.nn import Module

from skerch.curvature import output_checks
from skerch.curvature.functional import Function
from skerch.curvature.losses import ForwardFn, LossFn, LossOfOutputFn, OutputProduct, by_autograd
from skerch.curvature.operator import LossCurvature
from skerch.curvature.outputs import OutputCurvature
from skerch.errors import SkerchError

LOSS_HVP = ("analytical", "autograd")


class GGNOperator(OutputCurvature):
    """G = Σ_b w_b J_bᵀ ∇²L_b(z_b) J_b / Σ_b w_b, for losses L_b of the outputs z_b(θ) of batches.

    It is the Hessian without the curvature of the network itself (Schraudolph 2002), positive
    semidefinite where the loss is convex in the outputs; for cross-entropy and squared error the
    Fisher information (`FisherOperator`).

    Args:
        loss_hvp: "analytical" for the closed form `loss_of_output_fn.hvp(output, batch, u)`, which
            the losses of `skerch.curvature.losses` have where they know it; "autograd" to have it
            by automatic differentiation, for any loss.

    The other arguments, and what is raised, are those of `OutputCurvature`; SkerchError for a loss
    without a closed form where one is asked for.
    """

    checks = (*OutputCurvature.checks, output_checks.loss_product)
    checks_of_differences = (*OutputCurvature.checks_of_differences, output_checks.loss_product)

    def __init__(
        self,
        model: Module | Function,
        dataloader: Iterable[Any],
        forward_fn: ForwardFn,
        loss_of_output_fn: LossOfOutputFn,
        *,
        loss_hvp: str = "analytical",
        **options: Any,
    ):
        if loss_hvp not in LOSS_HVP:
            raise SkerchError(
                f"Unknown loss_hvp {short(loss_hvp)}; choose {' or '.join(LOSS_HVP)}."
            )
        if loss_hvp == "analytical" and not hasattr(loss_of_output_fn, "hvp"):
            raise SkerchError(
                "This loss of outputs has no closed form hvp(output, batch, u); give one that has, "
                "as cross_entropy_loss_of_output(), or loss_hvp='autograd'."
            )
        super().__init__(model, dataloader, forward_fn, loss_of_output_fn, **options)
        self.loss_hvp = loss_hvp

    @classmethod
    def of_loss(
        cls, model: Module | Function, dataloader: Iterable[Any], loss_fn: LossFn, **options: Any
    ) -> LossCurvature:
        known = hasattr(getattr(loss_fn, "of_output", None), "hvp")
        how = "analytical" if known else "autograd"
        return super().of_loss(model, dataloader, loss_fn, **{"loss_hvp": how, **options})

    def output_product(self, output: Tensor, batch: Any) -> OutputProduct:
        if self.loss_hvp == "autograd":
            return by_autograd(self.loss_of_output_fn, output, batch)
        hvp = self.loss_of_output_fn.hvp  # type: ignore[attr-defined]
        return lambda u: hvp(output, batch, u)
