"""Sketch sizes from a memory budget, before anything is measured: TYUC 2019, section 5.4.2.

Tropp, Yurtsever, Udell and Cevher, "Streaming low-rank matrix approximation with an application to
scientific simulation", SIAM J. Sci. Comput. 41(4), 2019. Their rule for spectra of unknown or flat
decay: the largest `outer` that leaves room for an `inner` of twice that, and then the largest
`inner` that the rest allows.
"""

from __future__ import annotations

from math import isqrt

from skerch.errors import ShapeError, SkerchError


def sketch_sizes(shape: tuple[int, int], budget: int, *, sym: bool = False) -> tuple[int, int]:
    """The sizes (outer, inner) of the sketches of an (m, n) operator that fit a budget.

    `budget` is how many numbers may be stored: outer · d + inner² of them, where d = m + n for a
    general operator (row and column sketches), d = n for a symmetric one (`sym`). With
    inner = 2 outer that is a quadratic in `outer`, whose root is the answer, exact in integers:

        outer = ⌊(√(d² + 16 budget) - d) / 8⌋,   inner = ⌊√(budget - outer · d)⌋,

    with inner at most min(m, n), and outer at most half of that. (TYUC 2019 ask for
    inner ≥ 2 outer + 1 over the reals; one row more is not noticed.)

    Raises `ShapeError` for a shape without room for inner = 2, or not square under `sym`, and
    `SkerchError` for a budget below d + 4, the least that holds outer = 1 and inner = 2.
    """
    m, n = shape
    smallest = min(shape)
    if smallest < 2:
        raise ShapeError(f"Shape {shape} is too small to sketch; both sides must be at least 2.")
    if sym and m != n:
        raise ShapeError(f"Shape {shape} is not square; a symmetric operator is.")
    per_outer = n if sym else m + n
    if budget < per_outer + 4:
        raise SkerchError(
            f"A budget of {budget} numbers is too small for shape {shape}; "
            f"the least that works is {per_outer + 4} (outer 1, inner 2)."
        )
    outer = min((isqrt(per_outer**2 + 16 * budget) - per_outer) // 8, smallest // 2)
    inner = min(isqrt(budget - outer * per_outer), smallest)
    return outer, inner
