"""Terminals that are not UTF-8 show a question mark for what they cannot, and end no program."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
from io import BytesIO, TextIOWrapper
from types import SimpleNamespace

import pytest

from skerch import __main__ as program
from skerch.jobs.config import ConfigError, load
from skerch.jobs.launchers import local, prepare
from skerch.jobs.launchers.slurm import task
from skerch.jobs.stages import program as stage


@pytest.fixture
def terminal(monkeypatch):
    """A function that puts a terminal of some encoding in place, and gives what it got."""

    def connect(encoding: str) -> BytesIO:
        screen = BytesIO()
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, TextIOWrapper(screen, encoding, write_through=True))
        return screen

    return connect


def started(main, monkeypatch, *arguments):
    """The exit status of a program with these arguments."""
    mounted = list(program.app.registered_commands)
    monkeypatch.setattr(program.app, "registered_commands", mounted)
    monkeypatch.setattr(sys, "argv", ["program", *arguments])
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


@pytest.mark.parametrize(("encoding", "name"), [("ascii", "λ"), ("koi8-r", "‖"), ("utf-8", "λ")])
def test_a_run_shows_its_table_in_any_encoding(
    encoding, name, terminal, reference, tmp_path, monkeypatch
):
    run = shutil.copytree(reference.run_dir, tmp_path / name)
    screen = terminal(encoding)
    assert started(program.main, monkeypatch, "run", str(run)) == 0
    said = screen.getvalue().decode(encoding)
    assert f"tasks are done in {tmp_path}/{'?' if encoding != 'utf-8' else name}.\n" in said
    assert ("+----" in said) == (encoding != "utf-8")  # no table of question marks


def test_a_probability_is_said_in_any_encoding(terminal, monkeypatch):
    screen = terminal("cp1251")
    arguments = ("post_bounds", "--apost_n", "30", "--apost_err", "0.5")
    assert started(program.main, monkeypatch, *arguments) == 0
    assert b"P(estimate? <= 0.5 true?) <= " in screen.getvalue()


@pytest.mark.parametrize(
    "main", [program.main, prepare.main, lambda: stage.main("measure"), task.main]
)
def test_refusals_are_said_in_any_encoding(main, terminal, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    screen = terminal("koi8-r")
    arguments = {program.main: ["run", "θ"], task.main: ["θ", "train"]}.get(main, ["θ"])
    assert started(main, monkeypatch, *arguments)
    assert screen.getvalue().startswith(b"error: ")
    assert b"?" in screen.getvalue()


def test_a_worker_prints_in_any_encoding(terminal, monkeypatch):
    screen = terminal("ascii")
    parent = SimpleNamespace(sentinel=os.pipe()[0])
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: parent)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(local, "_messenger", None, raising=False)
    local._start_worker(None)
    print("θ")
    assert screen.getvalue() == b"?\n"


def test_a_path_that_is_no_utf_8_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError, match=r"run_dir is .*caf\\udce9.* LC_ALL=C.UTF-8"):
        load("digits")
