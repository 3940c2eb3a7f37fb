"""HDF5 files are opened also without a lock, which some file systems lack and viewers hold."""

from __future__ import annotations

import fcntl
from pathlib import Path

import h5py
import pytest
import torch

from skerch.files import FileError
from skerch.hdf5 import open_for_reading, verify, write_arrays, write_hdf5
from skerch.measurements.legacy.layout import create_hdf5_layout
from skerch.measurements.legacy.merge import merge_hdf5

ROOT = Path(__file__).parents[2]


@pytest.fixture
def held():
    """A function that locks a file as another program would that writes it."""
    files = []

    def hold(path: Path) -> None:
        files.append(path.open("rb+"))
        fcntl.flock(files[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)

    yield hold
    for file in files:
        file.close()


def test_a_lock_that_another_program_holds_does_not_matter(tmp_path, held):
    path = tmp_path / "x.h5"
    write_hdf5(path, lambda file: write_arrays(file, {"x": torch.arange(3)}, {}))
    held(path)
    with pytest.raises(OSError, match="lock"):
        h5py.File(path)
    verify(path)
    with open_for_reading(path) as file:
        assert file["x"][...].tolist() == [0, 1, 2]


def test_a_layout_of_0_x_is_merged_while_its_files_are_locked(tmp_path, held):
    (view,) = create_hdf5_layout(tmp_path / "layout", (3, 3), 1, 1, sym=True)[:1]
    (part,) = view.parent.glob("leftouter_0*.h5")
    with h5py.File(part, "r+") as file:
        file["data"][:] = 7
        file["flags"][:] = "measured"
    held(view)
    held(part)
    merge_hdf5(view, tmp_path / "merged.h5", ok_flag="measured")
    with h5py.File(tmp_path / "merged.h5") as file:
        assert (file["data"][...] == 7).all()


@pytest.mark.parametrize("locking", [None, False])
def test_a_file_that_this_process_has_open_can_be_opened_again(locking, tmp_path):
    path = tmp_path / "x.h5"
    write_hdf5(path, lambda file: write_arrays(file, {"x": torch.arange(3)}, {}))
    with h5py.File(path, locking=locking), open_for_reading(path) as file:
        assert file["x"][2] == 2
    with open_for_reading(path), h5py.File(path) as file:
        assert file["x"][2] == 2


def test_a_damaged_file_is_still_refused_by_name(tmp_path):
    (tmp_path / "x.h5").write_bytes(b"no HDF5")
    with pytest.raises(FileError, match=r"x\.h5 is damaged .*signature"):
        open_for_reading(tmp_path / "x.h5")


def test_one_function_opens_all_hdf5_files():
    for folder in ("skerch", "jobs", "analysis"):
        for path in (ROOT / folder).rglob("*.py"):
            opens = "h5py.File(" in path.read_text(encoding="utf-8")
            assert opens == (path == ROOT / "skerch" / "hdf5.py"), path
