"""A table is found by its name, and its figures are held to their targets."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.harness import ROOT, Figure, Options, apart, in_turns, over, run, tables

OPTIONS = Options(quick=True, root=Path("nowhere"))


def test_every_table_has_its_place_in_a_document_and_its_target_in_the_makefile():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for name, module in tables().items():
        document = (ROOT / module.BENCHMARK.document).read_text(encoding="utf-8")
        assert document.count(f"<!-- {name} -->") == 1, name
        assert f"-m benchmarks --make {module.BENCHMARK.make}" in makefile


@pytest.mark.parametrize(
    ("bound", "value", "status", "met"),
    [("≤", 2.0, 0, "yes"), ("≤", 2.1, 1, "**no**"), ("≥", 2.1, 0, "yes"), ("≥", 1.9, 1, "**no**"),
     ("≤", float("nan"), 1, "**no**")],
)  # fmt: skip
def test_a_figure_that_falls_short_is_the_exit_status(capsys, bound, value, status, met):
    def measure(options):
        yield Figure("speed", value, bound, 2, "x")
        yield "**Words**"

    assert run(SimpleNamespace(measure=measure), OPTIONS) == status
    words, figures = capsys.readouterr().out.split("\n\n")[:2]
    assert words == "**Words**"
    assert figures.splitlines()[0] == "| figure | measured | target | met |"
    assert figures.splitlines()[2].endswith(f"x | {bound} 2x | {met} |")


def test_a_figure_that_cannot_be_had_is_another_status_and_the_others_are_told(capsys):
    def measure(options):
        yield Figure("speed", 1.0, "≤", 2)
        raise ZeroDivisionError

    assert run(SimpleNamespace(measure=measure), OPTIONS) == 2
    assert "| speed | 1.00 | ≤ 2 | yes |" in capsys.readouterr().out


def test_turns_go_forth_and_back_and_the_first_is_for_warmth():
    order = []
    works = {name: lambda name=name: order.append(name) or len(order) for name in "ab"}
    found = in_turns(works, 2)
    assert "".join(order) == "abbaab"
    assert found == {"a": [4, 5], "b": [3, 6]}
    assert over(found["a"], found["b"]) == (4 / 3 + 5 / 6) / 2
    assert in_turns(works, 9, budget=0.0).keys() == {"a", "b"}


def test_what_is_done_apart_has_a_process_of_its_own():
    import os

    assert apart(os.getpid) != os.getpid()
    with pytest.raises(Exception, match="exit status 1"):
        apart(os.kill, 0, "no signal")
