"""Losses whose products would not be the curvature's are refused; what is right is let through."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from skerch import HessianOperator, SkerchError, seigh
from skerch.curvature import label_weight
from skerch.curvature.checks import CheckError, second_derivative
from skerch.curvature.dense import dense_hessian

from .cases import CROSS_ENTROPY, network


def test_batches_under_autocast_combine_but_for_rounding():
    model, x, y = network(nn.GELU(), examples=40)

    def loss_fn(model, batch):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(batch[0])
        return nn.functional.cross_entropy(logits.float(), batch[1], reduction=reduction)

    data = [(x[:30].float(), y[:30]), (x[30:].float(), y[30:])]
    reduction = "mean"
    HessianOperator(model.float(), data, loss_fn).verify()
    reduction = "sum"
    with pytest.raises(CheckError, match="Batches do not combine"):
        HessianOperator(model.float(), data, loss_fn).verify()


class Cut(nn.Module):
    def forward(self, x):
        return x.detach().tanh()


def test_parameters_behind_a_cut_graph_are_refused_by_name():
    model, x, y = network(Cut())
    with pytest.raises(CheckError, match=r"depends on 0\.weight, 0\.bias.*param_filter"):
        HessianOperator(model, [(x, y)], CROSS_ENTROPY) @ torch.ones(43).double()
    part = HessianOperator(model, [(x, y)], CROSS_ENTROPY, param_filter="2.*")
    assert (part @ torch.ones(18).double()).norm() > 0


def test_a_loss_that_reaches_no_parameter_is_refused():
    model, x, y = network(nn.Tanh())
    other = copy.deepcopy(model)
    losses = {
        "does not depend on any": lambda _, batch: CROSS_ENTROPY(other, batch),
        "its gradient does not reach": torch.no_grad()(CROSS_ENTROPY),
    }
    for words, loss_fn in losses.items():
        with pytest.raises(CheckError, match=words):
            HessianOperator(model, [(x, y)], loss_fn) @ torch.ones(43).double()
    op = HessianOperator(model, [(x, y)], losses["does not depend on any"], check=False)
    with pytest.raises(SkerchError, match="depends on none of the 4 selected parameters"):
        op @ torch.ones(43).double()


class Last(nn.Module):
    def forward(self, outputs):
        return outputs[0][:, -1]


def test_the_checks_leave_graphs_that_somebody_else_holds_alone():
    torch.manual_seed(0)
    lstm = nn.LSTM(4, 3, num_layers=2, batch_first=True)
    model, (_, x, y) = nn.Sequential(lstm, Last()), network()
    batch = (x.float()[:, None].expand(-1, 3, -1), y)
    held = CROSS_ENTROPY(model, batch)
    expected = torch.autograd.grad(held, list(model.parameters()), retain_graph=True)
    HessianOperator(model, [batch], CROSS_ENTROPY).verify()
    again = torch.autograd.grad(held, list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))
    assert torch.equal(CROSS_ENTROPY(model, batch), held)


@pytest.mark.parametrize("sparse", [False, True])
def test_padding_gets_no_gradient_and_is_let_through(sparse):
    """The Hessian is that of the network with the padding's vector as a constant."""
    torch.manual_seed(2)
    embedding = nn.Embedding(6, 3, padding_idx=2, sparse=sparse)
    nn.init.normal_(embedding.weight)
    model, tokens = nn.Sequential(embedding, nn.Flatten(), nn.Linear(12, 3)), torch.arange(40) % 6
    op = HessianOperator(
        model.double(), [(tokens.view(10, 4), torch.arange(10) % 3)], CROSS_ENTROPY
    )
    told = second_derivative(op)
    assert "gradients to" in told
    H = op @ torch.eye(op.shape[0]).double()
    assert not H[6:9].any()
    assert not H[:, 6:9].any()
    assert H[:6].any()
    exact = dense_hessian(model, list(op.params), op.dataloader[0], CROSS_ENTROPY)
    torch.testing.assert_close(H, exact)


def test_a_shuffled_loader_of_all_the_data_is_let_through():
    model, x, y = network(nn.Tanh())
    data = DataLoader(TensorDataset(x.float(), y), 5, shuffle=True)
    for _ in range(3):
        HessianOperator(model.float(), data, CROSS_ENTROPY).verify()


class Augmented(Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, index):
        return torch.randn(4).double(), index % 3


def test_data_that_come_otherwise_each_time_are_refused():
    model, _, _ = network(nn.Tanh())
    op = HessianOperator(model, DataLoader(Augmented(), 4), CROSS_ENTROPY)
    with pytest.raises(CheckError, match=r"and then .* no random augmentation"):
        seigh(op, outer=3)


def test_a_forward_pass_that_changes_a_buffer_is_refused_and_undone():
    model, x, y = network(nn.BatchNorm1d(5), nn.Tanh())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckError, match=r"changes 1\.running_mean; .*track_running_stats=False"):
        HessianOperator(model, [(x, y)], CROSS_ENTROPY) @ torch.ones(53).double()
    assert torch.equal(model.state_dict()["1.running_mean"], before["1.running_mean"])
    HessianOperator(model.eval(), [(x, y)], CROSS_ENTROPY).verify()


def test_batches_that_do_not_combine_are_refused():
    """Tokens are counted before the loss shifts them: padding makes the weights wrong."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Embedding(7, 4), nn.Tanh(), nn.Linear(4, 7)).double()
    tokens = torch.randint(7, (9, 6))
    labels = tokens.masked_fill(torch.arange(6) >= torch.arange(2, 11)[:, None] % 6 + 2, -100)

    def shifted(model, batch):
        logits = model(batch[0])[:, :-1].transpose(1, 2)
        return nn.functional.cross_entropy(logits, batch[1][:, 1:], ignore_index=-100)

    data = [(tokens[:6], labels[:6]), (tokens[6:], labels[6:])]
    for weight in (None, label_weight(), lambda batch: 1.0):
        op = HessianOperator(model, data, shifted, batch_weight=weight)
        with pytest.raises(CheckError, match="Batches do not combine"):
            op @ torch.ones(op.shape[0]).double()
    right = HessianOperator(
        model, data, shifted, batch_weight=lambda batch: float((batch[1][:, 1:] != -100).sum())
    )
    whole = HessianOperator(model, [(tokens, labels)], shifted)
    v = torch.randn(right.shape[0]).double()
    torch.testing.assert_close(right @ v, whole @ v)


@pytest.mark.parametrize("size", [7, 4])
def test_right_weights_of_batches_along_another_dimension_are_let_through(size):
    """Time first: what is joined along dimension 0 is another sequence, and tells nothing."""
    torch.manual_seed(3)
    rnn, head = nn.RNN(3, 4).double(), nn.Linear(4, 2).double()
    x, y = torch.randn(5, 8, 3).double(), torch.arange(8)[None] % 2

    def loss_fn(model, batch):
        return nn.functional.cross_entropy(model[1](model[0](batch[0])[0][-1]), batch[1][0])

    data = [(x[:, :size], y[:, :size]), (x[:, size:], y[:, size:])]
    op = HessianOperator(
        nn.ModuleList([rnn, head]), data, loss_fn, batch_weight=lambda b: b[0].shape[1]
    )
    whole = HessianOperator(op.model, [(x, y)], loss_fn)
    v = torch.randn(op.shape[0]).double()
    torch.testing.assert_close(op @ v, whole @ v)
