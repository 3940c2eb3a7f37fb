"""A Slurm of the tests' own: real daemons on loopback, in a folder that goes away."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SCRIPT = HERE.parents[1] / "slurm" / "devcluster" / "devcluster.sh"
PATH_WITH_DAEMONS = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("slurm")


def run_script(*arguments, check=True, **options):
    """devcluster.sh, with its output as text; where it fails, the test does, with its words."""
    done = subprocess.run(
        [SCRIPT, *map(str, arguments)], **{"text": True, "capture_output": True} | options
    )
    assert not check or done.returncode == 0, done.stderr
    return done


@dataclass(frozen=True)
class Cluster:
    """A devcluster that is up; `env` is an environment whose Slurm commands talk to it."""

    directory: Path
    env: dict[str, str]

    def run(self, *arguments, check=True, **options):
        """A Slurm command's CompletedProcess; where it fails, the test does, with its words."""
        defaults = {"env": self.env, "text": True, "capture_output": True}
        done = subprocess.run([*map(str, arguments)], **defaults | options)
        assert not check or done.returncode == 0, f"{arguments}: {done.stderr}"
        return done

    def kill_node(self, name):
        """SIGKILL for the node's slurmd; its jobs live on."""
        run_script("kill-node", self.directory, name)

    def start_node(self, name):
        """The node's slurmd again; returns once it is in service."""
        run_script("start-node", self.directory, name)

    def restart_controller(self, signal="KILL", seconds=0):
        """Ends slurmctld (KILL: it forgets its last five seconds; TERM: nothing) and starts it."""
        run_script("restart-controller", self.directory, signal, seconds)


@pytest.fixture(scope="session")
def devcluster(needs):
    """`devcluster(*arguments, check=True)` runs devcluster.sh, where Slurm is installed."""
    for program in ("slurmctld", "slurmd", "munged", "sbatch"):
        present = shutil.which(program, path=PATH_WITH_DAEMONS)
        needs(present, "Slurm: slurm/devcluster/install.sh on Debian")
    return run_script


@pytest.fixture(scope="session")
def bring_up(devcluster):
    """`bring_up(folder, *options)` gives a Cluster in a folder; whoever calls it takes it down."""

    def up(folder, *options):
        patient = {"DEVCLUSTER_MIN_JOB_AGE": "600", "DEVCLUSTER_REQUEUE_WAIT": "20"}
        devcluster("up", *options, folder, env=os.environ | patient)
        env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH"))}
        return Cluster(Path(folder), env | {"SLURM_CONF": str(Path(folder, "slurm.conf"))})

    return up


@pytest.fixture(scope="session")
def cluster(devcluster, bring_up):
    """The session's Slurm: three nodes of 4 CPUs and 4000 MB, partitions `main` and `urgent`."""
    with tempfile.TemporaryDirectory(prefix="skerch-slurm-") as folder:
        try:
            yield bring_up(folder)
        finally:
            devcluster("down", folder, check=False)


EXPERIMENT = HERE / "halting.yaml"
ROUND = "seigh/step-000020-test/measurements/round-1"
WORKERS = (0, 1, 2)  # the array indices of its measurement


