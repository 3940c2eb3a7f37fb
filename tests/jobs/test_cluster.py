"""What stages ask of a cluster, by file and override; each value that cannot be is named."""

from __future__ import annotations

import pytest

from skerch.jobs.config import load, save
from skerch.jobs.config.resources import Resources, resources
from skerch.jobs.config.stages import STAGES
from skerch.jobs.errors import ConfigError
from skerch.jobs.launchers.slurm.journal import Submission
from skerch.jobs.launchers.slurm.script import script


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
        (
            "all: {time: 1h}\nmerge: {grace: 3600}",
            ".merge.grace is 3600 s of a time of 3600 s (",
        ),
        (
            "all: {memory: 2G}\nmeasure: {memory_limit: 1G}",  # which a layout has, too
            ".measure.memory_limit is 1024M, less than the memory, 2048M (",
        ),
        ("measure: {time: 2h, time_limit: 1h}", ".measure.time_limit is 60 min, less than the"),
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
        ("all: {partition: [a, b]}", ".all.partition expects one line of text without"),
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
            "resources.all.time is 5400; give a unit, as in 3h or 30min",
        ),
        ("resources.merge.time=7", "resources.merge.time is 7; give a unit"),
        ("resources.all.time=2:10", "resources.all.time is 2:10, which is minutes and seconds"),
        ("resources.all.memory=16", "resources.all.memory is '16'; give a unit"),
        ("resources.all.cpus=true", "resources.all.cpus is 'true'; it must be a whole number"),
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


@pytest.fixture(params=["cluster file", "experiment file", "override"])
def lines(request, small, asked, tmp_path):
    """A function: the lines of a task's script, of what is written in YAML for a key."""

    def write(key, written):
        if request.param == "cluster file":
            found = asked(f"all: {{{key}: {written}}}")
        elif request.param == "experiment file":
            text = f"problem: {{name: digits_mlp}}\nresources: {{all: {{{key}: {written}}}}}\n"
            (tmp_path / "mine.yaml").write_text(text)
            found = resources(load("mine.yaml"))
        else:
            found = resources(small(f"resources.all.{key}={written}"))
        submission, log = Submission("token", "seigh", "train", None), tmp_path / "log"
        return script(submission, found["train"], tmp_path, log).splitlines()

    return write


@pytest.mark.parametrize(
    "option",
    [
        *(f"nice={number}" for number in ("0", "1", "-5", "1.0", "1e3", "0.10", "010", "0b1")),
        *(f"nodelist={name}" for name in ("01", "0o7", "0x1f", "1_0", "on", "No", "y", ".5")),
        *(f"begin={time}" for time in ("16:00", "1:30:00", "2026-12-01", "2026-12-01T10:00:00")),
    ],
)
def test_an_option_arrives_as_it_is_written(lines, option):
    assert f"#SBATCH --{option}" in lines("sbatch", f"{{{option.replace('=', ': ')}}}")


@pytest.mark.parametrize("name", ["01", "1.0", "1e3", "yes", "2026-12-01"])
def test_a_name_arrives_as_it_is_written(lines, name):
    assert f"#SBATCH --partition={name}" in lines("partition", name)
    assert f"#SBATCH --constraint={name}" in lines("constraint", f'"{name}"')


def test_an_argument_of_srun_arrives_as_it_is_written(lines):
    assert any(" --mpi 010 yes " in line for line in lines("srun", "[--mpi, 010, yes]"))


@pytest.mark.parametrize("word", ["true", "True", '"true"'])
def test_true_is_a_flag(lines, word):
    assert "#SBATCH --exclusive" in lines("sbatch", f"{{exclusive: {word}}}")


@pytest.mark.parametrize("word", ["false", "False", "null", "~", ""])
def test_false_and_null_take_an_option_back_and_leave_the_others(asked, word):
    found = asked(
        "all: {sbatch: {exclusive: true, nice: 0}}\nmerge: {sbatch: {reservation: maths}}",
        f"resources.merge.sbatch.exclusive={word}",
        "resources.train.sbatch=null",
    )
    assert found["merge"].sbatch == {"nice": "0", "reservation": "maths"}
    assert found["measure"].sbatch == {"exclusive": True, "nice": "0"}
    assert found["train"].sbatch == {}


@pytest.mark.parametrize("value", ["*", "!gpu", "&a", "a # b", "a: b", "it's 100 %", "@a", "é"])
def test_text_on_the_command_line_is_not_read_as_yaml(small, value):
    asked = resources(small(f"resources.all.sbatch.wckey={value}", f"resources.all.setup={value}"))
    assert (asked["train"].sbatch, asked["train"].setup) == ({"wckey": value}, (value,))


def test_a_section_is_merged_into_another(asked):
    found = asked("train: &gpu {gpus: 1, time: 1h}\nmeasure: {<<: *gpu, time: 1:30:00}")
    assert (found["measure"].gpus, found["measure"].time) == (1, "1:30:00")


def test_a_run_directory_keeps_the_text_of_an_option(small, tmp_path):
    save(small("resources.all.sbatch={nice: 010, begin: 16:00}"), tmp_path / "config.yaml")
    assert load(tmp_path / "config.yaml").resources == {
        "all": {"sbatch": {"nice": "010", "begin": "16:00"}}
    }


