"""The table of results, and the same as JSON and CSV, from files that are already there."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from io import StringIO

import pytest
from matplotlib.figure import Figure

from skerch.analysis.figures import overlap_panel
from skerch.analysis.results import HessianResults
from skerch.estimate import Estimate, extremes
from skerch.jobs.commands import results
from skerch.jobs.commands.seigh.results import lines
from skerch.jobs.run_dir import RunDir, results_file
from skerch.jobs.run_dir.binding import bind
from skerch.jobs.stages.analyze import _title
from skerch.jobs.stages.context import Context


@pytest.fixture
def copy(small, reference):
    """A copy of the finished run, to be changed."""
    config = small()
    shutil.copytree(reference.run_dir, config.run_dir)
    return RunDir(config.run_dir)


def content(run, step):
    return json.loads(run.step("seigh", step, "test").overlap.read_text())


def write(run, step, **changes):
    """Write a step's results anew with changes."""
    path = run.step("seigh", step, "test").overlap
    manifests = content(run, step)["manifests"]
    found = results_file.read(path, HessianResults)
    results_file.write(path, replace(found, **changes), manifests, outer=20)


def test_a_row_has_the_numbers_of_its_file_whatever_its_form(copy, skerch):
    found = content(copy, 60)
    overlap, chance = found["overlap"][-1], found["baseline"][-1]
    largest, least = extremes(found["eigenvalues"], found["eigenvalue_bound"])
    expected = {
        "name": "seigh",
        "step": 60,
        "split": "test",
        "parameters": 1930,
        "k": 20,
        **{f"eigenvalue_{i + 1}": found["eigenvalues"][i] for i in range(3)},
        **{f"eigenvalue_{i + 1}_bound": found["eigenvalue_bound"][i] for i in range(3)},
        "eigenvalue_max": largest.value,
        "eigenvalue_max_bound": largest.error,
        "eigenvalue_min": least.value,
        "eigenvalue_min_bound": least.error,
        "negative": sum(value < 0 for value in found["eigenvalues"]),
        "block_diagonal": sum(block for *_, block in found["modules"]),
        "trace": found["trace"][0],
        "trace_error": found["trace"][1],
        "norm": found["norm"][0],
        "norm_error": found["norm"][1],
        "relative_residual": found["residual"][-1] / found["residual"][0],
        "overlap": overlap,
        "overlap_error": found["overlap_error"][-1],
        "chance": chance,
        "sigmas_from_chance": (overlap - chance) / found["deviation"][-1],
        "tied_in_mask": None,
        "tied_in_all": None,
        "matvecs": 40,
        "target_reached": None,
    }
    assert json.loads(skerch("results", copy.path, "--json")[1])[1] == expected
    row = list(csv.DictReader(StringIO(skerch("results", copy.path, "--csv")[1])))[1]
    assert row == {key: "" if value is None else str(value) for key, value in expected.items()}
    status, table, _ = skerch("results", copy.path)
    assert status == 0
    assert f"{overlap / chance:.2f} × k/N, {expected['sigmas_from_chance']:+.1f} σ" in table
    assert f"{expected['negative']} of 20" in table
    assert "\nblocks   the modules' diagonal blocks hold" in table
    assert str(Estimate(*found["trace"])) in table


def test_what_is_missing_is_said_and_the_rest_is_shown(copy, skerch):
    copy.step("seigh", 20, "test").overlap.unlink()
    status, table, _ = skerch("results", copy.path)
    assert status == 0
    see = "see: python -m skerch status runs/digits"
    assert f"missing  1 of 2 Hessians: step 20 test; {see}" in table
    rows = [line for line in table.splitlines() if "test" in line and "σ" in line]
    assert len(rows) == 1
    assert " 60 " in rows[0]
    first, second = json.loads(skerch("results", copy.path, "--json")[1])
    assert (first["step"], first["overlap"], second["k"]) == (20, None, 20)


def test_every_method_is_shown_or_the_one_that_is_asked_for(copy, small, skerch):
    bind(copy, small("name=narrow", "sketch.outer=7"))
    both = skerch("results", copy.path)[1]
    assert "narrow: 7 eigenpairs from 40" in both
    assert "missing  2 of 2 Hessians: step 20 test, step 60 test" in both
    assert "seigh: 20 eigenpairs from 40" in both
    one = json.loads(skerch("results", copy.path, "--name", "seigh", "--json")[1])
    assert [(row["name"], row["step"]) for row in one] == [("seigh", 20), ("seigh", 60)]
    assert "there is narrow, seigh" in skerch("results", copy.path, "--name", "wide")[2]


