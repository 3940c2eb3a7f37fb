"""Layouts of skerch 0.x and 1.x: against plain h5py, and against the originals from PyPI."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from skerch import __main__ as program
from skerch import synthmat
from skerch.errors import SkerchError
from skerch.linops import aslinearoperator
from skerch.measurements.array import MeasurementArray
from skerch.measurements.legacy import merge as legacy
from skerch.measurements.legacy.layout import create_hdf5_layout
from skerch.measurements.legacy.merge import merge_hdf5
from skerch.measurements.manifest import Manifest
from skerch.measurements.measure import Measurer
from skerch.measurements.merge import MergeError, merge
from skerch.measurements.range_finder import RangeFile, find_range

STRING = h5py.string_dtype()


def matrix(rows, columns, dtype="float32"):
    return np.random.default_rng(rows).standard_normal((rows, columns)).astype(dtype)


def lay_out(folder, whole, width, axis, flag="measured"):
    """A view of files of `width` vectors along an axis, as the formats' descriptions have it."""
    folder.mkdir(parents=True, exist_ok=True)
    view = h5py.VirtualLayout(whole.shape, whole.dtype)
    flags = h5py.VirtualLayout((whole.shape[axis],), STRING)
    paths = []
    for start in range(0, whole.shape[axis], width):
        stop = min(start + width, whole.shape[axis])
        part = whole[:, start] if axis else whole[start:stop]
        name = f"y_{start:010d}.h5" if axis else f"y_{start:03d}-{stop:03d}.h5"
        source = h5py.VirtualSource(name, "data", part.shape)
        if axis:
            view[:, start] = source
        else:
            view[start:stop] = source
        flags[start:stop] = h5py.VirtualSource(name, "flags", (stop - start,))
        paths.append(folder / name)
        with h5py.File(paths[-1], "w") as file:
            file.create_dataset("data", data=part, chunks=part.shape, compression="lzf")
            file.create_dataset("flags", data=[flag] * (stop - start), dtype=STRING)
    with h5py.File(folder / "y_ALL.h5", "w") as file:
        file.create_virtual_dataset("data", view)
        file.create_virtual_dataset("flags", flags)
    return folder / "y_ALL.h5", paths


def merged(path):
    with h5py.File(path) as file:
        return file["data"][...], file["flags"].asstr()[...].tolist()


