"""The notebooks run as they are stored, on small settings, and print what they are for."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[2] / "docs" / "notebooks"


@pytest.fixture
def printed(tmp_path, monkeypatch):
    """A function that executes a notebook in an empty folder: what it printed."""
    monkeypatch.setenv("SKERCH_SMALL", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.delenv("MNIST", raising=False)

    def execute(name):
        notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
        where = {"metadata": {"path": str(tmp_path)}}
        NotebookClient(notebook, timeout=120, resources=where).execute()
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
        assert any("image/png" in output.get("data", ()) for output in outputs)
        return "".join(output.get("text", "") for output in outputs)

    return execute


def test_the_study_finds_the_baseline_within_its_standard_error(printed):
    table = re.findall(r"^[OB]-[OB] .* ([+-][\d.]+)$", printed("grassmann"), re.M)
    assert len(table) == 6  # three pairs, two k
    assert all(abs(float(away)) < 3 for away in table)


def test_the_experiment_prints_an_overlap_for_each_step_and_split(printed):
    row = re.compile(r"^ +(\d+)  (train|test) +0\.\d{4} +[\d.]+ +[+-][\d.]+$", re.M)
    rows = row.findall(printed("mnist_mini"))
    assert rows == [(step, split) for step in ("0", "20") for split in ("train", "test")]


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_they_are_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)
    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
