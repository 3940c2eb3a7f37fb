"""The softmax product of rows by a Triton kernel, without an array of probabilities.

A program takes one row: a loop over it for the maximum, Σ exp and Σ exp u, which are rescaled as
the maximum grows (Milakov and Gimelshein 2018), and one back over it, from the end that is still in
the cache, for the result. So memory sees each entry about once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # entries of a row at once
WARPS = 8


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(z, u, m, out, n, classes, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    z += (row % n) * classes
    u += row * classes
    out += row * classes
    lane = tl.arange(0, BLOCK)
    top = tl.full((BLOCK,), -3.0e38, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    dot = tl.zeros((BLOCK,), tl.float32)
    blocks = tl.cdiv(classes, BLOCK)
    for block in range(blocks):
        at = block * BLOCK + lane
        inside = at < classes
        x = tl.load(z + at, mask=inside, other=-float("inf")).to(tl.float32)
        y = tl.load(u + at, mask=inside, other=0.0).to(tl.float32)
        higher = tl.maximum(top, x)
        shrunk = tl.exp(top - higher)
        e = tl.exp(x - higher)
        total = total * shrunk + e
        dot = dot * shrunk + e * y
        top = higher
    highest = tl.max(top, 0)
    shrunk = tl.exp(top - highest)
    whole = tl.sum(total * shrunk, 0)
    mean = tl.sum(dot * shrunk, 0) / whole
    mass = tl.load(m + row % n).to(tl.float32) / whole
    for block in range(blocks):
        at = (blocks - 1 - block) * BLOCK + lane
        inside = at < classes
        x = tl.load(z + at, mask=inside, other=-float("inf")).to(tl.float32)
        y = tl.load(u + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + at, mass * tl.exp(x - highest) * (y - mean), mask=inside)


def rows_product(z: Tensor, u: Tensor, m: Tensor) -> Tensor:
    """m (p ∘ u - p (p · u)) for rows z (n, classes), u (c n, classes), m (n, 1), in float32.

    Row i of u goes with row i mod n of z and m.
    """
    out = torch.empty_like(u)
    n, classes = z.shape
    size = min(BLOCK, triton.next_power_of_2(classes))
    with torch.cuda.device_of(z):  # type: ignore[no-untyped-call]
        _kernel[(len(u),)](z, u, m, out, n, classes, BLOCK=size, num_warps=WARPS)
    return out
