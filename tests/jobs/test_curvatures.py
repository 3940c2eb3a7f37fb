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


@pytest.mark.parametrize("curvature", ["ggn"])
def test_the_digits_are_sketched_beside_their_hessian(curvature, tmp_path, small_overrides):
    """Eigenvalues lie within their bounds of those of Jᵀ (diag p - p pᵀ) J / n."""
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
    model, (x, _) = inputs.model.double(), inputs.data
    logits = model(x.double())
    p = logits.detach().softmax(1)
    params = list(model.parameters())
    rows = [torch.autograd.grad(z, params, retain_graph=True) for z in logits.flatten()]
    J = torch.stack([parameters_to_vector(row) for row in rows])
    B = torch.block_diag(*(torch.diag(q) - torch.outer(q, q) for q in p)) / len(p)
    exact = torch.linalg.eigvalsh(J.T @ B @ J).flip(0)[:20]
    found = EighFile(run.step(f"seigh-{curvature}", 60, "test").eigh)
    assert (found.eigenvalues > 0).all()
    torch.testing.assert_close(found.eigenvalues[:5].double(), exact[:5], rtol=1e-4, atol=0)
