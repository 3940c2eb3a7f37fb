"""doctor on a real Slurm: sound, and with faults put in."""

from __future__ import annotations

import json
import os
import re
import shutil
import site
import subprocess
import sys
import venv

import pytest

NO_LOCKS = """
import errno, fcntl

def flock(*_):
    raise OSError(errno.ENOLCK, "No locks available")

fcntl.flock = flock
"""
OTHER_MPI = """#!/bin/sh
if [ "$1" = --version ]; then echo "mpiexec (OpenRTE) 4.1.4"; exit; fi
shift 2
"$@" && "$@"
"""


@pytest.fixture
def doctor(tmp_path):
    """A function that has doctor examine a folder from a cluster: exit status and findings."""

    def examine(cluster, *options, python=sys.executable, prefix=(), **environment):
        command = [*prefix, python, "-m", "skerch", "doctor", tmp_path, "--json", *options]
        env = cluster.env | {"OMP_NUM_THREADS": "1"} | environment
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=180)
        assert "Traceback" not in done.stderr, done.stderr
        assert done.stdout, done.stderr
        rows = json.loads(done.stdout)["findings"]
        assert not list(tmp_path.glob(".skerch-doctor-*"))
        return done.returncode, {(row["subject"], row["check"]): row for row in rows}

    return examine


@pytest.fixture
def lone_python(tmp_path):
    """A Python with the packages of this one, beside which there is no mpiexec."""
    venv.create(tmp_path / "lone", symlinks=True)
    (packages,) = (tmp_path / "lone").glob("lib/python*/site-packages")
    lines = [f"import site; site.addsitedir({folder!r})" for folder in site.getsitepackages()]
    (packages / "others.pth").write_text("\n".join(lines))
    return tmp_path / "lone" / "bin" / "python"


def states(found, *keys):
    return [found[key]["state"] for key in keys]


def test_a_sound_cluster_is_fit_and_has_the_lines_of_the_document(cluster, doctor, blocks):
    status, found = doctor(cluster)
    assert status == 0, found
    assert "3 nodes of 4 CPUs, 4,000 MiB" in found["Slurm", "main"]["found"]
    for check in ("files", "rename", "locks"):
        assert states(found, ("Folder", check), ("Nodes", check)) == ["ok", "ok"], found
    nodes = sorted(check.split()[-1] for _, check in found if check.startswith("Python on"))
    assert len(nodes) == 2
    assert " and ".join(nodes) in found["Nodes", "job"]["found"]
    assert "import torch" in found["Nodes", f"Python on {nodes[0]}"]["found"]
    assert found["Nodes", "jobs submit"]["state"] == "ok"
    (_, transcript), *_ = (block for block in blocks("doctor.md") if block[0] == "console")
    lines = re.findall(r"^ (?:ok|warning) +(\S+(?: \S+)*)  ", transcript, re.MULTILINE)
    told = [check for _, check in found]
    assert [line.rstrip("123") for line in lines] == [check.rstrip("123") for check in told]


def test_faults_are_found(needs, devcluster, bring_up, doctor, lone_python, tmp_path):
    mpiexec = shutil.which("mpiexec", path=os.path.dirname(sys.executable))
    needs(mpiexec or shutil.which("mpiexec"), "mpiexec and mpi4py: pip install mpich mpi4py")
    (tmp_path / "sitecustomize.py").write_text(NO_LOCKS)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "mpiexec").write_text(OTHER_MPI)
    (tmp_path / "bin" / "mpiexec").chmod(0o755)
    try:
        cluster = bring_up(tmp_path / "cluster", "--array-size", 11)
        status, found = doctor(
            cluster,
            python=lone_python,
            PYTHONPATH=str(tmp_path),
            PATH=f"{tmp_path / 'bin'}:{cluster.env['PATH']}",
            LD_LIBRARY_PATH=f"{sys.prefix}/lib:{os.environ.get('LD_LIBRARY_PATH', '')}",  # MPI's
        )
    finally:
        devcluster("down", tmp_path / "cluster", check=False)
    assert status == 1
    assert found["Slurm", "arrays"]["state"] == "warning"
    assert "10 tasks an array" in found["Slurm", "arrays"]["found"]
    assert found["Slurm", "accounting"]["state"] == "warning"
    assert "600 sec after its end" in found["Slurm", "accounting"]["found"]
    for subject in ("Folder", "Nodes"):
        locks = found[subject, "locks"]
        assert (locks["state"], "No locks available" in locks["found"]) == ("warning", True)
    assert found["MPI", "mpiexec"]["state"] == "fault"
    assert "of Open MPI, another MPI than that of mpi4py, MPICH" in found["MPI", "mpiexec"]["found"]


