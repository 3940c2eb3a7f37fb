"""Generated Markdown goes where it belongs, and nothing else of a document changes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

INSERT = Path(__file__).parents[2] / "docs" / "insert.py"
TEXT = "before\n<!-- a -->\nold\n<!-- /a -->\nbetween\n<!-- b -->\n<!-- /b -->\n"


def insert(path, section, markdown):
    command = [sys.executable, str(INSERT), str(path), section]
    return subprocess.run(command, input=markdown, text=True, capture_output=True)


@pytest.fixture
def document(tmp_path):
    path = tmp_path / "document.md"
    path.write_text(TEXT)
    return path


def test_a_section_is_replaced_each_time(document):
    for markdown in ("other\n", "| new |\n"):
        assert insert(document, "a", markdown).returncode == 0
    assert document.read_text() == TEXT.replace("\nold\n", "\n\n| new |\n\n")


@pytest.mark.parametrize(("section", "markdown"), [("c", "new"), ("a", "\n")])
def test_without_a_place_or_content_nothing_changes(document, section, markdown):
    done = insert(document, section, markdown)
    assert done.returncode == 1
    assert str(document) in done.stderr
    assert document.read_text() == TEXT
