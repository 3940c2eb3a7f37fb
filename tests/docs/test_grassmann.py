"""The page on subspaces: its Python runs, on a finished run, and its table is of the program."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from skerch.analysis.grassmann import METRICS
from skerch.analysis.synthetic import random_angles, shared_angles

DOCS = Path(__file__).parents[2] / "docs"


def test_its_python_runs(blocks, reference, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "digits").symlink_to(reference.run_dir)
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for language, text in blocks("grassmann.md"):
        if language == "python":
            exec(text.replace("run[100", "run[20").replace("run[300", "run[60"), namespace)
    last, kept = namespace["last"], namespace["overlap"].value(namespace["kept"])
    assert float(kept) == pytest.approx(float(last.overlap[-1]), rel=1e-6)


def test_its_tables_have_the_metrics_and_what_the_study_finds():
    page = (DOCS / "grassmann.md").read_text(encoding="utf-8")
    for name, metric in METRICS.items():
        assert f"| `{name}` | {metric.formula.replace('-', '−')} " in page
        assert len(re.findall(rf"^\| `{name}` \|", page, re.M)) == 2
    column = {
        "O-O": random_angles("O-O", 400, 20, 50, seed=0),
        "half": shared_angles(400, 40, 20, 50, seed=0),
    }
    for name, *cells in re.findall(r"^\| `(\w+)` \| ([\d.]+) \|.* ([\d.]+) \|$", page, re.M):
        for cell, angles in zip(cells, column.values(), strict=True):
            median = float(METRICS[name].normalized(angles).quantile(0.5))
            assert float(cell) == pytest.approx(median, abs=6e-4)
