"""Before anything is measured: sketch sizes from a memory budget, and what rounds may bring.

Sizes are those of TYUC 2019, section 5.4.2.

Tropp, Yurtsever, Udell and Cevher, "Streaming low-rank matrix approximation with an application to
scientific simulation", SIAM J. Sci. Comput. 41(4), 2019. Their rule for spectra of unknown or flat
decay: the largest `outer` that leaves room for an `inner` of twice that, and then the largest
`inner` that the rest allows.
"""

from __future__ import annotations

from math import isqrt, log

import numpy as np

from skerch.errors import ShapeError, SkerchError

# residual over the best of mnist_mini's Hessian at k = 355: by matvecs over k, and by rounds
ROUNDS = (1, 2, 3, 5, 10, 20)
RESIDUALS = {
    1.25: (2.12, 1.404, 1.259, 1.163, 1.103, 1.073),
    1.5: (1.90, 1.272, 1.151, 1.077, 1.034, 1.017),
    2.0: (1.58, 1.117, 1.048, 1.014, 1.0021, 1.0002),
}


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


def expected_residual(outer: int, inner: int, rounds: int) -> float | None:
    """‖H - H_k‖_F over the best of rank k = `outer`, from `inner` matvecs in some rounds.

    As measured on a network's Hessian (`python -m benchmarks barriers`), with the logarithm of what
    is above 1 interpolated in matvecs over k and in the logarithm of the rounds; what is beyond the
    table counts as its end. Spectra that decay faster come out better. None below 1.25 matvecs an
    eigenpair, where none was measured.
    """
    each = inner / outer
    if each < min(RESIDUALS):
        return None
    by_rounds = [
        np.interp(log(rounds), np.log(ROUNDS), np.log(np.array(row) - 1))
        for row in RESIDUALS.values()
    ]
    return 1 + float(np.exp(np.interp(each, list(RESIDUALS), by_rounds)))
