"""The back ends of the softmax product agree with a dense matrix, and serve every strategy."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from skerch.curvature.losses import hf_lm_loss_of_output
from skerch.curvature.losses.softmax_product import LONG, resolve, softmax_product
from skerch.errors import SkerchError

IN_THE_INTERPRETER = """
import torch
from skerch.curvature.losses.softmax_product import eager
from skerch.curvature.losses.triton_kernel import rows_product

torch.manual_seed(0)
CASES = (3, 7, 1, 1), (2, 5000, 2, 1), (2, 9001, 1, 40), (4, 1, 3, 1)
for rows, classes, vectors, scale in CASES:
    z, m = scale * torch.randn(rows, classes), torch.rand(rows, 1)
    z[0, 0], m[-1] = -torch.inf if classes > 1 else 0.0, 0.0
    u = torch.randn(vectors, rows, classes)
    right = torch.stack([eager(z.double(), v.double(), m.double()) for v in u])
    found = rows_product(z, u.flatten(0, 1), m).view(u.shape)
    torch.testing.assert_close(found.double(), right, rtol=1e-4, atol=1e-6)
    half = rows_product(z.bfloat16(), u.flatten(0, 1).bfloat16(), m).view(u.shape)
    torch.testing.assert_close(half.double(), right, rtol=0.1, atol=0.02)
    assert not found[:, -1].any()
"""


def dense(z, u, m):
    """Products with m (diag p - p pᵀ), row by row."""
    p = z.softmax(-1)
    rows = [c * (torch.diag(q) - torch.outer(q, q)) @ v for q, v, c in zip(p, u, m, strict=True)]
    return torch.stack(rows)


@pytest.mark.parametrize("fused", ["eager", "compile"])
@pytest.mark.parametrize("classes", [7, 100])
def test_is_a_dense_matrix_times_a_vector_also_of_a_block(fused, classes):
    torch.manual_seed(0)
    z, u, m = torch.randn(5, classes), torch.randn(3, 5, classes), torch.rand(5, 1)
    z[0, 0], m[2] = 50.0, 0.0
    expected = torch.stack([dense(z.double(), v.double(), m.double()) for v in u]).float()
    alone = torch.stack([softmax_product(z, v, m, -1, fused) for v in u])
    torch.testing.assert_close(alone, expected, rtol=1e-5, atol=1e-6)
    block = torch.vmap(lambda v: softmax_product(z, v, m, -1, fused))(u)
    torch.testing.assert_close(block, expected, rtol=1e-5, atol=1e-6)
    first = torch.vmap(lambda v: softmax_product(z.T, v, m.T, 0, fused))(u.mT)
    torch.testing.assert_close(first.mT, expected, rtol=1e-5, atol=1e-6)


def test_the_triton_kernel_is_the_formula(needs):
    """In Triton's interpreter, without a GPU: one block of classes and several, ragged, extreme."""
    needs(find_spec("triton"), "Triton: Linux, where torch brings it")
    done = subprocess.run(
        [sys.executable, "-c", IN_THE_INTERPRETER],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA: a GPU")
@pytest.mark.parametrize("classes", [7, 5000, 50257, 130000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_triton_kernel_is_the_formula_on_a_gpu(classes, dtype):
    torch.manual_seed(0)
    z, u = torch.randn(2, 4, classes, device="cuda")
    m = torch.rand(4, 1, device="cuda")
    assert resolve("auto", z) == "triton"
    expected = softmax_product(z.double(), u.double(), m.double(), -1, "eager")
    found = softmax_product(z.to(dtype), u.to(dtype), m, -1).double()
    error = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    assert (found - expected).norm() < error * expected.norm()


def test_auto_compiles_what_is_long():
    assert resolve("auto", torch.empty(1, 1).expand(LONG // 8, 8)) in ("compile", "eager")
    assert resolve("auto", torch.empty(3, 4)) == "eager"
    assert resolve("triton", torch.empty(3, 4)) == "compile"  # on a CPU
    with pytest.raises(SkerchError, match=r"'fast'; choose auto, eager, compile, triton"):
        hf_lm_loss_of_output(fused="fast")
