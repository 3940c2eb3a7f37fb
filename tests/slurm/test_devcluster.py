"""devcluster.sh: a real Slurm that can be hurt as a real one is, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import time
from pathlib import Path

import pytest

ALLOCATE = "import time; block = bytearray(600_000_000); time.sleep(60)"


def eventually(claim, seconds=120):
    """Waits until `claim()` is true, and returns what it gave."""
    end = time.monotonic() + seconds
    while not (value := claim()):
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.1)
    return value


def submit(cluster, *arguments):
    return cluster.run("sbatch", "--parsable", *arguments).stdout.strip()


def squeue(cluster, job, field):
    return cluster.run("squeue", "-h", "-t", "all", "-j", job, "-O", field).stdout.strip()


def processes_of(cluster):
    """Pids of a cluster's daemons and jobs, by the name under which only they know its folder."""
    name = f"{os.readlink(cluster.directory / 'short')}/".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
        except OSError:
            continue
        if name in words:
            found.append(int(process.name))
    return found


def listening(pids):
    """The addresses, in hexadecimal, at which these processes listen for TCP connections."""
    inodes = set()
    for pid in pids:
        with contextlib.suppress(FileNotFoundError):  # it has ended
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                inodes.update(re.findall(r"^socket:\[(\d+)\]$", os.readlink(descriptor)))
    rows = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        rows += [line.split() for line in Path(table).read_text().splitlines()[1:]]
    return [row[1].split(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes]


def is_running(pid):
    """False for a zombie too: nothing of it is left but its number."""
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


@pytest.fixture
def awkward_cluster(devcluster, bring_up, tmp_path):
    folder = tmp_path / ('it\'s 100% a, "folder" ' + 100 * "x")
    yield bring_up(folder, "--nodes", 1)
    devcluster("down", folder, check=False)


def test_down_leaves_no_process_of_daemons_or_jobs(awkward_cluster, devcluster):
    cluster = awkward_cluster
    job = submit(cluster, "-o", "/dev/null", "--wrap", "setsid sleep 300 & srun sleep 300")
    short = Path(os.readlink(cluster.directory / "short"))
    # munged, slurmctld, slurmscriptd, slurmd; slurmstepd twice, the script, srun twice, sleep twice
    eventually(lambda: len(processes_of(cluster)) >= 11)
    pids = processes_of(cluster)
    assert squeue(cluster, job, "State") == "RUNNING"

    devcluster("down", cluster.directory)

    eventually(lambda: not any(map(is_running, pids)), seconds=30)
    assert not short.exists()
    assert devcluster("status", cluster.directory, check=False).returncode == 1
    assert (cluster.directory / "log" / "slurmctld.log").stat().st_size


def test_up_again_in_the_same_folder_starts_empty(awkward_cluster, devcluster, bring_up):
    submit(awkward_cluster, "-o", "/dev/null", "--wrap", "sleep 300")
    devcluster("down", awkward_cluster.directory)
    cluster = bring_up(awkward_cluster.directory)
    assert cluster.run("squeue", "-h").stdout == ""
    assert "up already" in devcluster("up", cluster.directory).stdout


def test_env_file_is_for_a_shell_in_any_folder(awkward_cluster, devcluster):
    command = 'cd "$1" && source ./env.sh && cd / && sinfo -h -o %N'
    env = {k: v for k, v in awkward_cluster.env.items() if k != "SLURM_CONF"}
    done = awkward_cluster.run("bash", "-c", command, "-", awkward_cluster.directory, env=env)
    assert done.stdout.split() == ["n1"]
    assert "slurmctld is up" in devcluster("status", ".", cwd=awkward_cluster.directory).stdout


def test_all_servers_listen_on_loopback_only(cluster):
    if not socket.gethostbyname(socket.gethostname()).startswith("127."):
        pytest.skip("Slurm on loopback: a host name with a loopback address")
    submit(cluster, "-o", "/dev/null", "--wrap", "srun sleep 3")
    eventually(lambda: len(listening(processes_of(cluster))) > 4)  # slurmctld, 3 slurmd; srun too
    assert set(listening(processes_of(cluster))) == {"0100007F"}


def test_what_does_not_come_up_is_named_and_taken_down(devcluster, tmp_path):
    env = os.environ | {"DEVCLUSTER_MIN_JOB_AGE": "soon"}
    done = devcluster("up", tmp_path / "c", env=env, check=False)
    assert done.returncode == 1
    assert "slurmctld does not come up" in done.stderr
    assert "MinJobAge value (soon) is not a valid number" in done.stderr
    assert not (tmp_path / "c" / "env.sh").exists()
    assert not (tmp_path / "c" / "short").is_symlink()


def test_a_missing_program_names_its_package(devcluster, tmp_path):
    (tmp_path / "bash").symlink_to(shutil.which("bash"))
    done = devcluster("up", tmp_path / "c", env={"PATH": str(tmp_path)}, check=False)
    assert done.returncode == 1
    assert "is missing: apt-get install slurm-wlm munge" in done.stderr


def test_a_folder_with_other_things_is_left_alone(devcluster, tmp_path):
    (tmp_path / "state").mkdir()
    done = devcluster("up", tmp_path, check=False)
    assert done.returncode == 1
    assert "name a new or an empty folder" in done.stderr
    assert os.listdir(tmp_path) == ["state"]


def test_a_job_runs_and_its_exit_code_comes_back(cluster, tmp_path):
    out = tmp_path / "out"
    done = cluster.run(
        "sbatch", "-W", "-o", out, "--wrap", "echo $SLURM_JOB_ID; exit 3", check=False
    )
    assert done.returncode == 3
    assert done.stdout.split()[-1] == out.read_text().strip()


def test_an_array_beyond_the_limit_is_rejected(cluster):
    done = cluster.run("sbatch", "--array=0-101", "--wrap", "true", check=False)
    assert "Invalid job array specification" in done.stderr
    cluster.run("scancel", submit(cluster, "-H", "--array=0-100", "--wrap", "true"))


def test_a_job_beyond_its_memory_is_killed(cluster, tmp_path):
    out = tmp_path / "out"
    command = f"srun python3 -c '{ALLOCATE}'"
    done = cluster.run("sbatch", "-W", "--mem=200", "-o", out, "--wrap", command, check=False)
    assert done.returncode == 137
    assert "exceeded memory limit" in out.read_text()


def test_an_urgent_job_preempts_and_the_preempted_one_runs_again(cluster, tmp_path):
    node = ("-w", "n2", "-c", "4", "-o", tmp_path / "%j", "--open-mode=append")
    job = submit(cluster, *node, "--wrap", "sleep 300")
    eventually(lambda: squeue(cluster, job, "State") == "RUNNING")
    done = cluster.run("sbatch", "-W", "-p", "urgent", *node, "--wrap", "true")
    assert done.returncode == 0
    eventually(lambda: squeue(cluster, job, "RestartCnt") == "1")
    cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)  # if it waits
    eventually(lambda: squeue(cluster, job, "State") == "RUNNING")
    assert "DUE TO PREEMPTION" in (tmp_path / job).read_text()
    cluster.run("scancel", job)