def test_two_forms_at_once_are_refused(reference, skerch):
    status, _, error = skerch("results", reference.run_dir, "--json", "--csv")
    assert status == 2
    assert "give one" in error


def test_a_hessian_with_fewer_eigenpairs_than_its_title_says_is_named(reference):
    run = RunDir(reference.run_dir)
    more = replace(reference, sketch=replace(reference.sketch, outer=21))
    told = [*lines(run, more, results.found(run, reference))]
    assert "fewer    step 60 test: 20 of 21 eigenpairs" in told
    assert not [
        line for line in lines(run, reference, results.found(run, reference)) if "fewer" in line
    ]


def test_a_damaged_file_is_no_result(copy, skerch):
    path = copy.step("seigh", 20, "test").overlap
    path.write_text(path.read_text().replace("1930", "1931"))
    status, _, error = skerch("results", copy.path)
    assert status == 1
    assert "overlap.json is damaged" in error


def test_a_mask_that_is_one_of_several_is_said_to_be_one(copy, skerch):
    write(copy, 20, ties=[[*range(1, 21)], [160] * 20])
    table = skerch("results", copy.path)[1]
    assert "ties     step 20: 20 of the mask's 20 parameters are any of 160" in table
    assert "step 60:" not in table
    row, other = json.loads(skerch("results", copy.path, "--json")[1])
    assert (row["tied_in_mask"], row["tied_in_all"]) == (20, 160)
    assert other["tied_in_mask"] is None


def test_overlap_of_an_older_version_is_read(copy, skerch):
    path = copy.step("seigh", 60, "test").overlap
    old = content(copy, 60)
    lacking = ("hash", "grid", "quantiles", "ties", "trace", "norm", "overlap_error")
    old = {key: value for key, value in old.items() if key not in lacking}
    old["random"] = [[0.01] * 20] * 5
    path.write_text(json.dumps(old | {"hash": results_file._hash(old)}))
    found = results_file.read(path, HessianResults)
    assert found.overlap == old["overlap"]
    overlap_panel(Figure().subplots(), found)
    assert skerch("results", copy.path)[0] == 0
    row = json.loads(skerch("results", copy.path, "--json")[1])[1]
    assert (row["trace"], row["norm_error"], row["overlap_error"]) == (None, None, None)


def test_where_chance_leaves_no_choice_there_is_no_distance_from_it(copy, skerch):
    for step in (20, 60):
        write(copy, step, deviation=[0.0] * 20)
    assert json.loads(skerch("results", copy.path, "--json")[1])[1]["sigmas_from_chance"] is None
    assert "σ" not in skerch("results", copy.path)[1]


def test_a_name_that_is_wider_than_the_table_is_not_cut(small, capsys):
    name = "a-sketch-" * 11
    results.print_table(small(f"name={name}"))
    assert f"{name}: 20 eigenpairs from 40 matvecs, 30 probes\n" in capsys.readouterr().out


def test_results_are_printed_without_torch(reference):
    program = (
        "import sys; from skerch.__main__ import main\n"
        f"sys.argv = ['skerch', 'results', {reference.run_dir!r}]\n"
        "try: main()\n"
        "finally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "20 eigenpairs from 40" in done.stdout


def test_a_figures_title_says_which_hessian_it_is_and_what_was_spent(copy, reference):
    found = results_file.read(copy.step("seigh", 60, "test").overlap, HessianResults)
    assert _title(Context(copy, reference, "seigh", 60, "test"), found) == (
        "digits_mlp, step 60, test split\nseigh: 20 eigenpairs of N = 1,930 from 40 matvecs"
        f"\n{found.negative} of 20 negative; trace {Estimate(*found.trace)}; "
        f"‖H‖ {Estimate(*found.norm)}"
    )


def test_before_a_task_has_ended_there_are_no_times(small, skerch):
    config = small()
    bind(RunDir(config.run_dir), config)
    assert "seconds" not in skerch("results", config.run_dir)[1]
