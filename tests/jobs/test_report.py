"""The report: what its page says, and what a browser without a network makes of it."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from skerch.analysis.report.charts import charts_of, in_common
from skerch.analysis.results import HessianResults, StabilisationResults
from skerch.jobs.commands.report import write_report
from skerch.jobs.run_dir import RunDir, results_file


@pytest.fixture(scope="module")
def page(reference):
    """The report of the small run."""
    return write_report([RunDir(reference.run_dir)])


@pytest.fixture(scope="module")
def chromium(needs):
    """A real browser without a window."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    needs(program, "a browser: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, page):
    """`opened(**options)` is the page in a browser without a network, and what went wrong there."""
    contexts = []

    def open_page(path=page, **options):
        context = chromium.new_context(offline=True, **options)
        contexts.append(context)
        tab, wrong = context.new_page(), []
        tab.on("console", lambda message: wrong.append(message.text))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("request", lambda request: wrong.append(request.url))
        tab.goto(path.as_uri())
        wrong.remove(path.as_uri())
        return tab, wrong

    yield open_page
    for context in contexts:
        context.close()


def test_it_is_one_small_file_that_names_nothing_elsewhere(page):
    text = page.read_text(encoding="utf-8")
    assert len(text) < 300_000
    assert not re.search(r"""(src|href)=["']?(https?:)?//|@import|url\(""", text)
    assert "default-src 'none'" in text


def test_its_numbers_are_those_of_the_results(page, reference):
    (found,) = json.loads(_results(reference, 60))
    chart = "seigh-step-000060-test-eigenvalues.csv"
    rows = list(csv.DictReader(io.StringIO((page.parent / "figures" / chart).read_text())))
    magnitudes = [float(row["positive"] or row["negative"]) for row in rows]
    assert magnitudes == pytest.approx([abs(value) for value in found], rel=1e-5)
    signs = [1 if row["positive"] else -1 for row in rows]
    assert signs == [1 if value > 0 else -1 for value in found]


def _results(config, step):
    path = RunDir(config.run_dir).step("seigh", step, "test").overlap
    return json.dumps([json.loads(path.read_text())["eigenvalues"]])


def test_a_browser_draws_every_chart_and_asks_for_nothing(opened):
    tab, wrong = opened()
    tab.locator(".menu select").nth(0).select_option("all")
    drawn = tab.locator("figure > svg")
    assert drawn.count() == tab.locator("figure").count() > 10
    for box in [each.bounding_box() for each in drawn.all()]:
        assert box["width"] > 200
        assert box["height"] > 100
    assert not wrong


def test_what_the_page_may_not_is_refused_by_the_browser(opened):
    tab, _ = opened()
    refused = (
        """async () => { try { await fetch('data:,x'); return false } catch { return true } }"""
    )
    assert tab.evaluate(refused)


def test_the_menu_shows_one_hessian_at_a_time(opened):
    tab, _ = opened()
    assert tab.locator(".choice:visible h3").all_inner_texts() == ["Step 60, test split"]
    tab.get_by_label("step").select_option("20")
    assert tab.locator(".choice:visible h3").all_inner_texts() == ["Step 20, test split"]


def test_keys_read_values_and_zoom(opened):
    tab, _ = opened()
    figure = tab.locator(".choice:visible figure", has_text="Residual by rank")
    svg, plot = figure.locator("> svg"), figure.locator(".plot")
    rows = list(csv.DictReader(io.StringIO(figure.locator(".csv").text_content())))
    whole = plot.get_attribute("viewBox")
    svg.focus()
    for _ in range(3):
        tab.keyboard.press("ArrowRight")
    said = dict(line.split(": ", 1) for line in tab.locator(".tip").inner_text().splitlines())
    assert said["rank"] == "2"
    assert said["sketched, estimate"] == rows[2]["sketched, estimate"]
    tab.keyboard.press("+")
    assert plot.get_attribute("viewBox") != whole
    tab.keyboard.press("0")
    assert plot.get_attribute("viewBox").split() == whole.split()


