"""Measurement arrays against the dense operator that was measured."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from skerch import randomness, sketch_operators, synthmat
from skerch.decompositions.eigh_file import EighFile, write_eigh
from skerch.decompositions.recoveries import RECOVERIES, Round
from skerch.decompositions.seigh import seigh
from skerch.decompositions.solve import solve
from skerch.errors import SkerchError
from skerch.hdf5 import verify
from skerch.linops import aslinearoperator
from skerch.measurements.array import BlockError, MeasurementArray, StoredColumns
from skerch.measurements.manifest import Manifest, ManifestError
from skerch.measurements.measure import Measurer, NonFiniteError
from skerch.measurements.merge import MergedArray, MergeError, merge
from skerch.measurements.range_finder import (
    RangeError,
    RangeFile,
    find_range,
    range_map,
    with_fresh,
)

N, OUTER, INNER, PROBES = 300, 20, 41, 5


def manifest(**changes):
    values = {
        "size": N,
        "dtype": "float64",
        "columns": INNER,
        "stored": INNER,
        "probes": PROBES,
        "block_size": 8,
        "sketch": "sparse_sign",
        "seed": 3,
        "compresses": False,
    }
    return Manifest(**values | changes)


@pytest.fixture(scope="module")
def H():
    return synthmat.symmetric(synthmat.exponential_decay(N, 5, 0.1), seed=0, signs="alternate")[0]


@pytest.fixture(scope="module")
def op(H):
    return aslinearoperator(H, self_adjoint=True)


def fill(array, op, range_columns=None, order=1):
    measurer = Measurer(array.manifest, range_columns=range_columns)
    for block in array.missing()[::order]:
        array.write(block, measurer.measure(op, block))


def merged_rounds(folder, op, recovery, rounds, progress=None, **values):
    """Measure all rounds in a folder and merge them into its merged.h5; their arrays."""
    arrays, found = [], None
    with contextlib.ExitStack() as stack:
        each_round = RECOVERIES[recovery].each_round(rounds, OUTER, INNER, PROBES)
        for each in each_round:
            if each.round > 1:
                path = folder / f"range-{each.round}.h5"
                find_range(arrays, path, each.columns, found, final=each is each_round[-1])
                found = stack.enter_context(RangeFile(path, list(arrays)))
            changes = dataclasses.asdict(each) | {"range_hash": found and found.hash} | values
            array = MeasurementArray.create(folder / f"round-{each.round}", manifest(**changes))
            fill(array, op, found and found.columns, order=-1)
            arrays.append(array)
        merge(arrays, folder / "merged.h5", range_file=found, progress=progress)
    return arrays


def test_blocks_partition_the_columns_and_never_straddle_a_boundary():
    oversampled = manifest(columns=50, stored=21, probes=9, block_size=10)
    blocks = oversampled.blocks()
    assert [b.index for b in blocks] == list(range(len(blocks)))
    ranges = [(b.kind, b.start, b.stop, b.stored) for b in blocks]
    assert ranges == [
        ("test", 0, 10, True),
        ("test", 10, 20, True),
        ("test", 20, 21, True),
        ("test", 21, 31, False),
        ("test", 31, 41, False),
        ("test", 41, 50, False),
        ("probe", 0, 9, True),
    ]
    assert Round(1, 50, 21, 9, compresses=True).count_blocks(10) == len(blocks)


@pytest.mark.parametrize("kind", sorted(sketch_operators.KINDS))
def test_a_measured_array_holds_the_products_of_its_test_vectors(tmp_path, H, op, kind):
    array = MeasurementArray.create(
        tmp_path, manifest(sketch=kind, columns=INNER, stored=OUTER, compresses=True)
    )
    fill(array, op)
    shape = {"seed": 3, "dtype": torch.float64}
    omega = sketch_operators.make(kind, (INNER, N), role="omega", **shape).rows(0, INNER)
    psi = sketch_operators.make(kind, (INNER, N), role="psi", **shape).rows(0, INNER)
    G = sketch_operators.make("gaussian", (PROBES, N), role="probe", **shape).rows(0, PROBES)
    Y, HZ = H @ omega.T, H @ G.T * PROBES**0.5
    with StoredColumns([array]) as columns:
        torch.testing.assert_close(columns(0, N), torch.cat([Y[:, :OUTER], HZ], dim=1))
    torch.testing.assert_close(array.small("inner"), psi @ Y)
    torch.testing.assert_close(array.small("cross"), omega @ torch.cat([Y[:, :OUTER], HZ], dim=1))
    torch.testing.assert_close(array.small("norm"), torch.linalg.norm(omega, dim=1))
    torch.testing.assert_close(array.quadratic, (G.T * HZ).sum(0) * PROBES**0.5)


@pytest.mark.parametrize(
    ("recovery", "rounds"),
    [
        ("nystrom", 1),
        ("nystrom", 2),
        ("nystrom", 10),
        ("nystrom", [21, 10, 10]),
        ("oversampled", 1),
        ("hmt", 2),
    ],
)
def test_the_files_give_the_eigenpairs_of_the_in_core_solver(
    tmp_path, monkeypatch, op, recovery, rounds
):
    monkeypatch.setattr("skerch.measurements.gram.SLAB_ROWS", 128)
    calls = []

    def progress(done: int, total: int) -> None:
        calls.append((done, total))

    arrays = merged_rounds(tmp_path, op, recovery, rounds, progress)
    verify(tmp_path / "merged.h5")
    with MergedArray(tmp_path / "merged.h5") as merged:
        solution = solve(merged.summary, recovery, OUTER)
        of = {"probes": PROBES, "manifests": " ".join(merged.manifests)}
        write_eigh(tmp_path / "eigh.h5", solution, merged.rows, N, "float64", of, progress)
    assert calls == 2 * [(128, N), (256, N), (N, N)]
    options = {"recovery": recovery, "rounds": rounds, "probes": PROBES, "seed": 3, "block_size": 8}
    expected = seigh(op, outer=OUTER, inner=INNER, **options)
    assert solution.health == pytest.approx(expected.health, rel=1e-6, abs=1e-12)
    with EighFile(tmp_path / "eigh.h5") as file:
        assert (file.probes, file.manifests) == (
            PROBES,
            [array.manifest.hash() for array in arrays],
        )
        found, known = (each.eigenvalues.sort().values for each in (file, expected))  # ±1 are ties
        torch.testing.assert_close(found, known, rtol=0, atol=1e-12)
        torch.testing.assert_close(file.residual, expected.residual, rtol=1e-9, atol=1e-9)
        assert file.trace == pytest.approx(expected.trace, rel=1e-7)
        assert file.norm == pytest.approx(expected.norm, rel=1e-7)
        cosines = torch.linalg.svdvals(file.eigenvectors[:].T @ expected.eigenvectors)
        torch.testing.assert_close(cosines, torch.ones(OUTER).double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("decay", [0.07, 0.15, 0.25, "rank 10"])  # κ(Y) is 1e3, 1e6, 1e10
def test_the_residual_is_that_of_a_qr_in_core(tmp_path, decay, dtype):
    if decay == "rank 10":
        spectrum = (torch.arange(N) < 10) * torch.linspace(2, 1, N).double()
    else:
        spectrum = synthmat.exponential_decay(N, 1, decay)
    H, _ = synthmat.symmetric(spectrum, seed=0, signs="alternate")
    narrow = aslinearoperator(H.to(getattr(torch, dtype)), self_adjoint=True)
    merged_rounds(tmp_path, narrow, "nystrom", 2, dtype=dtype)

    def residual(W, values):
        return float(torch.linalg.norm(H - (W * values) @ W.T))

    with MergedArray(tmp_path / "merged.h5") as merged:
        solution = solve(merged.summary, "nystrom", OUTER)
        of = {"probes": PROBES, "manifests": ""}
        write_eigh(tmp_path / "eigh.h5", solution, merged.rows, N, dtype, of)
        Q, R = torch.linalg.qr(merged.rows(0, N).double())
        U, S, Vh = torch.linalg.svd(R)
        kept = S / S[0] > 1e-14
        P, R = Vh[kept].T / S[kept], S[kept, None] * Vh[kept]
        exact = solve(dataclasses.replace(merged.summary, P=P, R=R), "nystrom", OUTER)
        W = Q @ U[:, kept] @ (R @ exact.coefficients)
    with EighFile(tmp_path / "eigh.h5") as file:
        found = residual(file.eigenvectors[:].double(), file.eigenvalues)
    rounded = W.to(getattr(torch, dtype)).double()
    rounding = 20 * torch.finfo(torch.float64).eps * float(torch.linalg.norm(H))  # of H - W Λ Wᵀ
    assert found < 1.001 * residual(rounded, exact.eigenvalues) + rounding


def test_a_merge_without_consolidation_keeps_the_summary_only(tmp_path, op):
    array = MeasurementArray.create(tmp_path, manifest())
    fill(array, op)
    for consolidate in (True, False):
        merge([array], tmp_path / f"{consolidate}.h5", consolidate=consolidate)
    with MergedArray(tmp_path / "True.h5") as whole, MergedArray(tmp_path / "False.h5") as small:
        assert small.rows is None
        assert whole.rows is not None
        assert torch.equal(whole.summary.gram, small.summary.gram)
        with StoredColumns([array]) as columns:
            assert torch.equal(whole.rows(0, N), columns(0, N)[:, :INNER])
            with h5py.File(tmp_path / "True.h5") as file:
                probes = torch.from_numpy(file["probe"][...])
                on_disk = file["leftouter"].id.get_storage_size()
            assert torch.equal(probes, columns(0, N)[:, INNER:])
    assert on_disk < 1.05 * 8 * N * INNER
    array.remove_blocks()
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"manifest.json", "True.h5", "False.h5"}


def test_without_the_probes_quadratic_forms_as_of_older_versions_there_is_no_trace(tmp_path, op):
    array = MeasurementArray.create(tmp_path, manifest(block_size=2))
    fill(array, op)
    with h5py.File(array.path(len(array.manifest.blocks()) - 1), "a") as file:
        del file["quadratic"]
    merge([array], tmp_path / "merged.h5")
    with MergedArray(tmp_path / "merged.h5") as merged:
        solution = solve(merged.summary, "nystrom", OUTER)
        of = {"probes": PROBES, "manifests": " ".join(merged.manifests)}
        write_eigh(tmp_path / "eigh.h5", solution, merged.rows, N, "float64", of)
    with EighFile(tmp_path / "eigh.h5") as file:
        assert file.trace is None
        assert file.norm == solution.norm


def test_few_files_are_open_at_a_time(tmp_path, monkeypatch, op):
    array = MeasurementArray.create(tmp_path, manifest())
    fill(array, op)
    with StoredColumns([array]) as columns:
        whole = columns(0, N)
    monkeypatch.setattr("skerch.measurements.array.MOST_OPEN_FILES", 2)
    files = Path("/proc/self/fd")
    before = len(list(files.iterdir()))
    with StoredColumns([array]) as columns:
        for start in range(0, N, 100):
            assert torch.equal(columns(start, start + 100), whole[start : start + 100])
            assert len(list(files.iterdir())) <= before + 2


def test_missing_blocks_are_named_and_not_read_as_zeros(tmp_path, op):
    array = MeasurementArray.create(tmp_path, manifest())
    fill(array, op)
    array.path(3).unlink()
    assert [block.index for block in array.missing()] == [3]
    assert [block.index for block in array.missing([2, 3])] == [3]
    assert array.missing([2, 4]) == []
    with pytest.raises(MergeError, match=r"lacks 1 of 7 blocks.*block-000003\.h5"):
        merge([array], tmp_path / "merged.h5")
    assert not (tmp_path / "merged.h5").exists()
    with h5py.File(tmp_path / "leftouter_ALL.h5") as view:
        unmeasured = np.isnan(view["leftouter"][...]).any(axis=0)
    assert unmeasured.nonzero()[0].tolist() == list(range(24, 32))


def test_blocks_of_another_manifest_and_swapped_blocks_are_refused(tmp_path, op):
    ours = MeasurementArray.create(tmp_path / "ours", manifest())
    other = MeasurementArray.create(tmp_path / "other", manifest(provenance={"step": 1}))
    fill(ours, op)
    fill(other, op)
    whole = ours.path(1).read_bytes()
    for foreign in (other.path(1), ours.path(2)):
        ours.path(1).write_bytes(foreign.read_bytes())
        with pytest.raises(BlockError, match=r"block-000001\.h5 was measured for another"):
            merge([ours], tmp_path / "merged.h5")
    ours.path(1).write_bytes(whole)
    merge([ours], tmp_path / "merged.h5")


def test_a_flipped_bit_is_refused_by_name_or_changes_nothing(tmp_path, op):
    array = MeasurementArray.create(tmp_path, manifest())
    fill(array, op)
    merge([array], tmp_path / "merged.h5")
    with MergedArray(tmp_path / "merged.h5") as merged:
        expected = merged.summary
    path = array.path(2)
    whole = bytearray(path.read_bytes())
    refused = unchanged = 0
    for offset in np.random.default_rng(0).choice(len(whole), 60, replace=False):
        damaged = bytearray(whole)
        damaged[offset] ^= 1 << (offset % 8)
        path.write_bytes(damaged)
        try:
            merge([array], tmp_path / "again.h5")
        except SkerchError as error:
            refused += path.name in str(error)
        else:
            unchanged += 1
            with MergedArray(tmp_path / "again.h5") as merged:
                assert torch.equal(merged.summary.gram, expected.gram)
                assert torch.equal(merged.summary.cross, expected.cross)
    assert refused + unchanged == 60
    assert refused > 30


def test_manifests_are_written_once_and_checked(tmp_path):
    written = manifest(provenance={"threads": 1, "strategy": "loop"})
    for _ in range(2):
        MeasurementArray.create(tmp_path, written)
    other = dataclasses.replace(written, seed=4, provenance={"threads": 2, "strategy": "loop"})
    with pytest.raises(ManifestError, match=r"\(seed: 3 -> 4, threads: 1 -> 2\); delete its"):
        MeasurementArray.create(tmp_path, other)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"seed": 3', '"seed": 4'))
    with pytest.raises(ManifestError, match=r"manifest\.json is damaged"):
        MeasurementArray(tmp_path)
    path.unlink()
    with pytest.raises(ManifestError, match=r"manifest\.json is missing"):
        MeasurementArray(tmp_path)


def test_every_field_of_a_manifest_is_in_its_hash():
    original = manifest(range_hash="a", provenance={"step": 1})
    for field in dataclasses.fields(Manifest):
        value = getattr(original, field.name)
        changed = {"step": 2} if field.name == "provenance" else f"{value}x"
        if isinstance(value, int):
            changed = value + 1
        assert dataclasses.replace(original, **{field.name: changed}).hash() != original.hash()


def test_columns_that_are_not_finite_are_refused_by_their_number(H):
    class Exploding:
        shape, dtype, device = (N, N), torch.float64, torch.device("cpu")

        def __matmul__(self, X):
            Y = H @ X
            Y[7, 2] = float("nan")
            return Y

    measurer = Measurer(manifest())
    block = manifest().blocks()[1]
    with pytest.raises(NonFiniteError, match=r"Column 10 \(test vector\) is not finite"):
        measurer.measure(Exploding(), block)


def test_finite_columns_whose_sum_overflows_are_measured():
    huge = aslinearoperator(1e308 * torch.eye(N, dtype=torch.float64), self_adjoint=True)
    of_signs = manifest(sketch="rademacher", columns=1, stored=1)
    measured = Measurer(of_signs).measure(huge, of_signs.blocks()[0])
    assert measured["leftouter"].isfinite().all()
    assert not measured["leftouter"].sum().isfinite()


@pytest.mark.parametrize(("kind", "streams"), [("sparse_sign", 1), ("ssrft", 3)])
def test_maps_are_drawn_once_and_never_for_a_column(monkeypatch, op, kind, streams):
    drawn = []

    def counting(seed, role, *index):
        drawn.append(role)
        return randomness.stream(seed, role, *index)

    for module in ("sparse_sign", "ssrft"):
        monkeypatch.setattr(f"skerch.sketch_operators.{module}.stream", counting)
    measurer = Measurer(manifest(sketch=kind, compresses=True))
    for block in measurer.manifest.blocks():
        measurer.measure(op, block)
    assert sorted(drawn) == ["omega"] * streams + ["psi"] * streams


@pytest.mark.parametrize("columns", [1, 7, 20])
def test_the_range_is_that_of_the_largest_singular_values(tmp_path, H, op, columns):
    array = MeasurementArray.create(tmp_path, manifest())
    fill(array, op)
    find_range([array], tmp_path / "range.h5", columns)
    with RangeFile(tmp_path / "range.h5", [array]) as found:
        Q = found.columns(0, columns)
    with StoredColumns([array]) as stored:
        U = torch.linalg.svd(stored(0, N)[:, :INNER], full_matrices=False).U
    cosines = torch.linalg.svdvals(U[:, :columns].T @ Q)
    torch.testing.assert_close(cosines, torch.ones(columns).double(), rtol=0, atol=1e-9)


def test_fresh_vectors_go_on_where_a_range_is_at_its_end_through_files_too(tmp_path, monkeypatch):
    monkeypatch.setattr("skerch.measurements.gram.SLAB_ROWS", 128)
    H, _ = synthmat.symmetric(torch.cat([torch.full((40,), 2.0), torch.zeros(N - 40)]).double(), 0)
    op = aslinearoperator(H, self_adjoint=True)
    merged_rounds(tmp_path, op, "nystrom", 8)
    outer = 6 + 3 * 5  # all that are found, by a round and three times fresh vectors: no choice
    with MergedArray(tmp_path / "merged.h5") as merged:
        solution = solve(merged.summary, "nystrom", outer)
    options = {"rounds": 8, "probes": PROBES, "seed": 3, "block_size": 8}
    expected = seigh(op, outer=outer, inner=INNER, **options)
    torch.testing.assert_close(expected.eigenvalues, torch.full((outer,), 2.0).double())
    torch.testing.assert_close(solution.eigenvalues, expected.eigenvalues, rtol=0, atol=1e-12)
    torch.testing.assert_close(solution.residual, expected.residual, rtol=1e-6, atol=1e-9)


def test_the_ranges_of_all_rounds_are_orthonormal_together():
    Y = synthmat.symmetric(synthmat.polynomial_decay(N, 5, 1), seed=0, signs="alternate")[0]
    generator = torch.Generator().manual_seed(0)
    measured, P = Y @ torch.randn(N, 20, generator=generator).double(), None
    for _ in range(3):
        rows, G = lambda i, j, rows=measured: rows[i:j], measured.T @ measured
        P = range_map(G, rows, N, 15, torch.float64, P)
        measured = torch.cat([measured, Y @ (measured @ P[:, -15:])], dim=1)
    Q = measured[:, : len(P)] @ P
    torch.testing.assert_close(Q.T @ Q, torch.eye(45).double(), rtol=0, atol=1e-8)


def test_another_array_has_another_range_hash(tmp_path, op):
    hashes = []
    for seed in (3, 3, 4):
        directory = tmp_path / str(len(hashes))
        array = MeasurementArray.create(directory, manifest(seed=seed))
        fill(array, op)
        find_range([array], directory / "range.h5", 20)
        with RangeFile(directory / "range.h5", [array]) as found:
            hashes.append(found.hash)
    assert hashes[0] == hashes[1] != hashes[2]


def test_blocks_of_other_measurements_are_refused_at_layout(tmp_path, op):
    array = MeasurementArray.create(tmp_path, manifest())
    fill(array, op)
    (tmp_path / "manifest.json").unlink()
    for _ in range(2):
        with pytest.raises(BlockError, match=r"another manifest.*delete it, or all of .*blocks"):
            MeasurementArray.create(tmp_path, manifest(seed=4))
    MeasurementArray.create(tmp_path, manifest())


def test_a_lost_manifest_is_restored_from_a_block(tmp_path, op):
    array = MeasurementArray.create(tmp_path, manifest())
    assert not MeasurementArray.restore(tmp_path)
    fill(array, op)
    (tmp_path / "manifest.json").unlink()
    assert MeasurementArray.restore(tmp_path)
    assert MeasurementArray(tmp_path).manifest == manifest()


def test_rounds_that_do_not_belong_together_are_refused(tmp_path, op):
    arrays = {}
    for seed in (3, 4):
        first = MeasurementArray.create(tmp_path / f"first-{seed}", manifest(seed=seed))
        fill(first, op)
        find_range([first], tmp_path / f"{seed}.h5", 20)
        with RangeFile(tmp_path / f"{seed}.h5", [first]) as found:
            changes = {"columns": 20, "stored": 20, "probes": 0, "seed": seed, "round": 2}
            changes["range_hash"] = found.hash
            second = MeasurementArray.create(tmp_path / f"second-{seed}", manifest(**changes))
            fill(second, op, found.columns)
        arrays[seed] = first, second
    with pytest.raises(RangeError, match=r"3\.h5 is of other measurements than .*first-4"):
        RangeFile(tmp_path / "3.h5", [arrays[4][0]])
    first, second = arrays[3]
    elsewhere = dataclasses.replace(second.manifest, provenance={"threads": 2})
    second = MeasurementArray.create(tmp_path / "elsewhere", elsewhere)
    with RangeFile(tmp_path / "3.h5", [first]) as found:
        with pytest.raises(RangeError, match=r"second-4 was measured with another range file"):
            find_range([first, arrays[4][1]], tmp_path / "next.h5", 20, found)
        for other in (arrays[4][1], second):
            with pytest.raises(MergeError, match=rf"{other.directory} was laid out after other"):
                merge([first, other], tmp_path / "merged.h5", range_file=found)


def test_the_arrays_of_a_zero_operator_are_merged(tmp_path):
    array = MeasurementArray.create(tmp_path, manifest())
    fill(array, aslinearoperator(torch.zeros(N, N).double(), self_adjoint=True))
    merge([array], tmp_path / "merged.h5")
    with MergedArray(tmp_path / "merged.h5") as merged:
        assert len(solve(merged.summary, "nystrom", OUTER).eigenvalues) == 0


def test_a_killed_worker_loses_only_the_block_in_flight(tmp_path):
    script = f"""