@pytest.mark.parametrize(
    ("key", "written", "words"),
    [
        ("sbatch", "{ntasks: 1}", ".sbatch.ntasks is not for a task, which is one process on one"),
        ("sbatch", "{tasks-per-node: 2}", ".sbatch.tasks-per-node is not for a task"),
        ("sbatch", "{ntasks-per-n: 2}", ".sbatch.ntasks-per-n is not for a task"),
        ("sbatch", "{nodes: 2}", ".sbatch.nodes is not for a task"),
        ("sbatch", "{overcommit: true}", ".sbatch.overcommit is not for a task"),
        ("sbatch", "{part: gpu}", ".sbatch.part has a key of its own; write partition"),
        ("sbatch", "{mem: 0}", ".sbatch.mem has a key of its own; write memory"),
        ("sbatch", "{mail-user: me}", ".sbatch.mail-user has a key of its own; write mail_user"),
        ("sbatch", "{cpus-per-gpu: 2}", ".sbatch.cpus-per-gpu has a key of its own; write cpus"),
        ("sbatch", "{job-name: a}", ".sbatch.job-name is skerch's own to set; leave it out"),
        ("sbatch", "{requeue: false}", ".sbatch.requeue is skerch's own to set; leave it out"),
        ("sbatch", "{test-only: true}", ".sbatch.test-only is skerch's own to set; leave it out"),
        ("sbatch", "{cluster: a}", "leave it out and export SLURM_CLUSTERS"),
        ("sbatch", '{wckey: "a\\\\b"}', ".sbatch.wckey expects one line of text without"),
        ("sbatch", '{wckey: "a\\nb"}', ".sbatch.wckey expects one line of text without"),
        ("sbatch", '{wckey: "a\\0b"}', ".sbatch.wckey expects one line of text without"),
        ("sbatch", "{wckey: !!int 010}", "there is a tag, tag:yaml.org,2002:int; quote what"),
        ("sbatch", "{nice: 1, nice: 2}", "nice is given twice"),
        ("srun", "[-n4]", ".srun has -n4; write an option's long name, as in --mpi=none"),
        ("srun", "[--NTASKS=4]", ".srun has --NTASKS; write an option's long name, as in"),
        ("srun", '[--mpi=none, ":"]', ".srun has :; write an option's long name, as in --mpi"),
        ("sbatch", "{uid: 5}", ".sbatch.uid is skerch's own to set; leave it out"),
        ("srun", "[--ntasks=4]", ".srun has --ntasks, which is not for a task"),
        ("srun", "[--ntask, 4]", ".srun has --ntask, which is not for a task"),
        ("srun", "[--multi-prog]", ".srun has --multi-prog, which is not for a task"),
        ("srun", "[--cpus-per-task=4]", ".srun has --cpus-per-task, which has a key of its own"),
        ("srun", "[--error=a]", ".srun has --error, which is skerch's own to set; leave it out"),
        ("srun", "[--open-mode=truncate]", ".srun has --open-mode, which is skerch's own to set"),
        ("srun", "--test-only", ".srun has --test-only, which is skerch's own to set"),
        ("setup", '["#SBATCH --nice"]', ".setup has a line #SBATCH, which Slurm would skip"),
        ("setup", '["a\\0"]', ".setup expects text or a list of it"),
    ],
)
def test_an_option_that_would_break_a_task_or_be_ignored_is_refused(small, key, written, words):
    with pytest.raises(ConfigError) as refusal:
        small(f"resources.all.{key}={written}")
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("option", "key"),
    [
        ("mem-per-cpu: 1G", "memory: 4G"),
        ("mem-per-g: 1G", "memory: 4G"),
        ("gres: gpu:a100:1", "gpus: 1"),
        ("gpus: 1", "gpus: 0"),
        ("gpus-per-task: 1", "gpus: 1"),
    ],
)
def test_an_option_and_a_key_that_ask_for_the_same_are_refused_together(asked, option, key):
    name, _, value = option.partition(": ")
    assert asked(f"all: {{sbatch: {{{option}}}}}")["train"].sbatch == {name: value}
    words = rf"\.all\.{key.partition(':')[0]} and .*\.all\.sbatch\.{name} ask for the same"
    with pytest.raises(ConfigError, match=words):
        asked(f"all: {{sbatch: {{{option}}}, {key}}}")


def test_other_resources_than_gpus_stand_beside_gpus(asked):
    assert asked("all: {gpus: 1, sbatch: {gres: lustre:1}}")["train"].sbatch == {"gres": "lustre:1"}


def test_what_binds_wraps_or_contains_a_task_is_given_to_srun(lines):
    written = "[--cpu-bind=none, --gpu-bind=closest, --container-image=a, --, nsys, -o, a]"
    given = " --ntasks=1 --cpu-bind=none --gpu-bind=closest --container-image=a -- nsys -o a /"
    assert any(given in line for line in lines("srun", written))


@pytest.mark.parametrize(("time", "grace"), [("1min", 15), ("0:00:30", 7), ("1-0", 90)])
def test_a_short_time_has_a_short_grace(asked, time, grace):
    assert asked(f"all: {{time: {time}}}")["train"].grace == grace
