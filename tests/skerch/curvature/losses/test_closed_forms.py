"""Closed forms against automatic differentiation of torch's criteria, and expectations of draws."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from skerch.curvature.losses import by_autograd, supervised_loss_of_output
from skerch.curvature.losses.closed_forms import closed_form

IGNORED = -1
C = torch.tensor([0.2, 3.0, 1.0, 0.5], dtype=torch.float64)


def labels(*shape):
    return torch.randint(4, shape, generator=torch.Generator().manual_seed(2))


def some_ignored(*shape):
    return labels(*shape).masked_fill(
        torch.arange(shape[0]).view(-1, *[1] * (len(shape) - 1)) % 3 == 1, IGNORED
    )


def probabilities(*shape):
    return gaussian(*shape).softmax(1)


def gaussian(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).double()


SIX, GRID = some_ignored(6), some_ignored(5, 3)
SOFT = probabilities(6, 4)
ignoring = partial(F.cross_entropy, ignore_index=IGNORED)
CASES = {
    "labels": (F.cross_entropy, (6, 4), labels(6)),
    "ignored labels": (ignoring, (6, 4), SIX),
    "class weights": (nn.CrossEntropyLoss(C, ignore_index=IGNORED), (6, 4), SIX),
    "smoothing": (partial(ignoring, label_smoothing=0.3), (6, 4), SIX),
    "smoothing and weights": (partial(ignoring, weight=C, label_smoothing=0.3), (6, 4), SIX),
    "soft labels": (nn.CrossEntropyLoss(), (6, 4), SOFT),
    "soft labels and weights": (nn.CrossEntropyLoss(C, label_smoothing=0.2), (6, 4), SOFT),
    "positions": (ignoring, (5, 4, 3), GRID),
    "soft positions": (nn.CrossEntropyLoss(C), (5, 4, 3, 2), probabilities(5, 4, 3, 2)),
    "one example": (F.cross_entropy, (4,), labels(1)[0]),
    "sum": (partial(ignoring, weight=C, reduction="sum"), (6, 4), SIX),
    "squares": (F.mse_loss, (6, 4), gaussian(6, 4)),
    "squares of a column": (F.mse_loss, (6, 1), gaussian(6)),
    "sum of squares": (nn.MSELoss(reduction="sum"), (6, 2, 2), gaussian(6, 2, 2)),
    "binary": (F.binary_cross_entropy_with_logits, (6, 4), labels(6, 4).double() / 3),
    "binary weights": (nn.BCEWithLogitsLoss(weight=C, pos_weight=1 / C), (6, 4), SOFT),
    "binary sum": (nn.BCEWithLogitsLoss(reduction="sum"), (6,), gaussian(6).sigmoid()),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("name", CASES)
def test_products_are_those_of_autograd(name):
    criterion, shape, y = CASES[name]
    loss, z, u = supervised_loss_of_output(criterion), gaussian(*shape), gaussian(*shape).roll(1)
    expected = by_autograd(loss, z, (None, y))(u)
    torch.testing.assert_close(loss.hvp(z, (None, y), u), expected, rtol=1e-10, atol=1e-12)


def test_an_ignored_label_has_no_curvature_and_does_not_count():
    loss, z, u = supervised_loss_of_output(ignoring), gaussian(6, 4), gaussian(6, 4).roll(1)
    product, counted = loss.hvp(z, (None, SIX), u), SIX != IGNORED
    assert not product[~counted].any()
    rest = supervised_loss_of_output(F.cross_entropy).hvp(
        z[counted], (None, SIX[counted]), u[counted]
    )
    torch.testing.assert_close(product[counted], rest)


@pytest.mark.parametrize("name", [name for name in CASES if "sum" not in name])
def test_a_batch_weighs_what_its_mean_divides_by(name):
    criterion, shape, y = CASES[name]
    if name in ("one example", "squares of a column"):
        return
    loss, z = supervised_loss_of_output(criterion), gaussian(*shape)
    parts = [(z[:1], y[:1]), (z[2:], y[2:]), (z[1:2], y[1:2])]
    weights = [loss.batch_weight((None, part)) for _, part in parts]
    mean = sum(w * float(criterion(*part)) for w, part in zip(weights, parts, strict=True) if w)
    assert mean / sum(weights) == pytest.approx(float(criterion(z, y)), rel=1e-12)


@pytest.mark.parametrize("name", ["class weights", "soft positions", "squares", "binary weights"])
def test_the_mean_of_outer_products_of_scores_is_the_second_derivative(name):
    criterion, shape, y = CASES[name]
    z, closed = gaussian(*shape) / 2, closed_form(criterion)
    uniform = torch.rand(
        200_000, *closed.drawn(z), generator=torch.Generator().manual_seed(0)
    ).double()
    r, u = closed.scores(z, y, uniform), gaussian(*shape).roll(1)
    dims = [d + 1 for d in closed.dims(z)]
    mean = (r * (r * u).sum(dims, keepdim=True)).mean(0)
    expected = closed.hvp(z, y, u)
    assert (mean - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize(
    "criterion",
    [
        nn.CrossEntropyLoss(reduction="none"),
        partial(F.cross_entropy, size_average=True),
        partial(F.cross_entropy, torch.ones(1, 2)),
        type("Own", (nn.CrossEntropyLoss,), {})(),
        F.l1_loss,
    ],
)
def test_what_is_not_known_has_no_closed_form(criterion):
    assert closed_form(criterion) is None
    assert not hasattr(supervised_loss_of_output(criterion), "hvp")