def test_pairs_of_a_heatmap_are_told_at_the_pointer_and_at_the_keys(opened):
    tab, wrong = opened()
    figure = tab.locator("figure", has_text="Overlap of top eigenspaces").first
    rows = list(csv.reader(io.StringIO(figure.locator(".csv").text_content())))
    svg = figure.locator(".heatmap")
    svg.scroll_into_view_if_needed()
    box = svg.bounding_box()
    per = box["width"] / 382
    tab.mouse.move(box["x"] + (78 + 225) * per, box["y"] + (78 + 75) * per)
    pointed = tab.locator(".tip").inner_text()
    assert pointed.startswith(f"20 test, 60 test: {rows[1][2]}")
    svg.focus()
    tab.mouse.move(0, 0)
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    assert tab.locator(".tip").inner_text() == pointed
    assert not wrong


def test_dragging_zooms_to_what_was_dragged_over(opened):
    tab, wrong = opened(viewport={"width": 1200, "height": 900})
    svg = tab.locator(".choice:visible figure > svg").nth(1)
    svg.scroll_into_view_if_needed()
    box = svg.bounding_box()
    left, right = (box["x"] + box["width"] * (58 + 350 * share) / 420 for share in (0.5, 0.9))
    tab.mouse.move(left, box["y"] + 60)
    tab.mouse.down()
    tab.mouse.move(right, box["y"] + 80, steps=4)
    tab.mouse.up()
    start, _, width, _ = map(float, svg.locator(".plot").get_attribute("viewBox").split())
    assert start == pytest.approx(175, abs=3)
    assert width == pytest.approx(140, abs=5)
    ticks = [float(text) for text in svg.locator("text.x").all_text_contents()]
    assert 9 < min(ticks) < max(ticks) < 19
    tab.mouse.dblclick(left, box["y"] + 60)
    assert svg.locator(".plot").get_attribute("viewBox").startswith("0 0 350")
    assert not wrong


def test_a_heatmap_tells_how_far_it_may_be_off():
    errors = [[0.0, 0.02, None], [0.02, 0.0, 0.3], [None, 0.3, 0.0]]
    both = [[[1.0] * 3] * 3] * 2
    found = StabilisationResults(
        parameters=100,
        hessians=[(0, "a"), (0, "b"), (1, "a")],
        steps=[0, 1],
        ks=[5, 9],
        pairs=9,
        eigenspaces=both,
        eigenspace_errors=[errors, [[None] * 3] * 3],
        masks=[[[1.0] * 2] * 2] * 2,
    )
    first, second, *_ = in_common(found)
    assert "Off by at most 0.3. 1 of 3 pairs have no error bar" in first.words
    assert "as eigenvalues 5 and 6 of one" in first.words
    assert "at most" not in second.words
    assert "3 of 3 pairs have no error bar" in second.words


def test_the_overlap_with_masks_of_files_is_told(reference):
    path = RunDir(reference.run_dir).step("seigh", 60, "test").overlap
    found = results_file.read(path, HessianResults)
    half = found.parameters // 2
    few = replace(
        found,
        other_masks=[*found.other_masks, "pruned"],
        others=[*found.others, [0.25] * len(found.grid)],
        other_sizes=[*found.other_sizes, half],
    )
    *_, chart = charts_of(few)
    chance = 0.25 / (half / found.parameters)
    assert f"With pruned, {half} parameters, 0.25, {chance:.2f} × chance." in chart.words


def test_it_reads_without_scripts(opened):
    tab, _ = opened(java_script_enabled=False)
    assert tab.locator(".choice:visible").count() == 2
    assert not tab.locator(".menu").is_visible()


def test_it_fits_a_phone(opened):
    tab, _ = opened(viewport={"width": 360, "height": 740})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize(("scheme", "light"), [("light", True), ("dark", False)])
def test_it_has_the_readers_colours(opened, scheme, light):
    tab, _ = opened(color_scheme=scheme)
    colour = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", colour)[:3])) > 380) is light


def test_print_has_every_chart_in_light_colours(opened):
    tab, _ = opened(color_scheme="dark")
    tab.emulate_media(media="print")
    assert tab.locator("figure > svg:visible").count() == tab.locator("figure").count()
    colour = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colour == "rgb(255, 255, 255)"
    assert tab.pdf(format="A4").count(b"/Type /Page\n") > 2


def test_nothing_is_cut_off_in_print(opened):
    tab, _ = opened(viewport={"width": 400, "height": 900})  # narrower than any paper
    wide = "[...document.querySelectorAll('.scroll, pre:not(.csv)')].filter(e =>"
    wide += " getComputedStyle(e).overflowX != 'visible' && e.scrollWidth > e.clientWidth).length"
    assert tab.evaluate(wide) > 0  # they scroll on a screen …
    tab.emulate_media(media="print")
    assert tab.evaluate(wide) == 0  # … and paper does not


