"""doctor without Slurm, and what it makes of settings and reports that no test machine has."""

from __future__ import annotations

import errno
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from skerch.jobs.commands.doctor import asked, folder, mpi, nodes, pair, slurm
from skerch.jobs.commands.doctor.pair import Pair, versions
from skerch.jobs.config.resources import Resources
from skerch.jobs.launchers.slurm import facts
from skerch.jobs.launchers.slurm.facts import Nodes, Partition
from skerch.jobs.launchers.slurm.programs import SlurmError

ACCOUNT = {"Account": "maths", "MaxSubmitJobs": "", "QOS": "normal,long"}


PARTITION = Partition("a", True, "1:00:00", 60, (Nodes(2, 8, 9000, "gpu:a100:4(S:0)"),), 0)
THERE = versions() | {"node": "n1", "import": 2.0, "gpus": []}


@pytest.fixture
def no_slurm(tmp_path, monkeypatch):
    """A PATH on which there is nothing."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


@pytest.fixture
def judged(monkeypatch):
    """A function of settings that gives the findings on them, by check."""

    def judge(accounts=(), qualities=None, silence=False, **settings):
        def silent(*_):
            raise SlurmError("sacct failed.")

        monkeypatch.setattr(
            facts, "associations", silent if accounts is None else lambda _: list(accounts)
        )
        monkeypatch.setattr(facts, "ask_accounting", silent if silence else lambda: None)
        monkeypatch.setattr(facts, "qualities", lambda: qualities or {})
        monkeypatch.setattr(slurm.scheduler, "array_size", lambda: 1000)
        return {row.check: row for row in slurm.findings({"MaxArraySize": "1001"} | settings)}

    return judge


def test_without_slurm_the_folder_and_mpi_are_examined(skerch, tmp_path, no_slurm):
    status, said, _ = skerch("doctor", tmp_path, "--json")
    found = json.loads(said)
    states = {row["check"]: row["state"] for row in found["findings"]}
    assert (status, found["fit"], states["commands"]) == (0, True, "note")
    for check in ("files", "rename", "locks"):
        assert states[check] == "ok"
    assert "mpi4py" in states
    assert not list(tmp_path.iterdir())


def test_the_table_says_what_is_not_there(skerch, tmp_path, no_slurm, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    status, said, _ = skerch("doctor", tmp_path, "--write", tmp_path / "new.yaml")
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert status == 1
    assert any(line.startswith("note commands not on PATH: sbatch, srun,") for line in lines)
    assert any("not written: sinfo is not on PATH" in line for line in lines)
    assert not (tmp_path / "new.yaml").exists()


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("There is no folder {}/nowhere to look into; make it", ["{}/nowhere"]),
        ("There is no folder {}/mine.yaml to look into", ["{}/mine.yaml"]),
        ("--write {}/mine.yaml is there already; name a new", ["{}", "--write", "{}/mine.yaml"]),
        ("there is no folder {}/nowhere; make it first", ["{}", "--write", "{}/nowhere/new.yaml"]),
        ("--wait -3 must be 0 seconds or more", ["{}", "--wait", "-3"]),
        ("--wait nan must be 0 seconds or more", ["{}", "--wait", "nan"]),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(skerch, tmp_path, no_slurm, words, arguments):
    (tmp_path / "mine.yaml").write_text("all: {cpus: 1}")
    status, printed, said = skerch("doctor", *(given.format(tmp_path) for given in arguments))
    assert (status, printed, said.count("\n")) == (2, "", 1)
    assert words.format(tmp_path) in said
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]
    assert (tmp_path / "mine.yaml").read_text() == "all: {cpus: 1}"


def test_a_controller_that_does_not_answer_is_a_fault(tmp_path, monkeypatch):
    for name in slurm.COMMANDS:
        (tmp_path / name).write_text("#!/bin/sh\necho 'Unable to contact' >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    partitions, (row,) = slurm.ask()
    assert (partitions, row.check, row.state) == ([], "controller", "fault")
    (tmp_path / "srun").unlink()
    _, (row,) = slurm.ask()
    assert (row.state, row.found) == ("fault", "not on PATH: srun")


def test_a_partition_tells_nodes_gpus_and_limit_and_whether_it_is_in_service():
    words = "the default; 2 nodes of 8 CPUs, 9,000 MiB, gpu:a100:4(S:0); at most 1:00:00"
    found = slurm._partition(replace(PARTITION, out=1))
    assert (found.state, found.found) == ("ok", f"{words}; 1 node out of service")
    found = slurm._partition(replace(PARTITION, out=2))
    assert (found.state, found.found) == ("warning", f"{words}; 2 nodes out of service")


@pytest.mark.parametrize(
    ("check", "state", "words", "settings"),
    [
        ("arrays", "ok", "1000 tasks", {}),
        ("arrays", "fault", "there are none", {"MaxArraySize": "0"}),
    ],
)
def test_what_settings_mean(judged, check, state, words, settings):
    found = judged(**settings)[check]
    assert (found.state, words in found.found) == (state, True), found


@pytest.mark.parametrize(
    ("check", "state", "words", "more"),
    [
        ("account", "ok", "maths; no limit", {"AccountingStorageEnforce": "associations"}),
        ("account", "fault", "jobs need one", {"accounts": ()}),
        ("account", "ok", "none; no limit", {"accounts": (), "AccountingStorageEnforce": ""}),
        ("accounting", "warning", "slurmdbd, but sacct failed.", {"silence": True}),
        ("account", "note", "not known: sacct failed.", {"accounts": None}),
        ("account", "ok", "maths; no limit", {"accounts": [ACCOUNT | {"QOS": ""}]}),
        ("account", "warning", "at most 20 jobs submitted at once (qos long)", {}),
        (
            *("account", "warning", "at most 7 jobs submitted at once (account maths)"),
            {"accounts": [ACCOUNT | {"MaxSubmitJobs": "7"}]},
        ),
    ],
)
def test_what_accounting_means(judged, check, state, words, more):
    enforced = {"AccountingStorageEnforce": "associations,limits,qos"}
    asked = {"accounts": [ACCOUNT], "qualities": {"long": {"MaxSubmitJobsPerUser": "20"}}}
    kind = {"AccountingStorageType": "accounting_storage/slurmdbd"}
    found = judged(**kind | asked | enforced | more)[check]
    assert (found.state, words in found.found) == (state, True), found


def find(*folders, patience=5.0):
    """What two processes find, which here are threads."""
    pairs = [Pair(folder, number, patience) for number, folder in enumerate(folders)]
    with ThreadPoolExecutor() as pool:
        both = pool.map(lambda each: list(each.findings()), pairs)
        return {row.check: row for rows in both for row in rows}


def put_in_pieces(path, content, put=pair._put):
    """Write a file as a file system has it that does not rename in one step."""
    if path.name == "replaced":
        path.write_bytes(content[:9])
        time.sleep(0.01)
    put(path, content)


def hear_less(self, word, hear=Pair._hear):
    """Read what another process wrote, without its end."""
    return hear(self, word)[:-1]


def no_lock(*_):
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize(
    ("check", "state", "words", "where", "fault"),
    [
        ("files", "warning", "seen by the other after", "pair.SLOW", 0.0),
        ("files", "fault", "one reads other bytes", "pair.Pair._hear", hear_less),
        ("rename", "fault", "found no whole file", "pair._put", put_in_pieces),
        ("locks", "warning", "none: No locks available", "pair.fcntl.flock", no_lock),
        ("locks", "warning", "one has what the other", "pair.fcntl.flock", lambda *_: None),
    ],
)
def test_a_file_system_that_is_not_fit_is_found(
    tmp_path, monkeypatch, check, state, words, where, fault
):
    monkeypatch.setattr(pair, "REPLACING", 0.1)
    monkeypatch.setattr(f"skerch.jobs.commands.doctor.{where}", fault)
    found = find(tmp_path / "both", tmp_path / "both")[check]
    assert (found.state, words in found.found) == (state, True), found


def test_processes_that_see_different_folders_say_so(tmp_path):
    found = find(tmp_path / "a", tmp_path / "b", patience=0.3)
    assert (list(found), found["files"].state) == (["files"], "fault")
    assert "What the other wrote is not seen within 0.3 s." in found["files"].found


@pytest.mark.parametrize(
    ("words", "family"),
    [
        ("HYDRA build details:\n    Version: 4.0", "MPICH"),
        ("mpiexec (OpenRTE) 4.1.4", "Open MPI"),
        ("mpirun (Open MPI) 5.0.3", "Open MPI"),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.9", "MPICH"),
        ("something else", ""),
    ],
)
def test_an_mpiexec_is_known_by_what_it_says(words, family):
    assert mpi._family(words) == family


@pytest.mark.parametrize(
    ("state", "words", "answers"),
    [
        ("note", "loads no MPI library (no libmpi)", {"library": (False, "no libmpi")}),
        ("note", "not found", {"path": None}),
        ("ok", "two ranks that find each other", {}),
        ("fault", "each find themselves alone", {"hello": (True, "<1><1>")}),
        ("fault", "starts no ranks: not as root", {"hello": (False, "not as root")}),
        (
            *("fault", "/x/mpiexec of Open MPI, another MPI than that of mpi4py, MPICH 5.0.2"),
            {"hello": (True, "<1><1>"), "version": (True, "mpiexec (OpenRTE) 4")},
        ),
    ],
)
def test_what_is_found_of_mpi(monkeypatch, state, words, answers):
    usual = {
        "library": (True, "MPICH Version:      5.0.2\nMPICH Release date: today"),
        "version": (True, "HYDRA build details"),
        "hello": (True, "<2><2>"),
    } | answers
    keys = {mpi.LIBRARY: "library", mpi.HELLO: "hello", "--version": "version"}
    monkeypatch.setattr(mpi, "_run", lambda command: usual[keys[command[-1]]])
    monkeypatch.setattr(mpi, "find_mpiexec", lambda: answers.get("path", "/x/mpiexec"))
    *_, last = mpi.findings()
    assert (last.state, words in last.found) == (state, True), last


def test_a_program_that_does_not_end_well_says_why(tmp_path):
    assert mpi._run([str(tmp_path / "no")]) == (False, "No such file or directory")
    assert mpi._run(["sh", "-c", "echo once; echo twice >&2; exit 3"]) == (False, "twice")
    assert mpi._run(["sh", "-c", "exit 3"]) == (False, "exit status 3")


@pytest.mark.parametrize(
    ("state", "words", "there", "gpus"),
    [
        ("ok", "import torch 2.0 s; no GPU, as none is asked for", {}, None),
        ("ok", "; A100, A100", {"gpus": ["A100", "A100"]}, 2),
        ("fault", "torch sees none", {}, 1),
        ("fault", "torch 0.1, here", {"torch": "0.1"}, None),
    ],
)
def test_what_python_on_a_node_means(state, words, there, gpus):
    found = nodes._python(THERE | there, Resources(gpus=gpus))
    assert (found.state, words in found.found) == (state, True), found


def test_a_torch_that_cannot_be_imported_is_a_fault():
    found = nodes._python({"node": "n1", "no torch": "OSError: libcuda"}, Resources())
    assert (found.state, "OSError: libcuda" in found.found) == ("fault", True)


def test_where_no_node_is_in_service_nothing_is_submitted(tmp_path):
    (found,) = nodes.try_nodes(tmp_path, [replace(PARTITION, out=2)], Resources(), 1.0)
    assert (found.state, found.found) == ("note", "not known: no node of a is in service")
    assert not list(tmp_path.iterdir())


def test_a_time_beyond_the_limit_of_a_partition_is_named():
    words = asked._beyond(Resources(time="2:00:00"), [PARTITION])
    assert words == "time is 120 min, and a allows 60"
    assert not asked._beyond(Resources(time="1:00:00"), [PARTITION])
    assert not asked._beyond(Resources(time="2:00:00", partition="b"), [PARTITION])
    assert not asked._beyond(Resources(time="2:00:00"), [replace(PARTITION, longest=None)])


def test_a_folder_that_does_not_answer_is_given_up(tmp_path, monkeypatch):
    (tmp_path / "python").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(folder.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(folder, "BOUND", 0.5)
    (found,) = folder.try_here(tmp_path)
    assert (found.state, found.found) == ("fault", "It does not answer within 0.5 s.")