@dataclass(frozen=True)
class Run:
    """A run, by default of the experiment halting.yaml, and the command line as its user has it."""

    cluster: Cluster
    path: Path
    experiment: Path | str = EXPERIMENT
    user: tuple[str, ...] = ()  # what runs a command as another user

    @property
    def round(self):
        """The folder of its measurement array."""
        return self.path / ROUND

    def skerch(self, *arguments, check=True, env=None, **options):
        """A command's CompletedProcess; unless `check` is false its status must be 0."""
        defaults = {"capture_output": True, "text": True, "timeout": 120, "cwd": self.path.parent}
        done = subprocess.run(
            [*self.user, sys.executable, "-m", "skerch", *map(str, arguments)],
            env=self.cluster.env | {"OMP_NUM_THREADS": "1"} | (env or {}),
            **defaults | options,
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def submit(self, *overrides, **options):
        """The command `submit`."""
        return self.skerch("submit", self.experiment, f"run_dir={self.path}", *overrides, **options)

    def status(self, **options):
        """What `status --json` says of each task, by the end of its id."""
        said = self.skerch("status", self.path, "--json", **options).stdout
        (method,) = json.loads(said)["methods"]
        return {
            task["id"].removeprefix("seigh.step-000020-test."): task for task in method["tasks"]
        }

    def job(self, task):
        """The id of a task's job, for an element of an array that of the array."""
        return self.status()[task]["job"].partition("_")[0]

    def signal(self, job, name):
        """Send a signal to a job's processes."""
        self.cluster.run("scancel", f"--signal={name}", job)

    def halt(self, call, *indices):
        """Let workers stop at a call of the loss, of which there is one a block."""
        for index in indices or WORKERS:
            (self.path / f"halt.{index}").write_text(str(call))

    def halted(self, *indices):
        """Wait until workers have stopped; their pids."""
        paths = [self.path / f"halted.{index}" for index in indices or WORKERS]
        self.wait(lambda: all(p.exists() and p.read_text() for p in paths), "workers that halt")
        pids = [int(path.read_text()) for path in paths]
        for path in paths:
            path.unlink()
        return pids

    def go_on(self, *indices):
        """Let workers that have stopped go on."""
        for index in indices or WORKERS:
            (self.path / f"halt.{index}").unlink()

    def blocks(self):
        """The block files that are there; one that is written again is another."""
        files = self.round.glob("blocks/*.h5")
        return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}

    def queue(self, form="%i|%T"):
        """What squeue says of each of its jobs that has not ended."""
        lines = self.cluster.run("squeue", "-h", "-r", "-o", f"%Z|{form}").stdout.splitlines()
        mine = f"{self.path}|"
        return [line.removeprefix(mine) for line in lines if line.startswith(mine)]

    def wait(self, claim, what, seconds=180):
        """Wait until `claim()` is true, and return what it gave."""
        end = time.monotonic() + seconds
        while not (value := claim()):
            if time.monotonic() > end:
                queue = self.cluster.run("squeue", "-r", "-t", "all").stdout
                logs = [f"{p.name}:\n{p.read_text()[-2000:]}" for p in self.path.glob("logs/*.log")]
                pytest.fail("\n".join([f"not within {seconds} s: {what}", queue, *logs]))
            time.sleep(0.1)
        return value

    def wait_for_end(self, seconds=180):
        """Wait until no job waits or runs."""
        self.wait(lambda: not self.queue(), "the end of all jobs", seconds)


@pytest.fixture(scope="session")
def local(tmp_path_factory):
    """The run directory of the experiment halting.yaml, run without Slurm."""
    folder = tmp_path_factory.mktemp("local")
    command = [sys.executable, "-m", "skerch", "run", EXPERIMENT, f"run_dir={folder}/run"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "run"


@pytest.fixture(scope="session")
def new_run(cluster):
    """A context in which there is a `Run`, and by whose end no job is left."""

    @contextmanager
    def new(path, experiment=EXPERIMENT):
        run = Run(cluster, path, experiment)
        try:
            yield run
        finally:
            if jobs := run.queue("%i"):
                cluster.run("scancel", "-f", *jobs)
            run.wait_for_end()

    return new


@pytest.fixture
def run(new_run, tmp_path):
    """A `Run` in a folder of its own."""
    with new_run(tmp_path / "run") as run:
        yield run


@pytest.fixture(scope="session")
def train(local):
    """A function that gives a `Run` the training and the layout of `local`."""

    def copy(run):
        shutil.copytree(local / "training", run.path / "training")
        run.round.mkdir(parents=True)
        shutil.copy(local / ROUND / "manifest.json", run.round)
        shutil.copy((local / ROUND).parents[1] / "gradient.h5", run.round.parents[1])

    return copy


@pytest.fixture
def trained(run, train):
    """A `Run` that begins with its workers."""
    train(run)
    return run


@pytest.fixture
def on_path(tmp_path, cluster):
    """A function that makes an environment in which programs, given as scripts, come first."""

    def make(**scripts):
        folder = tmp_path / "bin"
        folder.mkdir()
        for name, text in scripts.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        return {"PATH": os.pathsep.join([str(folder), cluster.env["PATH"]])}

    return make
