"""Conv1D of Hugging Face's transformers as a layer: GPT-2's linear module."""

from __future__ import annotations

from dataclasses import dataclass

from skerch.kronecker.layers.linear import LinearLayer


@dataclass(frozen=True)
class TransposedLinearLayer(LinearLayer):
    """y = Wᵀ x + b."""

    kind = "transposed_linear"
    transposed = True