def test_runs_are_side_by_side_and_a_partial_one_says_what_it_lacks(
    skerch, opened, reference, tmp_path
):
    partial = tmp_path / "partial"
    shutil.copytree(reference.run_dir, partial)
    for name in ("overlap.json", "eigh.h5"):
        (partial / "seigh" / "step-000060-test" / name).unlink()
    out = tmp_path / "both.html"
    status, said, _ = skerch("report", reference.run_dir, partial, "--out", out)
    assert (status, Path(said.strip())) == (0, out)
    tab, wrong = opened(out)
    assert tab.locator("#results .column").count() == 2
    assert "partial: 20 eigenpairs" in tab.locator("header").inner_text()
    assert "1 of 2 Hessians" in tab.locator("header").inner_text()
    links = tab.locator("figure a[href]").evaluate_all(
        "all => all.map(a => a.getAttribute('href'))"
    )
    files = [link for link in links if not link.startswith("data:")]
    assert files
    assert all((out.parent / file).is_file() for file in files)
    assert not wrong


@pytest.mark.parametrize(
    "name", ["hessian_config.yaml", "step-000060-test/overlap.json", "step-000020-test/eigh.h5"]
)
def test_a_damaged_run_is_named_and_left_out_of_the_page_of_others(
    skerch, reference, tmp_path, name
):
    damaged, out = tmp_path / "damaged", tmp_path / "page.html"
    shutil.copytree(reference.run_dir, damaged)
    (damaged / "seigh" / "stabilisation.json").unlink(missing_ok=True)
    (damaged / "seigh" / name).write_bytes(b"{}")
    status, _, said = skerch("report", damaged, reference.run_dir, "--out", out)
    assert status == 1
    assert said.count("\n") == 1
    assert f"{out} is written. damaged is left out: " in said
    assert str(damaged / "seigh" / name) in said
    page = out.read_text(encoding="utf-8")
    assert "damaged is left out: " in page
    assert "Loss" in page
    assert all(
        path.name.startswith(Path(reference.run_dir).name.lower())
        for path in (tmp_path / "page_files").iterdir()
    )
    status, page, said = skerch("report", damaged)
    assert (bool(status), page, "left out" in said) == (True, "", False)


def test_a_run_that_is_not_there_is_a_sentence(skerch, tmp_path):
    status, _, said = skerch("report", tmp_path / "nowhere")
    assert status == 2
    assert "is no run directory" in said


def test_runs_whose_names_are_one_file_name_have_files_of_their_own(reference, tmp_path):
    runs = [tmp_path / name for name in ("lr=1", "lr 1", "LR-1")]
    for run in runs:
        shutil.copytree(reference.run_dir, run)
    out = write_report([RunDir(run) for run in runs], tmp_path / "page.html")
    links = re.findall(r'<a href="(page_files[^"]*)"', out.read_text(encoding="utf-8"))
    assert links
    assert len(set(links)) == len(links)
    assert all((tmp_path / link).is_file() for link in links)


def test_lines_of_a_training_log_that_are_damaged_are_left_out_and_named(reference, tmp_path):
    run = RunDir(shutil.copytree(reference.run_dir, tmp_path / "run"))
    odd = [b"\xff\xfe", b"[1]", b"7", b"{}", b'{"step": "x"}', b'{"step": 1e999}']
    odd += [b'{"step": 3, "train": 4}', b'{"step": 3, "train": {"loss": "low"}}']
    whole = run.log.read_bytes()
    last = len(odd) + whole.count(b"\n") + 1
    run.log.write_bytes(b"\n".join(odd) + b"\n" + whole + b'{"step": ')
    page = write_report([run]).read_text(encoding="utf-8")
    assert "Loss" in page
    assert f"{run.log}: lines 1-{len(odd)},{last} left out" in page


def test_no_shade_of_an_overlap_reaches_out_of_its_range(reference):
    path = RunDir(reference.run_dir).step("seigh", 60, "test").overlap
    found = results_file.read(path, HessianResults)
    unsure = [None, *[2.0] * (len(found.overlap) - 1)]
    *_, chart = charts_of(replace(found, overlap_error=unsure))
    *_, line = chart.series
    assert (list(line.low)[:2], list(line.high)[:2]) == ([None, 0.0], [None, 1.0])