import torch
from pathlib import Path
from skerch.measurements.array import MeasurementArray
array = MeasurementArray(Path({str(tmp_path)!r}))
while True:
    for block in array.manifest.blocks():
        array.write(block, {{"leftouter": torch.full(({N}, 8), float(block.index))}})
        print(block.index, flush=True)
"""
    array = MeasurementArray.create(tmp_path, manifest(columns=40, stored=40, probes=0))
    for lines in (1, 4, 9):
        worker = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        for _ in range(lines):
            worker.stdout.readline()
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
        worker.stdout.close()
        for block in array.manifest.blocks():
            if block not in array.missing():
                with array.open(block) as file:
                    assert (file["leftouter"][...] == block.index).all()
    assert not array.missing()


@pytest.mark.parametrize("size", [1, 4])
def test_no_fresh_vector_is_made_of_rounding_where_none_is_left(size):
    rows = torch.randn(size, size + 2, generator=torch.manual_seed(0), dtype=torch.float64)
    Y = rows[:, :size]
    lacking = torch.zeros(size, 3, dtype=torch.float64)
    of = rows.__getitem__
    both = (lambda a, b: of(slice(a, b)),) * 2
    fresh, _, B = with_fresh(lacking, Y.T @ Y, *both, size, Y.dtype, 0, None)
    assert fresh is not None
    assert not fresh.products.any()
    assert not B.any()
