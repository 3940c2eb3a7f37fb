"""The page on notebooks: what it shows runs, in order, on a finished run."""

from __future__ import annotations

import matplotlib as mpl
import pytest


@pytest.fixture
def runs(tmp_path, monkeypatch, reference):
    """A folder with the run that the page speaks of, as far as it can be told from that one."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "digits").symlink_to(reference.run_dir)
    monkeypatch.chdir(tmp_path)
    mpl.use("agg")
    yield tmp_path
    mpl.pyplot.close("all")


def test_the_pages_blocks_run_one_after_the_other(runs, blocks, capsys):
    blocks = [block for language, block in blocks("notebook.md") if language == "python"]
    namespace = {}
    for block in blocks:
        exec(block.replace("300", "60"), namespace)
    assert len(blocks) == 5
    assert "20 eigenpairs from 40 matvecs" in capsys.readouterr().out
    assert (runs / "overlap.png").read_bytes().startswith(b"\x89PNG")
