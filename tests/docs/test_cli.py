"""The page on the command line names every command, and no other."""

import re
from pathlib import Path

from typer import Typer

from skerch.jobs.commands.mount import mount


def test_the_page_names_every_command():
    app = Typer()
    mount(app)
    commands = {command.name for command in app.registered_commands}
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)", row)}
    others = {"create_hdf5_layout", "merge_hdf5", "prio_hpars", "post_bounds"}
    assert named == commands | others