@pytest.mark.slow
def test_accounting_and_its_limit_are_seen(needs, devcluster, bring_up, doctor, tmp_path):
    for program in ("slurmdbd", "mariadbd"):
        present = shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin")
        needs(present, "accounting: slurm/devcluster/install.sh --accounting on Debian")
    try:
        cluster = bring_up(tmp_path / "cluster", "--submit-limit", 20)
        status, found = doctor(cluster, "--no-jobs")
    finally:
        devcluster("down", tmp_path / "cluster", check=False)
    assert status == 0
    assert states(found, ("Slurm", "accounting"), ("Slurm", "account")) == ["ok", "warning"]
    assert "at most 20 jobs submitted at once (account " in found["Slurm", "account"]["found"]
    assert not [subject for subject, _ in found if subject == "Nodes"]


@pytest.mark.slow
def test_nodes_that_do_not_see_the_folder_are_a_fault(cluster, doctor, needs, tmp_path):
    alone = ["unshare", "--mount", "sh", "-c", f"mount -t tmpfs tmpfs '{tmp_path}' && exec \"$@\""]
    able = shutil.which("unshare") and subprocess.run([*alone, "sh", "true"]).returncode == 0
    needs(able, "folders of one process: root that may mount")
    status, found = doctor(cluster, prefix=[*alone, "sh"])
    assert status == 1
    assert found["Nodes", "job"]["state"] == "fault"
    assert "left nothing in" in found["Nodes", "job"]["found"]


def test_a_setup_line_that_fails_is_named(cluster, doctor, tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text("all: {partition: main, setup: [test -e /nowhere]}")
    status, found = doctor(cluster, "--cluster", str(file))
    assert (status, found["Nodes", "job"]["state"]) == (1, "fault")
    assert "the setup line 'test -e /nowhere' ended" in found["Nodes", "job"]["found"]


def test_a_job_that_waits_is_not_known_and_gone(cluster, doctor, tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text("all: {partition: main, sbatch: {begin: now+1hour}}")
    status, found = doctor(cluster, "--wait", "1", "--cluster", str(file))
    assert status == 0
    assert found["Nodes", "job"]["state"] == "note"
    assert "it waits: BeginTime" in found["Nodes", "job"]["found"]
    assert "skerch-doctor" not in cluster.run("squeue", "-o", "%j").stdout


def test_the_cluster_file_that_it_writes_is_taken(cluster, doctor, tmp_path):
    file = tmp_path / "cluster.yaml"
    status, _ = doctor(cluster, "--no-jobs", "--write", str(file))
    assert (status, "partition: main" in file.read_text()) == (0, True)
    status, found = doctor(cluster, "--no-jobs", "--cluster", str(file))
    (taken,) = (row for (subject, _), row in found.items() if subject == "Cluster file")
    assert (status, taken["found"]) == (0, "Slurm takes such jobs")


def test_what_a_cluster_does_not_have_is_named(cluster, doctor, tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text(
        "all: {partition: main}\n"
        "train: {partition: nope}\n"
        "measure: {gpus: 1}\n"
        "merge: {memory: 8G}\n"
        "analyze: {constraint: fast}\n"
    )
    status, found = doctor(cluster, "--no-jobs", "--cluster", str(file))
    faults = {
        check.partition(" +")[0]: row["found"]
        for (subject, check), row in found.items()
        if (subject, row["state"]) == ("Cluster file", "fault")
    }
    assert status == 1
    assert "invalid partition specified: nope" in faults["train"]
    assert "Invalid generic resource (gres) specification" in faults["measure"]
    assert "Requested node configuration is not available" in faults["merge"]
    assert "Invalid feature specification" in faults["analyze"]