@pytest.mark.parametrize("sym", [True, False])
def test_a_new_layout_has_a_file_a_column_and_a_view(tmp_path, sym):
    shape = (9, 9) if sym else (9, 7)
    views = create_hdf5_layout(tmp_path / "new", shape, 3, 4, "float64", sym=sym)
    sizes = {"leftouter": (shape[1], 3), "inner": (4, 4)} | ({} if sym else {"rightouter": (9, 3)})
    names = {
        f"{prefix}_{name}.h5"
        for prefix, (_, columns) in sizes.items()
        for name in ["ALL", *(f"{column:010d}" for column in range(columns))]
    }
    assert {path.name for path in (tmp_path / "new").iterdir()} == names
    assert [path.name for path in views] == [f"{prefix}_ALL.h5" for prefix in sizes]
    for prefix, (rows, columns) in sizes.items():
        with h5py.File(tmp_path / "new" / f"{prefix}_{columns - 1:010d}.h5") as file:
            assert set(file) == {"data", "flags"}
            assert (file["data"].shape, file["data"].dtype) == ((rows,), np.float64)
            assert file["flags"][...].tolist() == [b"initialized"]
        with h5py.File(tmp_path / "new" / f"{prefix}_ALL.h5") as file:
            assert file["data"].is_virtual
            assert file["data"].shape == (rows, columns)
            assert file["flags"][...].tolist() == [b"initialized"] * columns


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_a_missing_column_of_a_new_view_is_nan(tmp_path, dtype):
    view, _ = create_hdf5_layout(tmp_path, (5, 5), 3, 4, dtype, sym=True)
    (tmp_path / "leftouter_0000000001.h5").unlink()
    with h5py.File(view) as file:
        assert np.isnan(file["data"][...]).all(axis=0).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (((9, 7), 3, 4, "float32", True), "9,7 is not square"),
        (((9, 9), 0, 4, "float32", True), "outer 0"),
        (((9, 9), 3, 0, "float32", True), "inner 0"),
        (((0, 9), 3, 4, "float32", False), "Shape 0,9"),
        (((9, 0), 3, 4, "float32", False), "Shape 9,0"),
        (((9, 9), 3, 4, "flaot32", True), "flaot32"),
        (((2**31, 9), 3, 4, "float32", False), "4 GiB"),
        (((9, 2**29), 3, 4, "float64", False), "4 GiB"),
        (((9, 9), 3, 2**28, "complex128", True), "4 GiB"),
    ],
)
def test_no_layout_is_made_of_sizes_that_make_no_sketch(tmp_path, arguments, words):
    *sizes, sym = arguments
    with pytest.raises(SkerchError, match=words) as refusal:
        create_hdf5_layout(tmp_path / "new", *sizes, sym=sym)
    assert refusal.value.exit_status == 2
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("slab", [legacy.MOST_SLAB_BYTES, 1000])
@pytest.mark.parametrize(
    ("axis", "width", "shape"),
    [(1, 1, (300, 7)), (1, 1, (300, 1)), (1, 1, (5000, 150)), (0, 4, (10, 300)), (0, 9, (9, 30))],
)
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_merged_are_all_vectors_in_their_order(
    tmp_path, monkeypatch, axis, width, shape, dtype, slab
):
    monkeypatch.setattr(legacy, "MOST_SLAB_BYTES", slab)
    whole = matrix(*shape, dtype)
    view, _ = lay_out(tmp_path, whole, width, axis)
    merge_hdf5(view, tmp_path / "out" / "m.h5", ok_flag="measured")
    data, flags = merged(tmp_path / "out" / "m.h5")
    with h5py.File(tmp_path / "out" / "m.h5") as file:
        assert file["data"].fletcher32
    assert data.dtype == whole.dtype
    np.testing.assert_array_equal(data, whole)
    assert flags == ["measured"] * shape[axis]


def other_data(values):
    def damage(path):
        with h5py.File(path, "r+") as file:
            del file["data"]
            file["data"] = values

    return damage


def never_written(path):
    with h5py.File(path, "r+") as file:
        del file["data"]
        file.create_dataset("data", (20,), "f4", chunks=(20,))


def flagged(flag):
    def damage(path):
        with h5py.File(path, "r+") as file:
            file["flags"][0] = flag

    return damage


