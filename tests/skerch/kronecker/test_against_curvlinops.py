"""K-FAC and EK-FAC against curvlinops, where it has the case."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from skerch.curvature import EmpiricalFisherOperator, FisherOperator, supervised_loss
from skerch.kronecker.fit import kronecker

N = 20  # more than a row of the convolution has entries, so that factors have one eigenbasis
MODELS = {
    "linear": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), (N, 4)),
    "without bias": (
        lambda: nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 3)),
        (N, 4),
    ),
    "convolution": (
        lambda: nn.Sequential(
            *(nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=1, dilation=(1, 2)), nn.Tanh()),
            *(nn.Flatten(), nn.Linear(54, 3)),
        ),
        (N, 2, 6, 6),
    ),
    "sequences": (
        lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(15, 3)),
        (N, 5, 4),
    ),
}
LOSSES = {"cross-entropy": nn.CrossEntropyLoss(), "squares": nn.MSELoss()}
FISHERS = {"type-2": FisherOperator, "empirical": EmpiricalFisherOperator}


@pytest.mark.parametrize("fisher", FISHERS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("method", ["kfac", "ekfac"])
@pytest.mark.parametrize("name", MODELS)
def test_factors_are_those_of_curvlinops(name, method, sharing, loss, fisher):
    peers = pytest.importorskip("curvlinops")
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model, x = make().double(), torch.randn(shape).double()
    y = torch.randint(3, (N,)) if loss == "cross-entropy" else torch.randn(N, 3).double()
    data = [(x[:8], y[:8]), (x[8:], y[8:])]
    op = FISHERS[fisher].of_loss(model, data, supervised_loss(LOSSES[loss]))
    found = kronecker(op, method, sharing=sharing)
    assert not found.uncovered
    peer = getattr(peers, f"{method.upper()}LinearOperator")(
        model,
        LOSSES[loss],
        list(model.parameters()),
        data,
        fisher_type=fisher,
        kfac_approx=sharing,
        separate_weight_and_bias=False,
        check_deterministic=False,
    )
    eye = torch.eye(op.shape[0], dtype=torch.float64)
    exact = peer @ eye
    if loss == "squares" and fisher == "empirical":
        exact /= 3  # as the outer product of the slope of a sum over outputs, over their number
    torch.testing.assert_close(found @ eye, exact, rtol=1e-10, atol=1e-13)
