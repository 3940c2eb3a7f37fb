"""Experiments: what is accepted, what is refused in which words, and what identifies them."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from skerch.jobs import config as configs
from skerch.jobs.config import Config, ConfigError


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """A minimal experiment file in a folder, with another folder as the current one."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    path = tmp_path / "elsewhere" / "small.yaml"
    path.parent.mkdir()
    path.write_text("problem: {name: digits_mlp}\n")
    return path


def test_only_the_problem_is_required(experiment, tmp_path):
    config = configs.load(experiment)
    assert config.run_dir == str(tmp_path / "here" / "runs" / "small")
    assert config.training.record_steps == [0, 300]
    assert config.sketch.inner == 2 * config.sketch.outer


def test_overrides_are_yaml_and_win(experiment, tmp_path):
    config = configs.load(
        experiment,
        ["training.record_steps=[0,20]", "training.lr=1e-3", "training.lr=1",
         "problem.root=../data", "hessian.param_filter=*.weight",
         "training.optimizer_options={momentum: 0.9}"],
    )  # fmt: skip
    assert config.training.record_steps == [0, 20]
    assert config.training.lr == 1.0
    assert config.training.optimizer_options == {"momentum": 0.9}
    assert config.problem["root"] == str(tmp_path / "data")
    assert config.hessian.param_filter == ["*.weight"]


@pytest.mark.parametrize(
    ("value", "patterns"),
    [
        ("!*.bias", ["!*.bias"]),
        ("!head.[!0]*", ["!head.[!0]*"]),
        ("[*.weight,!head.*]", ["*.weight", "!head.*"]),
        ("[ !1.* , *.c[12] ]", ["!1.*", "*.c[12]"]),
        ("['!*.bias', \"*\"]", ["!*.bias", "*"]),
    ],
)
def test_globs_of_overrides_need_no_quotes(value, patterns, experiment):
    found = configs.load(experiment, [f"hessian.param_filter={value}"]).hessian.param_filter
    assert found == patterns


@pytest.mark.parametrize("pattern", ["*.bias", "!*.bias"])
def test_globs_of_a_file_need_quotes(pattern, experiment):
    Path("globs.yaml").write_text(f"problem: {{name: a}}\nhessian:\n  param_filter: {pattern}\n")
    with pytest.raises(ConfigError, match=r"globs.yaml .* Quote what begins with \* or !"):
        configs.load("globs.yaml")


@pytest.mark.parametrize("name", ["digits", "digits.yaml", "config/experiment/digits.yaml"])
def test_packaged_experiments_are_found_by_name(name, experiment):
    assert configs.load(name).problem == {"name": "digits_mlp"}


def test_a_mistyped_path_is_no_packaged_experiment(experiment):
    with pytest.raises(ConfigError, match=r"no experiment file my/digits.yaml .*digits"):
        configs.load("my/digits.yaml")


def test_importing_it_does_not_import_torch():
    code = "import sys; from skerch.jobs import config, run_dir; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.batchsize=1", r"training\.batchsize; did you mean training\.batch_size\?"),
        ("trainin.lr=1", r"trainin; did you mean training\?"),
        ("outer=5", r"outer; did you mean sketch\.outer\?"),
        ("trace.tol=2", r"trace\.tol is 2.0; it must lie between"),
        ("training.lr=fast", r"training\.lr expects a number, not 'fast'"),
        ("training.seed='5'", r"training\.seed expects a whole number, not '5'"),
        ("keep_blocks=1", r"keep_blocks expects true or false, not 1"),
        ("training.lr=.nan", r"training\.lr is nan; .*above 0"),
        ("training.seed=-1", r"training\.seed is -1; .*between 0"),
        ("training.record_steps=3", r"training\.record_steps expects a list .*whole number"),
        ("training.record_steps={a: 1}", r"training\.record_steps expects a list"),
        ("training.record_steps=[0,301]", r"between 0 and training\.max_steps=300"),
        ("training.record_steps=[9,0,9]", r"ascending order: \[0, 9\]"),
        ("training=5", r"training expects a mapping, not 5"),
        ("sketch.recovery=nystroem", r"sketch\.recovery is 'nystroem'; .* nystrom, oversampled"),
        ("sketch={recovery: oversampled, rounds: 2}", r"set rounds to 1"),
        ("sketch.inner=50", r"outer=100 .*inner=50"),
        ("sketch.probes=1", r"sketch\.probes is 1; .*between 2"),
        ("sketch.outer=0", r"sketch\.outer is 0; .*between 1"),
        ("hessian.splits=[]", r"hessian\.splits is \[\]"),
        ("hessian.splits=[test,test]", r"each once"),
        ("hessian.splits=[../up]", r"hessian\.splits has '\.\./up'"),
        ("name=../up", r"name is '\.\./up'"),
        ("name=training", r"name is 'training', which every run"),
        ("problem.factory=a:b", r"either name or factory"),
        ("problem.name=digit_mlp", r"digit_mlp; did you mean digits_mlp\?"),
        ("problem.x=!!binary aGk=", r"problem holds what cannot be stored as JSON"),
        ("launcher.device=gpu", r"launcher\.device is 'gpu'"),
        ("training.checkpoints=ckpt_*.pt", r"no file matches 'ckpt_\*\.pt' in .* or in [^(]*$"),
        ("training.checkpoints=ckpt_{steps}.pt", r"no file .* \({step} alone stands for digits\)"),
        ("sketch.seed=${nowhere}", r"nowhere"),
        ("training.lr", r"form key\.path=value"),
        ("training.lr=[", r"'training\.lr=\[' is not valid YAML"),
    ],
)
def test_a_bad_value_is_one_sentence_that_names_its_key(override, words, experiment):
    with pytest.raises(ConfigError, match=words) as caught:
        configs.load(experiment, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "3", "'!!binary YQ=='", "just words", "- 1",
             "problem: {name: digits_mlp}\nproblem: {}", "a: ${", "\0",
             "problem: !!python/object/apply:os.getcwd []", "problem:\n\t- x",
             "problem: 0b_", "problem: &a {x: [*a]}", f"problem: {{x: {'[' * 600}{']' * 600}}}"],
)  # fmt: skip
def test_what_is_no_experiment_is_refused(text, experiment):
    experiment.write_text(text)
    with pytest.raises(ConfigError) as caught:
        configs.load(experiment)
    assert len(str(caught.value)) < 600


