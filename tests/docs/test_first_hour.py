"""The page on the first hour: on its files, its local commands print what it shows, in order."""

from __future__ import annotations

import importlib
import re
import runpy
import sys

import pytest
import torch

LOCAL = re.compile(r"check|plan (?!.*cluster=)")  # commands that take no Slurm, and no time
MODULES = ("cnn", "lm")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder, from which modules are imported as a new process would."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    forget()


def forget():
    """Have the page's modules read again, as they may have changed."""
    importlib.invalidate_caches()
    for name in MODULES:
        sys.modules.pop(name, None)


def masked(text):
    """Words without figures, the frames of tables and what timings decide."""
    text = re.sub(r"[\u2500-\u257f]", " ", text)
    text = re.sub(r"\d[\d.,e+-]*", "#", re.sub(r"strategy \w+", "strategy #", text))
    return "".join(" ".join(line.split()) + "\n" for line in text.splitlines())


def pattern(shown):
    """What a page shows, as a regular expression: an ellipsis is the rest of a line, or lines."""
    lines = masked(shown).splitlines(keepends=True)
    return "".join(
        "(.*\n)*" if line == "…\n" else re.escape(line).replace("…", ".*") for line in lines
    )


def test_the_local_commands_print_what_the_page_shows(folder, blocks, skerch):
    ran = []
    for language, text in blocks("first_hour.md"):
        if named := re.match(r"# (\w+\.(?:py|yaml))", text):
            with (folder / named[1]).open("a") as file:
                file.write(text)
        for entry in re.split(r"^\$ ", text, flags=re.M)[1:] if language == "console" else ():
            command, _, shown = entry.partition("\n")
            arguments = command.removeprefix("python -m skerch ")
            forget()
            if command == "python train.py":
                with torch.random.fork_rng():
                    runpy.run_path("train.py")
            elif arguments != command and LOCAL.match(arguments):
                status, out, _ = skerch(*arguments.split())
                assert status == ("unfit" in shown)
                assert re.fullmatch(
                    pattern(shown), masked(out.replace(str(folder), "~/first_hour"))
                )
                ran.append(arguments)
    assert ran == ["check cnn.yaml", "check lm.yaml", "check lm.yaml", "plan own.yaml"]
