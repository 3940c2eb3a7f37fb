"""Layers of whole models: a GPT-2, norms, and lower precision."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from torch import nn

from skerch.curvature import EmpiricalFisherOperator, FisherOperator, supervised_loss
from skerch.curvature.losses import hf_lm_loss
from skerch.kronecker.checks import APART, checked
from skerch.kronecker.fit import kronecker
from skerch.kronecker.layers import find_layers
from skerch.kronecker.methods import METHODS

N = 6
CROSS_ENTROPY = supervised_loss(nn.functional.cross_entropy)


def test_a_gpt2_has_all_in_layers_but_its_embeddings(needs):
    needs(find_spec("transformers"), "Transformers: pip install transformers")
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_positions": 8, "n_embd": 8, "n_layer": 2, "n_head": 2}
    tokens = {"vocab_size": 20, "bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(**sizes, **tokens)).eval()
    ids = torch.randint(20, (3, 7))
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 2 + [0] * 5])
    batch = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    op = EmpiricalFisherOperator.of_loss(model, [batch], hf_lm_loss())
    layers = checked(op, find_layers(model, op.params))
    assert layers.uncovered == {
        "transformer.wte.weight": "modules use it in differing ways (transformer.wte, lm_head)",
        "transformer.wpe.weight": APART,  # one input for all examples
    }
    assert len(layers.covered) == 13


class Normed(nn.Module):
    """Norms of several kinds, at positions."""

    def __init__(self):
        super().__init__()
        self.norms = nn.Sequential(nn.GroupNorm(2, 4), nn.BatchNorm1d(4), nn.LayerNorm(5))
        self.out = nn.Linear(20, 3)

    def forward(self, x):
        return self.out(self.norms(x).tanh().flatten(1))


def test_the_factors_of_norms_are_the_blocks_of_the_fisher_matrix():
    torch.manual_seed(0)
    model = Normed().double().eval()
    op = FisherOperator.of_loss(
        model, [(torch.randn(N, 4, 5).double(), torch.randint(3, (N,)))], CROSS_ENTROPY
    )
    eye = torch.eye(op.shape[0], dtype=torch.float64)
    F, found = op @ eye, kronecker(op, "kfac")
    exact = found @ eye
    for block in found.blocks[:3]:
        at = torch.cat([torch.arange(op.shape[0])[found.columns[n]] for n in block.layer.shapes])
        torch.testing.assert_close(exact[at][:, at], F[at][:, at], rtol=1e-12, atol=1e-14)


class Autocast(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.model(x).float()


@pytest.mark.parametrize("method", METHODS)
def test_methods_take_rows_and_slopes_of_lower_precision(method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3))
    data = [(torch.randn(N, 4), torch.randint(3, (N,)))]
    low = kronecker(FisherOperator.of_loss(Autocast(model), data, CROSS_ENTROPY), method)
    full = kronecker(FisherOperator.of_loss(model, data, CROSS_ENTROPY), method)
    assert not low.uncovered
    assert low.trace() == pytest.approx(full.trace(), rel=0.03)
