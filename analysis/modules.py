"""Where in a network a decomposition lies: the share of each module, and of the diagonal blocks.

H_k = W diag(λ) Wᵀ has blocks H_ab = W_a diag(λ) W_bᵀ of modules a and b, whose parameters are the
rows W_a of W. With the Gram matrices G_a = W_aᵀW_a and L = diag(λ),

    Σ_b ‖H_ab‖_F² = tr L G_a L,    ‖H_aa‖_F² = tr L G_a L G_a,

and the former add up to ‖H_k‖_F² = Σ λ². What the latter add up to, over that, is how much of H_k a
block-diagonal approximation keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from skerch.analysis.overlap import SLAB_ENTRIES, RowSlabs
from skerch.errors import ShapeError


@dataclass(frozen=True)
class ModuleShare:
    """Of ‖H_k‖_F²: what is in a module's rows, and what in its diagonal block."""

    name: str
    parameters: int
    rows: float  # in [0, 1]; all modules' add up to 1
    block: float  # at most `rows`


def module_sizes(parameters: Mapping[str, Tensor]) -> dict[str, int]:
    """Numbers of parameters by module, of parameters by names such as encoder.0.weight."""
    found: dict[str, int] = {}
    for name, parameter in parameters.items():
        module = name.rpartition(".")[0]
        found[module] = found.get(module, 0) + parameter.numel()
    return found


def module_shares(
    eigenvalues: Tensor, eigenvectors: RowSlabs, sizes: Mapping[str, int]
) -> list[ModuleShare]:
    """The shares of modules with so many parameters each, in the order of the eigenvectors' rows.

    Of λ (K,) and W (N, K), which may be larger than memory. Raises `ShapeError` where the sizes do
    not add up to N. Costs N K² multiplications.
    """
    N, K = eigenvectors.shape
    if sum(sizes.values()) != N or eigenvalues.shape != (K,):
        raise ShapeError(
            f"Eigenvalues (K,), eigenvectors (N, K) and modules of N parameters belong together, "
            f"not {tuple(eigenvalues.shape)}, {(N, K)} and {sum(sizes.values())}."
        )
    L = eigenvalues.double().cpu()
    total = float(L.square().sum()) or 1.0
    step = max(1, SLAB_ENTRIES // max(1, K))
    shares, start = [], 0
    for name, size in sizes.items():
        G, stop = torch.zeros(K, K, dtype=torch.float64, device="cpu"), start + size
        for first in range(start, stop, step):
            slab = torch.as_tensor(eigenvectors[first : min(first + step, stop)], device="cpu")
            G += (slab.mT @ slab).double()
        scaled = L[:, None] * G
        rows, block = (L * scaled.diagonal()).sum(), (scaled * scaled.mT).sum()
        shares.append(ModuleShare(name, size, float(rows) / total, float(block) / total))
        start = stop
    return shares