def test_what_is_no_text_is_refused(experiment):
    experiment.write_bytes(b"\xff\xfe\x00problem")
    with pytest.raises(ConfigError, match="UTF-8"):
        configs.load(experiment)


def test_checkpoints_give_the_recorded_steps(experiment):
    for step in (0, 50, 300):
        (experiment.parent / f"v_ckpt_{step}.pt").touch()

    def load(*more: str) -> Config:
        return configs.load(experiment, ["training.checkpoints=*ckpt_*.pt", *more])

    assert load().training.record_steps == [0, 50, 300]
    assert load().training.checkpoints == str(experiment.parent / "*ckpt_*.pt")
    assert load("training.record_steps=[50]").training.record_steps == [50]
    with pytest.raises(ConfigError, match=r"asks for \[60\], .*\[0, 50, 300\]"):
        load("training.record_steps=[50,60]")
    (experiment.parent / "copy_ckpt_50.pt").touch()
    with pytest.raises(ConfigError, match="both have step 50"):
        load()


def test_a_saved_config_comes_back_and_can_be_run_again(experiment, tmp_path, monkeypatch):
    experiment.write_text("problem: {factory: 'mine:make', depth: 1e-3, text: '1e-3'}\nname: '1e3'")
    config = configs.load(experiment)
    assert config.problem_path == str(experiment.parent)
    saved = tmp_path / "run" / "config.yaml"
    configs.save(config, saved)
    monkeypatch.chdir(tmp_path)
    assert configs.load_resolved(saved) == config
    assert configs.load(saved) == replace(config, run_dir=str(saved.parent))


def test_a_changed_byte_of_a_saved_config_is_refused(experiment, tmp_path):
    saved = tmp_path / "config.yaml"
    configs.save(configs.load(experiment), saved)
    content = saved.read_bytes()
    for position in range(0, len(content), 5):
        saved.write_bytes(
            content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]
        )
        with pytest.raises(ConfigError, match=r"config\.yaml"):
            configs.load_resolved(saved)


def test_what_was_written_before_a_key_was_there_counts_as_having_its_default():
    config = configs.load("digits")
    before = configs.identity(config, "method")
    del before["hessian"]["memory_format"]
    assert configs.difference(before, configs.identity(config, "method")) == []
    other = configs.load("digits", ["hessian.memory_format=channels_last"])
    assert configs.difference(before, configs.identity(other, "method")) == [
        "hessian.memory_format: auto -> channels_last"
    ]


def test_differences_are_lines_of_leaves():
    old = {"sketch": {"seed": 1, "kind": "a"}, "gone": [1]}
    new = {"sketch": {"seed": 2, "kind": "a"}, "more": None}
    assert configs.difference(old, new) == [
        "sketch.seed: 1 -> 2",
        "gone: [1] -> (not set)",
        "more: (not set) -> None",
    ]


def test_a_path_that_yaml_would_take_for_a_reference_is_refused(experiment, tmp_path):
    saved = tmp_path / "run ${x}" / "config.yaml"
    configs.save(configs.load(experiment), saved)
    with pytest.raises(ConfigError, match=r"run_dir has \$\{ in it"):
        configs.load(saved)
