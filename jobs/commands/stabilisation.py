"""What the Hessians of one run have in common: computed once, and kept beside them."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack, suppress
from dataclasses import replace

import torch

from skerch.analysis.results import HessianResults, StabilisationResults
from skerch.analysis.stabilisation import eigenspace_overlaps, mask_overlaps
from skerch.decompositions.eigh_file import EighFile
from skerch.files import FileError
from skerch.jobs.config import Config
from skerch.jobs.run_dir import RunDir, method_name, results_file
from skerch.jobs.stages.context import Context
from skerch.jobs.stages.program import settle
from skerch.jobs.stages.sketch import SketchFiles

FEW = 10  # eigenpairs, the first of `ks`
MANY = 100  # eigenpairs that are compared at most …
LARGE = 10**8  # … where N x k is more than this, as the cost is N k² a pair of Hessians


def stabilisation(
    run: RunDir, config: Config, *, pairs: int | None = None
) -> StabilisationResults | None:
    """Compare the top eigenspaces and magnitude masks of all Hessians that a method has by now.

    They are kept in `stabilisation.json`, and computed anew once eigenpairs are others or more.
    None where no Hessian has eigenpairs.

    Args:
        pairs: the eigenpairs to compare at most. Default: all; where eigenvectors have more than
            10⁸ entries, the first 100.
    """
    name = method_name(config)
    hessians = [
        hessian
        for hessian in run.hessians(config)
        if run.result(config, *hessian).exists() and run.step(name, *hessian).eigh.exists()
    ]
    if not hessians:
        return None
    with ExitStack() as stack:
        files = [
            stack.enter_context(SketchFiles(Context(run, config, name, *hessian)).eigh())
            for hessian in hessians
        ]
        N, available = files[0].eigenvectors.shape[0], min(len(f.eigenvalues) for f in files)
        most = available if pairs is None else min(pairs, available)
        if pairs is None and N * available > LARGE:
            most = min(MANY, available)
        ks = sorted({min(FEW, most), most // 4, most} - {0})
        path, identities = run.stabilisation(name), [_identity(file) for file in files]
        asked = {"hessians": [list(hessian) for hessian in hessians], "ks": ks}
        found = results_file.kept(path, StabilisationResults, identities, **asked)
        if found is None:
            settle("analyze", Context(run, config, name, *hessians[0]))  # bits are those of threads
            found = _compare(run, config, hessians, files, available, ks)
            with suppress(FileError):  # somebody else's run: it is computed again each time
                results_file.write(path, found, identities)
    return replace(found, hessians=hessians)


def _compare(
    run: RunDir,
    config: Config,
    hessians: list[tuple[int, str]],
    files: list[EighFile],
    available: int,
    ks: list[int],
) -> StabilisationResults:
    masks = {
        step: torch.tensor(
            results_file.read(run.result(config, step, split), HessianResults).mask,
            dtype=torch.long,
            device="cpu",
        )
        for step, split in hessians
    }
    overlaps, errors = eigenspace_overlaps(
        [file.eigenvectors for file in files], ks, [file.sines for file in files]
    )
    return StabilisationResults(
        parameters=files[0].eigenvectors.shape[0],
        hessians=hessians,
        steps=list(masks),
        ks=ks,
        pairs=available,
        eigenspaces=overlaps.tolist(),
        eigenspace_errors=[
            [[None if value != value else value for value in row] for row in matrix]
            for matrix in errors.tolist()
        ],
        masks=mask_overlaps(list(masks.values()), ks).tolist(),
    )


def _identity(file: EighFile) -> str:
    """A hash of what a decomposition was computed from, and of its eigenvalues."""
    found = hashlib.sha256(" ".join(file.manifests).encode())
    found.update(file.eigenvalues.numpy().tobytes())
    return found.hexdigest()
