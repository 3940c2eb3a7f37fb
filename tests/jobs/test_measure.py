"""Blocks are written behind the next one's matvecs: never lost, never many at a time."""

from __future__ import annotations

import threading

import pytest
import torch

from skerch.files import FileError
from skerch.jobs.stages.measure import fill
from skerch.measurements.array import MeasurementArray
from skerch.measurements.manifest import Manifest

PATIENCE = 30.0  # seconds


@pytest.fixture
def array(tmp_path):
    manifest = Manifest(
        size=6,
        dtype="float32",
        columns=4,
        stored=4,
        probes=0,
        block_size=1,
        sketch="sparse_sign",
        seed=0,
        compresses=False,
    )
    return MeasurementArray.create(tmp_path, manifest)


def columns(block):
    return {"leftouter": torch.full((6, 1), float(block.index))}


def written(array):
    return sorted(set(range(4)) - {block.index for block in array.missing()})


def test_a_block_is_written_while_the_next_is_measured_and_never_two_behind(array, monkeypatch):
    """Each write waits until the next block is begun, and each block looks what is written."""
    begun = [threading.Event() for _ in range(5)]
    begun[4].set()  # there is none after the last
    write, seen = array.write, []

    def wait_and_write(block, arrays):
        assert begun[block.index + 1].wait(PATIENCE)
        write(block, arrays)

    def measure(block):
        begun[block.index].set()
        seen.append(written(array))
        return columns(block)

    monkeypatch.setattr(array, "write", wait_and_write)
    fill(array, array.missing(), measure)
    assert all(set(range(index - 1)) <= set(now) for index, now in enumerate(seen))
    assert written(array) == [0, 1, 2, 3]
    for block in array.manifest.blocks():
        with array.open(block) as file:
            assert (file["leftouter"][...] == block.index).all()


def test_progress_counts_columns_that_are_on_disk(array):
    counts = []

    def progress(done, total, unit):
        assert len(written(array)) >= done
        counts.append((done, total, unit))

    fill(array, array.missing(), columns, progress)
    assert counts == [(n, 4, "columns") for n in (1, 2, 3, 4)]


@pytest.mark.parametrize("failing", [0, 1, 3])
def test_what_fails_to_be_written_is_raised_here(array, monkeypatch, failing):
    write = array.write

    def refuse(block, arrays):
        if block.index == failing:
            raise FileError("No space left on device")
        write(block, arrays)

    monkeypatch.setattr(array, "write", refuse)
    with pytest.raises(FileError, match="No space left"):
        fill(array, array.missing(), columns)
    assert written(array) == list(range(failing))


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_was_measured_before_an_interruption_is_kept(array, error):
    def measure(block):
        if block.index == 2:
            raise error
        return columns(block)

    with pytest.raises(error):
        fill(array, array.missing(), measure)
    assert written(array) == [0, 1]
