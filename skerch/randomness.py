"""Reproducible random streams: each a pure function of (seed, role, index).

Streams are spawned with `numpy.random.SeedSequence`, whose spawn keys are hashed together with the
seed, so that neighbouring seeds, roles and indices are independent.
"""

from __future__ import annotations

import numpy as np

ROLES = {
    "omega": 0,
    "psi": 1,
    "probe": 2,
    "training": 3,
    "data": 4,
    "synthetic": 5,
    "fresh": 6,
    "start": 7,
    "krylov": 8,  # where a Krylov space begins
    "estimate": 9,  # test vectors of estimators of the trace, the diagonal and the density
    "labels": 10,
}


def stream(seed: int, role: str, *index: int) -> np.random.Generator:
    """The generator of stream `index` of a role (a key of `ROLES`) under a non-negative seed."""
    sequence = np.random.SeedSequence(seed, spawn_key=(ROLES[role], *index))
    return np.random.Generator(np.random.SFC64(sequence))