FAULTS = {
    "missing": (Path.unlink, "is missing"),
    "cut short": (lambda path: os.truncate(path, 1500), "is damaged"),
    "other shape": (other_data(np.ones(19, "f4")), "float32 (19,)"),
    "other type": (other_data(np.ones(20, "f8")), "float64 (20,)"),
    "not finite": (other_data(np.full(20, np.nan, "f4")), "is not finite at vector 3"),
    "never written": (never_written, "has never been written"),
    "flag": (flagged("processing"), "'processing' instead of 'measured'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_at_fault_is_named_and_nothing_is_merged(tmp_path, fault):
    damage, words = FAULTS[fault]
    view, paths = lay_out(tmp_path, matrix(20, 5), 1, 1)
    damage(paths[3])
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SkerchError, match=f"{re.escape(str(paths[3]))}.*{re.escape(words)}"):
        merge_hdf5(view, tmp_path / "m.h5", ok_flag="measured", delete_subfiles=True)
    assert sorted(tmp_path.iterdir()) == before


def test_without_ok_flag_a_flag_as_initialised_is_refused_where_others_are_not(tmp_path):
    view, paths = lay_out(tmp_path / "used", matrix(20, 5), 1, 1)
    flagged("initialized")(paths[2])
    with pytest.raises(MergeError, match=f"{paths[2].name} has the flag 'initialized'"):
        merge_hdf5(view, tmp_path / "m.h5")
    view, _ = lay_out(tmp_path / "unused", matrix(20, 5), 1, 1, flag="initialized")
    merge_hdf5(view, tmp_path / "m.h5")
    np.testing.assert_array_equal(merged(tmp_path / "m.h5")[0], matrix(20, 5))


@pytest.mark.parametrize(
    ("starts", "words"),
    [((0, 2, 5), "a gap: .*c.h5"), ((0, 1, 4), "an overlap: .*b.h5"), ((0, 2), "a gap: after .*b")],
)
def test_a_view_with_a_gap_or_an_overlap_is_refused(tmp_path, starts, words):
    view = h5py.VirtualLayout((7, 3), "f4")
    for name, start in zip("abc", starts, strict=False):
        view[start : start + 2] = h5py.VirtualSource(f"{name}.h5", "data", (2, 3))
    with h5py.File(tmp_path / "y_ALL.h5", "w") as file:
        file.create_virtual_dataset("data", view)
        file["flags"] = ["measured"] * 7
    with pytest.raises(MergeError, match=words):
        merge_hdf5(tmp_path / "y_ALL.h5", tmp_path / "m.h5")


def python(script, *arguments, **options):
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


FEW_HANDLES = """
import os, resource, sys
from pathlib import Path
from skerch.errors import SkerchError
from skerch.measurements.legacy.merge import merge_hdf5
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
view, out = map(Path, sys.argv[1:])
merge_hdf5(view, out)
handles = []
try:
    while True:
        handles.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    os.close(handles.pop())
try:
    merge_hdf5(view, out)
except SkerchError as error:
    print(error)
"""


def test_64_handles_merge_200_files_and_none_left_is_no_damage(tmp_path):
    whole = matrix(20, 200)
    view, paths = lay_out(tmp_path, whole, 1, 1)
    done = python(FEW_HANDLES, view, tmp_path / "m.h5")
    assert done.returncode == 0, done.stderr
    assert f"{paths[0]} cannot be read: Too many open files" in done.stdout
    np.testing.assert_array_equal(merged(tmp_path / "m.h5")[0], whole)


KILLED = """
import os, signal, sys
from pathlib import Path
from skerch.measurements.legacy import merge as legacy
read = legacy._read
def killed(layout, part):
    return os.kill(os.getpid(), signal.SIGKILL) if part.start == 3 else read(layout, part)
legacy._read, legacy.MOST_SLAB_BYTES = killed, 1
legacy.merge_hdf5(*map(Path, sys.argv[1:]), delete_subfiles=True)
"""


def test_a_merge_that_is_killed_loses_nothing_and_runs_again(tmp_path):
    whole = matrix(20, 5)
    view, _ = lay_out(tmp_path / "in", whole, 1, 1)
    out = tmp_path / "out" / "m.h5"
    assert python(KILLED, view, out).returncode == -signal.SIGKILL
    assert len(list((tmp_path / "in").iterdir())) == 6
    assert [path.suffix for path in out.parent.iterdir()] == [".tmp"]
    merge_hdf5(view, out, ok_flag="measured", delete_subfiles=True)
    assert list(out.parent.iterdir()) == [out]
    assert not list((tmp_path / "in").iterdir())
    np.testing.assert_array_equal(merged(out)[0], whole)


@pytest.mark.parametrize("slab", [legacy.MOST_SLAB_BYTES, 100])
@pytest.mark.parametrize("removed", [1, 5])
def test_a_removal_that_was_cut_short_goes_on(tmp_path, monkeypatch, slab, removed):
    monkeypatch.setattr(legacy, "MOST_SLAB_BYTES", slab)
    view, paths = lay_out(tmp_path, matrix(20, 5), 1, 1)
    merge_hdf5(view, tmp_path / "m.h5")
    for path in paths[:removed]:
        path.unlink()
    merge_hdf5(view, tmp_path / "m.h5", delete_subfiles=True)
    assert list(tmp_path.iterdir()) == [tmp_path / "m.h5"]


def test_an_older_merged_file_does_not_stand_for_a_lost_column(tmp_path):
    for stage, other in (("values", 2 * matrix(20, 5)), ("shape", matrix(20, 6))):
        folder = tmp_path / stage
        view, _ = lay_out(folder, matrix(20, 5), 1, 1)
        merge_hdf5(view, folder / "m.h5")
        view, paths = lay_out(folder, other, 1, 1)
        paths[0].unlink()
        with pytest.raises(SkerchError, match=f"{paths[0].name} is missing"):
            merge_hdf5(view, folder / "m.h5", delete_subfiles=True)
        assert all(path.exists() for path in paths[1:])


def test_no_file_is_removed_that_the_merged_one_does_not_hold(tmp_path, monkeypatch):
    def fill(file, *rest, right=legacy._fill):
        right(file, *rest)
        file["data"][7, 2] += 1

    monkeypatch.setattr(legacy, "_fill", fill)
    view, paths = lay_out(tmp_path, matrix(20, 5), 1, 1)
    with pytest.raises(MergeError, match="nothing was removed"):
        merge_hdf5(view, tmp_path / "m.h5", delete_subfiles=True)
    assert all(path.exists() for path in (view, *paths))


def test_only_a_merged_file_is_written_over(tmp_path):
    view, _ = lay_out(tmp_path / "in", matrix(20, 5), 1, 1)
    text, array, old = (tmp_path / name for name in ("thesis.txt", "eigh.h5", "m.h5"))
    text.write_text("mine")
    with h5py.File(array, "w") as file:
        file["eigenvalues"] = [1.0]
    for precious in (text, array, tmp_path):
        with pytest.raises(MergeError, match=f"{precious} is there and no merged file"):
            merge_hdf5(view, precious)
    assert text.read_text() == "mine"
    for _ in range(2):
        merge_hdf5(view, old)


def test_what_is_to_be_merged_is_never_written_over(tmp_path):
    view, paths = lay_out(tmp_path, matrix(20, 5), 1, 1)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for path in view, paths[2]:
        with pytest.raises(MergeError, match=path.name):
            merge_hdf5(view, path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.fixture(scope="module")
def rounds(tmp_path_factory):
    """A folder with the measurement arrays of two rounds."""
    H, _ = synthmat.symmetric(synthmat.exponential_decay(300, 5, 0.1), seed=0)
    op, folder = aslinearoperator(H, self_adjoint=True), tmp_path_factory.mktemp("measurements")
    values = {"size": 300, "dtype": "float64", "columns": 20, "stored": 20, "block_size": 8}
    values |= {"sketch": "sparse_sign", "seed": 3, "compresses": False}

    def measure(number, range_file=None, **options):
        manifest = Manifest(**values, round=number, **options)
        array = MeasurementArray.create(folder / f"round-{number}", manifest)
        columns = range_file and range_file.columns
        measurer = Measurer(manifest, range_columns=columns)
        for block in manifest.blocks():
            array.write(block, measurer.measure(op, block))
        return array

    first = measure(1, probes=5)
    path = folder / "round-2" / "range.h5"
    find_range([first], path, 20)
    with RangeFile(path, [first]) as range_file:
        second = measure(2, range_file, probes=0, range_hash=range_file.hash)
        merge([first, second], folder / "both.h5", range_file=range_file)
    merge([first], folder / "first.h5")
    return folder


def test_our_own_arrays_are_merged_as_the_pipeline_does(rounds, tmp_path):
    first = rounds / "round-1"
    for given, expected in (
        (rounds, "both.h5"),
        (first, "first.h5"),
        (first / "leftouter_ALL.h5", "first.h5"),
    ):
        merge_hdf5(given, tmp_path / "m.h5")
        assert (tmp_path / "m.h5").read_bytes() == (rounds / expected).read_bytes()
    for given, words in (
        (rounds / "round-2", "rounds \\[2\\]"),
        (tmp_path, "no measurement array"),
    ):
        with pytest.raises(MergeError, match=words):
            merge_hdf5(given, tmp_path / "m.h5")


@pytest.mark.parametrize("name", ["round-2/range.h5", "round-1/blocks/block-000000.h5"])
def test_our_own_arrays_are_never_written_over(rounds, tmp_path, name):
    folder = shutil.copytree(rounds, tmp_path / "measurements")
    before = (folder / name).read_bytes()
    with pytest.raises(MergeError, match=f"{name} is there and no merged file; name another"):
        merge_hdf5(folder, folder / name, delete_subfiles=True)
    assert (folder / name).read_bytes() == before


def test_our_own_blocks_are_removed_once_they_are_merged(rounds, tmp_path):
    folder = shutil.copytree(rounds, tmp_path / "measurements")
    (folder / "round-1" / "blocks" / "block-000001.h5").rename(tmp_path / "kept")
    with pytest.raises(MergeError, match=r"block-000001\.h5"):
        merge_hdf5(folder, tmp_path / "m.h5", delete_subfiles=True)
    (tmp_path / "kept").rename(folder / "round-1" / "blocks" / "block-000001.h5")
    merge_hdf5(folder, tmp_path / "m.h5", delete_subfiles=True)
    assert (tmp_path / "m.h5").read_bytes() == (rounds / "both.h5").read_bytes()
    left = {path.name for path in folder.rglob("*") if path.is_file()}
    assert left == {"manifest.json", "both.h5", "first.h5"}


@pytest.fixture
def skerch(monkeypatch, capsys):
    """The command line in this process: its exit status and stderr."""

    def run(command):
        monkeypatch.setattr(sys, "argv", ["skerch", *command.split()])
        monkeypatch.setattr(program.app, "registered_commands", [*commands])
        with pytest.raises(SystemExit) as end:
            program.main()
        return end.value.code or 0, capsys.readouterr().err

    commands = program.app.registered_commands
    return run


@pytest.mark.parametrize(
    ("command", "words", "status"),
    [
        ("create_hdf5_layout --shape 30,30 --hdf5dir full", "full is not empty", 2),
        ("create_hdf5_layout --shape 30 --hdf5dir new", "--shape 30", 2),
        ("merge_hdf5 --out_path m.h5 --in_path in_ALL.h5", "There is no in_ALL.h5", 1),
        (f"merge_hdf5 --out_path m.h5 --in_path {'a' * 300}", "File name too long", 1),
        ("merge_hdf5 --out_path m.h5 --in_path in/y_0000000000.h5", "is no view", 1),
        ("merge_hdf5 --out_path m.h5 --in_path in/y_ALL.h5 --ok_flag 1", "instead of '1'", 1),
    ],
)
def test_mistakes_on_the_command_line_end_in_a_sentence(
    tmp_path, monkeypatch, skerch, command, words, status
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full" / "file").mkdir(parents=True)
    lay_out(tmp_path / "in", matrix(20, 5), 1, 1)
    found, printed = skerch(command)
    assert found == status
    assert words in printed
    assert not (tmp_path / "m.h5").exists()


def test_the_commands_of_the_design_lay_out_and_merge(tmp_path, monkeypatch, skerch):
    monkeypatch.chdir(tmp_path)
    sizes = "--dtype float32 --shape 30,30 --outer 5 --inner 6 --sym"
    assert skerch(f"create_hdf5_layout --hdf5dir D {sizes}") == (0, "")
    whole = matrix(30, 5)
    for column in range(5):
        with h5py.File(f"D/leftouter_{column:010d}.h5", "r+") as file:
            file["data"][...], file["flags"][0] = whole[:, column], "measured"
    merging = "merge_hdf5 --in_path D/leftouter_ALL.h5 --out_path B.h5 --ok_flag measured"
    assert skerch(f"{merging} --delete_subfiles") == (0, "")
    np.testing.assert_array_equal(merged("B.h5")[0], whole)
    assert {path.name.split("_")[0] for path in Path("D").iterdir()} == {"inner"}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """The command line of skerch 0.11.0 or 1.2.0 from PyPI, in an environment of their own."""
    folder = tmp_path_factory.mktemp("pypi")
    interpreter = folder / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    pip = [interpreter, "-m", "pip", "install", "--quiet"]
    # the two expect a torch before 2.15
    subprocess.run([*pip, "torch==2.13.0", "skerch==1.2.0"], check=True)
    old = folder / "old"
    subprocess.run([*pip, "--no-deps", "--target", old, "skerch==0.11.0"], check=True)

    def run(version, *arguments):
        path = str(old) if version == "0.11.0" else ""
        return subprocess.run(
            [interpreter, *map(str, arguments)],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": path},
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    for version in "0.11.0", "1.2.0":
        script = "from importlib.metadata import version; print(version('skerch'))"
        assert run(version, "-c", script).strip() == version
    return run


WRITE = """
import sys, zlib
import numpy as np
from {} as layout
for path in sys.argv[1:]:
    data, flags, file = layout.load(path)
    data[...] = np.random.default_rng(zlib.crc32(path.encode())).standard_normal(data.shape)
    flags[:] = "measured"
    file.close()
"""


def content(path):
    """All that a file of a layout says, but for what a view has in place of missing files."""
    with h5py.File(path) as file:
        return {
            name: [
                (data.shape, data.maxshape, data.dtype, data.chunks, data.compression),
                data[...].tolist(),
                [
                    (source.file_name, source.dset_name, source.vspace.get_select_bounds())
                    for source in data.virtual_sources()
                ]
                if data.is_virtual
                else data.fillvalue,
            ]
            for name, data in file.items()
        }


@pytest.mark.slow
def test_the_layout_is_that_of_skerch_0_and_either_merges_it(original, tmp_path):
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    layout = "create_hdf5_layout --dtype float64 --shape 30,20 --outer 5 --inner 6 --hdf5dir"
    original("0.11.0", "-m", "skerch", *layout.split(), theirs)
    create_hdf5_layout(ours, (30, 20), 5, 6, "float64")
    names = sorted(path.name for path in theirs.iterdir())
    assert sorted(path.name for path in ours.iterdir()) == names
    parts = [name for name in names if "ALL" not in name]
    assert len(parts) == 16
    for name in names:
        assert content(ours / name) == content(theirs / name)
    writer = WRITE.format("skerch.distributed_measurements import DistributedHDF5")
    original("0.11.0", "-c", writer, *(ours / name for name in parts))
    for prefix in "leftouter", "rightouter", "inner":
        merging = ["merge_hdf5", "--in_path", ours / f"{prefix}_ALL.h5", "--ok_flag", "measured"]
        original("0.11.0", "-m", "skerch", *merging, "--out_path", tmp_path / "theirs.h5")
        merge_hdf5(ours / f"{prefix}_ALL.h5", tmp_path / "ours.h5", ok_flag="measured")
        expected, flags = merged(tmp_path / "theirs.h5")
        data, our_flags = merged(tmp_path / "ours.h5")
        np.testing.assert_array_equal(data, expected)
        assert our_flags == flags
        original("0.11.0", "-c", writer, tmp_path / "ours.h5")  # and it opens what we merged


@pytest.mark.slow
def test_what_skerch_1_has_written_is_merged(original, tmp_path):
    layout = "create_hdf5_layout_lop --lop_shape 30,20 --partsize 4 --lo 10 --ro 9 --inner 6"
    original("1.2.0", "-m", "skerch", *layout.split(), "--hdf5dir", tmp_path)
    parts = sorted(path for path in tmp_path.iterdir() if "ALL" not in path.name)
    assert [path.name for path in parts if "left" in path.name] == [
        "leftouter_000-004.h5",
        "leftouter_004-008.h5",
        "leftouter_008-010.h5",
    ]
    original("1.2.0", "-c", WRITE.format("skerch.hdf5 import DistributedHDF5Tensor"), *parts)
    for prefix in "leftouter", "rightouter", "inner":
        merging = ["merge_hdf5", "--in_path", tmp_path / f"{prefix}_ALL.h5"]
        original("1.2.0", "-m", "skerch", *merging, "--out_path", tmp_path / "theirs.h5")
        merge_hdf5(merging[-1], tmp_path / "ours.h5", ok_flag="measured", delete_subfiles=True)
        np.testing.assert_array_equal(*(merged(tmp_path / n)[0] for n in ("ours.h5", "theirs.h5")))
    assert {path.name for path in tmp_path.iterdir()} == {"ours.h5", "theirs.h5"}
