"""The command on random subspaces: its tables, JSON, CSV and figure, and what it refuses."""

from __future__ import annotations

import csv
import json
from io import StringIO

import pytest

from skerch.analysis.grassmann import METRICS

SMALL = ("grassmann", "--dimensions", "20,40", "--ratios", "0.1,0.5", "--draws", "5")


def test_tables_json_csv_and_files_have_the_same_numbers(skerch, tmp_path):
    rows = json.loads(skerch(*SMALL, "--json")[1])
    status, text, _ = skerch(*SMALL, "--csv", "--out", tmp_path / "figures")
    assert status == 0
    assert (tmp_path / "figures" / "grassmann.csv").read_text() == text
    assert (tmp_path / "figures" / "grassmann.png").exists()
    read = [
        {key: "" if value is None else str(value) for key, value in row.items()} for row in rows
    ]
    assert list(csv.DictReader(StringIO(text))) == read
    printed = skerch(*SMALL)[1]
    assert "N = 40, 5 draws, seed 0" in printed
    for name in METRICS:
        assert printed.count(f" {name} ") == 4  # three pairs, and shared directions
    median = next(
        row["median"]
        for row in rows
        if (row["pair"], row["n"], row["k"], row["metric"]) == ("O-O", 40, 4, "overlap")
    )
    line = next(line for line in printed.splitlines() if "O-O" in line and " overlap " in line)
    assert f"{median:.3f}" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--dimensions", "20,x"), "--dimensions 20,x must be whole numbers"),
        (("--ratios", ""), "--ratios  must be numbers"),
        (("--ratios", "1.5"), r"above 0 and at most 1, not [1.5]"),
        (("--dimensions", "20,1000000000"), "N k = 5e+17 numbers, more than 1e+09; take smaller"),
        (("--dimensions", "100001", "--ratios", "0.001"), "N k = 1e+09 numbers"),
        (("--draws", "1"), "2 or more draws, not 1"),
        (("--seed", "-1"), "--seed -1 must be 0 or more"),
        (("--json", "--csv"), "give one of them"),
    ],
)
def test_a_mistake_ends_in_one_sentence(skerch, options, message):
    status, out, error = skerch("grassmann", *options)
    assert status
    assert not out
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_a_folder_that_cannot_be_made_is_refused_in_one_sentence(skerch, tmp_path):
    (tmp_path / "file").write_text("")
    status, _, error = skerch(*SMALL, "--csv", "--out", tmp_path / "file" / "figures")
    assert status == 1
    assert "cannot be written" in error