def test_a_job_outlives_its_slurmd(cluster, devcluster, tmp_path):
    command = "until test -e go; do sleep 0.1; done; touch went"
    job = submit(cluster, "-w", "n3", "-D", tmp_path, "--wrap", command)
    eventually(lambda: squeue(cluster, job, "State") == "RUNNING")
    cluster.kill_node("n3")
    status = devcluster("status", cluster.directory, check=False)
    assert (status.returncode, "n3 is down" in status.stdout) == (1, True)
    (tmp_path / "go").touch()
    eventually((tmp_path / "went").exists)
    cluster.start_node("n3")
    eventually(lambda: squeue(cluster, job, "State") == "COMPLETED")
    devcluster("status", cluster.directory)


def test_a_job_outlives_the_controller(cluster, tmp_path):
    command = "until test -e go; do sleep 0.1; done; touch went"
    job = submit(cluster, "-o", "/dev/null", "-D", tmp_path, "--wrap", command)
    eventually(lambda: squeue(cluster, job, "State") == "RUNNING")
    cluster.restart_controller("TERM")
    (tmp_path / "go").touch()
    eventually(lambda: squeue(cluster, job, "State") == "COMPLETED")
    assert (tmp_path / "went").exists()


@pytest.mark.slow
def test_accounting_remembers_jobs(needs, devcluster, bring_up, tmp_path):
    for program in ("slurmdbd", "mariadbd"):
        present = shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin")
        needs(present, "accounting: slurm/devcluster/install.sh --accounting on Debian")
    try:
        cluster = bring_up(tmp_path, "--nodes", 1, "--accounting")
        pids = processes_of(cluster)
        job = submit(cluster, "-o", "/dev/null", "--wrap", "exit 3")
        question = ("sacct", "-n", "-P", "-X", "-j", job, "-o", "State,ExitCode")
        eventually(lambda: cluster.run(*question).stdout == "FAILED|3:0\n")
    finally:
        devcluster("down", tmp_path)
    eventually(lambda: not any(map(is_running, pids)), seconds=30)
