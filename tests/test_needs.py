"""What a machine lacks is said in one line, and is a failure in CI; so is a test that vanishes."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = "pytester"

TESTS = """
import pytest

@pytest.mark.parametrize("number", [1, 2])
def test_boat(needs, number):
    needs(False, "a boat: ask the harbour")

def test_sail(needs):
    needs(False, "sails: sew them")

@pytest.mark.slurm
def test_land(needs):
    needs(True, "land: swim")
"""


@pytest.fixture
def run(pytester, monkeypatch):
    """A function that runs the tests above with some options, in CI or not."""
    pytester.makeconftest(Path(__file__).with_name("conftest.py").read_text())
    pytester.makepyfile(TESTS)

    def run_with(*options, ci="false"):
        monkeypatch.setenv("CI", ci)
        return pytester.runpytest("-W", "ignore", "-p", "no:cacheprovider", *options)

    return run_with


def test_one_line_says_what_was_not_tested_and_how_to_have_it(run):
    done = run()
    done.assert_outcomes(passed=1, skipped=3)
    line = "not tested: a boat (2 tests), sails (1 test); to have it: ask the harbour, sew them"
    assert done.outlines.count(line) == 1


def test_where_nothing_is_missing_nothing_is_said(run):
    done = run("-k", "land")
    done.assert_outcomes(passed=1, deselected=3)
    assert "not tested" not in done.stdout.str()


def test_what_is_missing_fails_in_ci(run):
    done = run(ci="true")
    done.assert_outcomes(passed=1, failed=3)
    assert "needs sails: sew them" in done.stdout.str()


@pytest.mark.parametrize(("least", "status"), [("slurm=1", 0), ("slurm=2", 1), ("mpi=1", 1)])
def test_fewer_tests_of_a_marker_than_asked_for_fail(run, least, status):
    assert run("-k", "land", "--least", least).ret == status
