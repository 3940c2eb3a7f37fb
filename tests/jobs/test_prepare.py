"""What scripts are told that start the stages by hand."""

from __future__ import annotations

import runpy
import sys

import pytest

from skerch.jobs.run_dir import RunDir


@pytest.fixture
def prepare(monkeypatch, capsys):
    """The program in this process: what it prints."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["prepare", *arguments])
        runpy.run_module("skerch.jobs.launchers.prepare", run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


def test_a_run_directory_is_made_and_its_arrays_are_counted(prepare, small_overrides, tmp_path):
    run = RunDir(tmp_path / 'a "run"')
    lines = prepare("digits", *small_overrides, f"run_dir={run.path}", "name=wide")
    # 20 + 30 columns, then 20, in blocks of 8 and two blocks a task
    assert lines == [str(run.path), "wide", "20 test 4 2", "60 test 4 2"]
    assert run.load("wide").sketch.outer == 20
    assert run.logs.is_dir()


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("sketch.outer=9999", "more than the dimension N=1930"),
        ("sketch.rounds=5", "many small rounds are one task"),
        ("method=trace", "so is a Hessian by another method than seigh"),
    ],
)
def test_what_cannot_be_planned_is_refused(override, reason, prepare, capsys, tmp_path):
    with pytest.raises(SystemExit) as end:
        prepare("digits", override, f"run_dir={tmp_path / 'run'}")
    assert end.value.code == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
