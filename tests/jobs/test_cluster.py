"""What stages ask of a cluster, by file and override; each value that cannot be is named."""

from __future__ import annotations

import pytest

from skerch.jobs.config.resources import Resources, resources
from skerch.jobs.config.stages import STAGES
from skerch.jobs.errors import ConfigError


@pytest.fixture
def asked(small, tmp_path):
    """A function: what each stage asks for by a cluster file's text and overrides."""

    def ask(text="", *overrides):
        path = tmp_path / "cluster.yaml"
        path.write_text(text or "{}")
        return resources(small(f"cluster={path}", *overrides))

    return ask


def test_without_a_cluster_nothing_is_asked(small):
    assert resources(small()) == dict.fromkeys(STAGES, Resources(grace=90))


def test_clusters_that_come_with_skerch_can_be_read(small):
    assert resources(small("cluster=devcluster"))["measure"].throttle == 4
    gpu = resources(small("cluster=gpu"))
    assert (gpu["measure"].gpus, gpu["merge"].gpus, gpu["merge"].memory) == (1, None, 32 * 1024)
    assert gpu["train"].setup == ("module load cuda",)


def test_a_stage_is_over_all_and_the_command_line_over_the_file(asked):
    file = "all: {cpus: 1, time: 1h, account: a}\nmerge: {cpus: 2, time: 2h}"
    found = asked(file, "resources.all.cpus=3", "resources.merge.time=3h")
    assert (found["merge"].cpus, found["merge"].time, found["merge"].account) == (3, "180", "a")
    assert (found["train"].cpus, found["train"].time) == (3, "60")


def test_a_null_takes_a_key_back(asked):
    found = asked(
        "all: {partition: p, gpus: 1}\nmerge: {gpus: null}", "resources.all.partition=null"
    )
    assert (found["merge"].partition, found["merge"].gpus) == (None, None)
    assert found["train"].gpus == 1


def test_a_layout_asks_for_what_its_workers_do(asked):
    found = asked("measure: {gpus: 1, time: 2h}\nlayout: {time: 5min}")
    assert (found["layout"].gpus, found["layout"].time) == (1, "5")


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("90min", "90"),
        ("1.5h", "90"),
        ("2d", "2880"),
        ("1-12:30", "1-12:30"),
        ("1:30:00", "1:30:00"),
    ],
)
def test_times_have_a_unit_or_are_as_slurm_has_them(asked, text, time):
    assert asked(f"all: {{time: {text}}}")["train"].time == time


@pytest.mark.parametrize(
    ("text", "memory"),
    [("500M", 500), ("16G", 16384), ("1.5GB", 1536), ("2GiB", 2048), ("1T", 2**20)],
)
def test_memory_has_a_unit(asked, text, memory):
    assert asked(f"all: {{memory: {text}}}")["train"].memory == memory


def test_memory_is_escalated_up_to_eight_times_by_default(asked):
    assert asked("all: {memory: 1G}")["train"].most_memory == 8192
    assert asked("all: {memory: 1G, memory_limit: 3G}")["train"].most_memory == 3072
    assert asked()["train"].most_memory is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("merg: {}", ": There is no stage merg; did you mean merge?"),
        ("all: {memroy: 1G}", ".all.memroy; did you mean "),
        ("all: 1h", ".all expects a mapping, as in all: {time: 60min}, not '1h'"),
        ("all: {cpus: 0}", ".all.cpus is '0'; it must be a whole number from 1 to 1024"),
        ("all: {gpus: a100}", ".all.gpus is 'a100'; it must be a whole number from 0 to 1024"),
        ("measure: {throttle: -1}", ".measure.throttle is '-1'; it must be a whole number"),
        ("all: {time: 1h, grace: 3600}", ": grace is 3600 s of a time of 3600 s"),
        ("all: {memory: 2G, memory_limit: 1G}", "memory_limit is 1024M, less than the memory"),
        ("all: {cpus: 1}\nall: {gpus: 1}", "all is given twice"),
        ("all: {memory: 16}", ".all.memory is '16'; give a unit, as in 500M or 16G"),
        ("all: {memory: 0G}", ".all.memory is '0G'; give a unit"),
        ("all: {memory_limit: lots}", ".all.memory_limit is 'lots'; give a unit"),
        ("all: {memory_factor: 0.5}", ".all.memory_factor is '0.5'; it must be a number from 1"),
        ("all: {time: soon}", ".all.time is 'soon'; write 90min, 2h, 1d"),
        ("all: {time: 0}", ".all.time is '0'; write 90min"),
        ("all: {time: 5weeks}", ".all.time is '5weeks'; write 90min"),
        ("merge: {time: 45}", ".merge.time is 45; give a unit, as in 3h or 30min"),
        ("all: {time: 2.5}", ".all.time is 2.5; give a unit"),
        (
            "all: {time: 1:20}",
            ".all.time is 1:20, which is minutes and seconds for sbatch; write 0:1",
        ),
        ("all: {time: 0.2min}", ".all.time is '0.2min'; write 90min"),
        ("all: {partition: [a, b]}", ".all.partition expects one line of text, not ['a', 'b']"),
        ("all: {setup: {a: b}}", ".all.setup expects text or a list of it"),
        ("all: {sbatch: --exclusive}", ".all.sbatch expects a mapping of options"),
        ("all: {sbatch: {--nice: 1}}", ".all.sbatch has '--nice'; write an option's long name"),
        ("all: {sbatch: {array: 0-9}}", ".all.sbatch.array is skerch's own to set"),
        ("[all]", " must hold a mapping of all, train"),
        ("all: {", " is not valid YAML"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence_that_names_it(asked, text, words):
    with pytest.raises(ConfigError) as refusal:
        asked(text)
    assert words in str(refusal.value)
    assert "cluster.yaml" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("resources.all.tiem=1h", "There is no key resources.all.tiem; did you mean"),
        ("resources.measur.time=1h", "There is no stage measur; did you mean measure?"),
        (
            "resources.all.time=5400",
            'is 5400; give a unit, as in 3h or 30min, or quote it, as in "1:',
        ),
        ("resources.merge.time=7", "resources.merge.time is 7; give a unit"),
        ("resources.all.time=2:10", "resources.all.time is 2:10, which is minutes and seconds"),
        ("resources.all.memory=16", "resources.all.memory is 16; give a unit"),
        ("resources.all.cpus=true", "resources.all.cpus is True; it must be a whole number"),
        ("resources.all=fast", "resources.all expects a mapping"),
    ],
)
def test_an_override_that_cannot_be_is_refused_where_the_experiment_is_read(small, override, words):
    with pytest.raises(ConfigError) as refusal:
        small(override)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_cluster_that_is_not_there_is_said_with_those_that_are(small):
    with pytest.raises(ConfigError, match=r"cluster=mine: there is no such file .*devcluster, gpu"):
        resources(small("cluster=mine"))


def test_a_time_on_the_command_line_is_no_number_to_the_base_sixty(small):
    asked = resources(small("resources.all.time=1:30:00"))["train"]
    assert (asked.time, asked.grace) == ("1:30:00", 90)


@pytest.mark.parametrize(("time", "grace"), [("1min", 15), ("0:00:30", 7), ("1-0", 90)])
def test_a_short_time_has_a_short_grace(asked, time, grace):
    assert asked(f"all: {{time: {time}}}")["train"].grace == grace
