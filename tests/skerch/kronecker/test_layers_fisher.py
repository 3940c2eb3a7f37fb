"""Gradients of examples by the record make up the empirical Fisher, and padding no factors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from skerch.curvature import EmpiricalFisherOperator, FisherOperator, supervised_loss
from skerch.kronecker.layers import find_layers
from skerch.kronecker.methods import make
from skerch.kronecker.recorder import recording
from skerch.kronecker.sums import sum_up

N = 5
CONVOLUTIONS = {
    "grouped": nn.Conv2d(4, 6, 3, groups=2),
    "depthwise": nn.Conv2d(4, 8, 3, groups=4, padding=1),
    "padded": nn.Conv2d(4, 3, (3, 2), padding=(2, 1), stride=2),
    "same": nn.Conv2d(4, 3, (2, 4), padding="same"),
    "reflected": nn.Conv2d(4, 4, 3, padding=2, padding_mode="reflect", dilation=2, groups=2),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_gradients_of_examples_make_up_the_empirical_fisher(name):
    torch.manual_seed(0)
    model = nn.Sequential(CONVOLUTIONS[name], nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))
    x, y = torch.randn(N, 4, 5, 4), torch.randint(3, (N,))
    model(x)
    model, x = model.double(), x.double()
    loss = supervised_loss(nn.functional.cross_entropy)
    op = EmpiricalFisherOperator.of_loss(model, [(x, y)], loss)
    layers = find_layers(model, op.params)
    assert not layers.uncovered
    with recording(model, layers.covered) as record:
        z = op.output((x, y), "preserve")
    (r,) = op.scores(z.detach(), (x, y))
    tensors = {}
    for layer, g in record.slopes(z, r[None]):
        tensors |= layer.tensors(torch.einsum("ntgo,ntgi->ngoi", g[0], record.rows(layer)))
    G = torch.cat([tensors[name].flatten(1) for name in op.params], dim=1)
    F = op @ torch.eye(op.shape[0], dtype=torch.float64)
    torch.testing.assert_close(G.T @ G, F, rtol=1e-12, atol=1e-14)


class Reader(nn.Module):
    """Logits of sentences, in which padding has no part."""

    def __init__(self):
        super().__init__()
        self.words, self.hidden, self.norm = nn.Embedding(9, 4), nn.Linear(4, 5), nn.LayerNorm(5)
        self.out = nn.Linear(5, 2)

    def forward(self, batch):
        h = self.norm(self.hidden(self.words(batch["input_ids"])).tanh())
        return self.out((h * batch["attention_mask"][..., None]).sum(1))


def test_factors_do_not_depend_on_padding():
    torch.manual_seed(0)
    model = Reader().double()
    lengths = [2, 5, 3, 1]
    sentences = [torch.randint(9, (length,)) for length in lengths]
    mask = torch.tensor([[i < length for i in range(5)] for length in lengths]).double()
    ids = nn.utils.rnn.pad_sequence(sentences, batch_first=True)
    padded = ({"input_ids": ids, "attention_mask": mask}, torch.zeros(4, dtype=torch.long))
    alone = [
        ({"input_ids": ids[None], "attention_mask": torch.ones(1, len(ids))}, torch.tensor([0]))
        for ids in sentences
    ]
    found = []
    for batches in (alone, [padded]):
        op = FisherOperator.of_loss(model, batches, supervised_loss(nn.functional.cross_entropy))
        layers = find_layers(model, op.params).covered
        found.append(sum_up(op, layers, make("kfac")))
        assert found[-1].total == 4
    torch.testing.assert_close(found[0].layers, found[1].layers, rtol=1e-12, atol=1e-14)
