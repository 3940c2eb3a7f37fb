"""Other curvatures than the Hessian, in a whole run."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from skerch.decompositions.eigh_file import EighFile
from skerch.jobs.config import load
from skerch.jobs.launchers.complete import complete
from skerch.jobs.run_dir.paths import RunDir
from skerch.jobs.stages.context import Context
from skerch.jobs.stages.inputs import load_inputs


@pytest.mark.parametrize("curvature", ["ggn", "fisher", "empirical_fisher"])
def test_the_digits_are_sketched(curvature, tmp_path, small_overrides):
    """The top eigenvalues are those of Jᵀ B J / n, by autograd; B is diag p - p pᵀ or g gᵀ."""
    config = load(
        "digits",
        [
            f"run_dir={tmp_path}",
            *small_overrides,
            f"hessian.curvature={curvature}",
            "sketch.rounds=4",
        ],
    )
    assert not complete(config)
    run = RunDir(tmp_path)
    inputs = load_inputs(Context(run, config, f"seigh-{curvature}", 60, "test"))
    model, (x, y) = inputs.model.double(), inputs.data
    logits = model(x.double())
    p = logits.detach().softmax(1)
    params = list(model.parameters())
    rows = [torch.autograd.grad(z, params, retain_graph=True) for z in logits.flatten()]
    J = torch.stack([parameters_to_vector(row) for row in rows])
    g = p - torch.eye(10).double()[y]
    blocks = [torch.diag(q) - torch.outer(q, q) for q in p]
    if curvature == "empirical_fisher":
        blocks = [torch.outer(h, h) for h in g]
    B = torch.block_diag(*blocks) / len(p)
    exact = torch.linalg.eigvalsh(J.T @ B @ J).flip(0)[:20]
    found = EighFile(run.step(f"seigh-{curvature}", 60, "test").eigh)
    assert (found.eigenvalues > 0).all()
    torch.testing.assert_close(found.eigenvalues[:5].double(), exact[:5], rtol=1e-4, atol=0)
