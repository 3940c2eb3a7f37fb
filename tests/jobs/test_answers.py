"""What the commands of Slurm 20.11 to 25.05 print is read alike.

`answers/<version>.txt` is what each printed of the same jobs on a real cluster: after `$` a
command, then its output, errors after `2>`, and its status after `?` if not 0. MARK stands for what
is asked to stand around a record. The states, and the reasons of jobs that never start, are those
in the source of 19.05 to 25.11.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from skerch.jobs.launchers.slurm import scheduler
from skerch.jobs.launchers.slurm.journal import Submission
from skerch.jobs.launchers.slurm.programs import SlurmError
from skerch.jobs.launchers.slurm.scheduler import Element

ANSWERS = Path(__file__).with_name("answers")
VERSIONS = sorted(path.stem for path in ANSWERS.glob("*.txt"))
RUN = Path("/runs/run")

STAND_IN = f"""#!{sys.executable}
import os, pathlib, re, sys

asked = " ".join([os.path.basename(__file__), *sys.argv[1:]])
if clusters := os.environ.get("SLURM_CLUSTERS"):
    asked = f"SLURM_CLUSTERS={{clusters}} {{asked}}"
mark = re.search(r"[0-9a-f]{{32}}|$", asked)[0]
jobs = re.search("-j ([0-9,]+)|$", asked)[1]
asked = re.sub("-j [0-9,]+", "-j", asked.replace(mark or "MARK", "MARK"))
for recorded in pathlib.Path(PATH).read_text(encoding="utf-8").split("\\n$ ")[1:]:
    command, *lines = recorded.splitlines()
    if re.sub("-j [0-9,]+", "-j", command) == asked:
        break
else:
    sys.exit(f"not recorded: {{asked}}")
for line in lines:
    if line.startswith("2> "):
        print(line[3:], file=sys.stderr)
    elif line.startswith("? "):
        sys.exit(int(line[2:]))
    elif jobs is None or re.match("[0-9]+", line)[0] in jobs.split(","):
        print(line.replace("MARK", mark))
"""


@pytest.fixture
def answer(tmp_path, monkeypatch):
    """A function that puts commands of a version on PATH, for the user and run of the records."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_CLUSTERS", raising=False)
    monkeypatch.setattr(scheduler.os, "getuid", lambda: 0)

    def use(version, **scripts):
        recorded = STAND_IN.replace("PATH", repr(str(ANSWERS / f"{version}.txt")), 1)
        for name in ("squeue", "sacct", "sbatch", "scontrol", "scancel"):
            (tmp_path / name).write_text(scripts.get(name, recorded), encoding="utf-8")
            (tmp_path / name).chmod(0o755)

    return use


def submission(job, task, indices=None, known=True):
    token = f"{scheduler.new_token(RUN)[:-16]}{job:016d}"
    return Submission(token, "seigh", task, indices, job=str(job) if known else None)


SUBMISSIONS = [
    submission(1, "train"),
    submission(2, "measure", (0, 1, 2, 3, 4)),
    submission(3, "merge"),
    submission(4, "decompose"),
    submission(5, "later", (0, 1, 2)),
    submission(6, "analyze", known=False),
    submission(7, "train"),
    submission(8, "held"),
]
ENDED = {
    "1": ("FAILED", "n1", "0:11"),
    "2_0": ("COMPLETED", "n1", "0:0"),
    "2_1": ("FAILED", "n1", "3:0"),
    "2_2": ("FAILED", "n1", "0:9"),
    "4": ("CANCELLED", "", "0:0"),
    "7": ("TIMEOUT", "n1"),  # with a code that differs
}
ALIVE = {"2_3": "RUNNING", "2_4": "JobArrayTaskLimit"} | dict.fromkeys(
    ("5_0", "5_1", "5_2", "6"), "BeginTime"
)
STUCK = {"3": "DependencyNeverSatisfied", "8": "launch failed requeued held"}
NO_ACCOUNTING = "#!/bin/sh\necho Slurm accounting storage is disabled >&2; exit 1\n"


def ended(found):
    """State, node and exit code of the jobs that have ended."""
    told = {e.job: (e.state, e.node, e.exit_code) for e in found.values() if e.ended}
    return {job: said[: len(ENDED[job])] for job, said in told.items()}


@pytest.mark.parametrize("accounting", [True, False])
@pytest.mark.parametrize("version", VERSIONS)
def test_all_versions_say_the_same_of_the_same_jobs(answer, version, accounting):
    answer(version, **({} if accounting else {"sacct": NO_ACCOUNTING}))
    found = scheduler.elements(RUN, SUBMISSIONS, 60)
    tokens = {s.token: str(n) for n, s in enumerate(SUBMISSIONS, start=1)}
    names = {tokens[token] + ("" if i is None else f"_{i}"): e for (token, i), e in found.items()}
    assert all(name == element.job for name, element in names.items())
    assert ended(found) == ENDED
    alive = {n: e.reason if e.pending else e.state for n, e in names.items() if e.alive}
    assert alive == ALIVE
    assert {n: e.outcome for n, e in names.items() if e.stuck} == STUCK


@pytest.mark.parametrize("version", VERSIONS)
def test_sacct_tells_where_squeue_does_not_answer(answer, version):
    answer(version, squeue="#!/bin/sh\nexit 1\n")
    asked = [s for s in SUBMISSIONS if s.task not in ("later", "analyze")]
    found = scheduler.elements(RUN, asked, 60)
    assert ended(found) == ENDED
    alive = {e.job: e.state for e in found.values() if not e.ended and e.job != "2_4"}
    assert alive == {"2_3": "RUNNING", "3": "PENDING", "8": "PENDING"}


@pytest.mark.parametrize("version", VERSIONS)
def test_another_cluster_is_asked_by_all_commands_and_one_that_is_down_is_no_empty_one(
    answer, version, monkeypatch
):
    answer(version)
    monkeypatch.setenv("SLURM_CLUSTERS", "devcluster")
    (element,) = scheduler.elements(RUN, SUBMISSIONS[:1], 60).values()
    assert element.state == "FAILED"  # by sacct, as squeue was asked before there was a job
    assert scheduler.submit("", 0, RUN, SUBMISSIONS[0]) == "9"
    for clusters in ("devcluster,other", "other"):
        monkeypatch.setenv("SLURM_CLUSTERS", clusters)
        with pytest.raises(SlurmError, match="squeue "):
            scheduler.elements(RUN, SUBMISSIONS[5:6], 60)


def test_jobs_with_the_same_id_on_two_clusters_are_two(answer, monkeypatch):
    mine = [submission(1, "train"), replace(submission(2, "train"), job="1")]
    records = [f"MARK|1|N/A|PENDING|None||run.train|{RUN}|{s.token}|MARK" for s in mine]
    header = "MARK|ARRAY_JOB_ID|ARRAY_TASK_ID|STATE|REASON|NODELIST|NAME|WORK_DIR|COMMENT|MARK"
    lists = [f"CLUSTER: {name}\n{header}\n{r}" for name, r in zip("ab", records, strict=True)]
    text = "\n\n".join(lists)  # as squeue of all versions joins them
    answer(
        VERSIONS[0],
        squeue=f"#!/bin/sh\nfor f; do :; done; sed s/MARK/${{f%%|*}}/g <<'END'\n{text}\nEND\n",
        sacct="#!/bin/sh\nexit 1\n",
    )
    monkeypatch.setenv("SLURM_CLUSTERS", "a,b")
    assert {token for token, _ in scheduler.elements(RUN, mine, 60)} == {s.token for s in mine}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_user_whom_the_user_database_does_not_know_has_no_empty_queue(
    answer, version, monkeypatch
):
    answer(version)
    monkeypatch.setattr(scheduler.os, "getuid", lambda: 54321)
    if "Invalid user" in (ANSWERS / f"{version}.txt").read_text(encoding="utf-8"):
        with pytest.raises(SlurmError, match=r"no list of jobs .*54321.*not known which live"):
            scheduler.elements(RUN, SUBMISSIONS[5:6], 60)
    else:  # it takes the number for what it is
        assert scheduler.elements(RUN, SUBMISSIONS[5:6], 60) == {}


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_told_to_slurm_is_answered(answer, version):
    answer(version)
    assert scheduler.submit("", 0, RUN, SUBMISSIONS[0]) == "1"
    assert scheduler.array_size() == 100
    with pytest.raises(
        SlurmError, match=r"^scontrol failed: Job is pending execution for job 6\.$"
    ):
        scheduler.requeue("6")


STATES = {
    "ended": "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED "
    "REVOKED TIMEOUT",
    "waits": "PENDING REQUEUED REQUEUE_FED REQUEUE_HOLD RESV_DEL_HOLD SPECIAL_EXIT",
    "runs": "COMPLETING CONFIGURING EXPEDITING RESIZING RUNNING SIGNALING STAGE_OUT STOPPED "
    "SUSPENDED",
}


@pytest.mark.parametrize("what", STATES)
def test_all_states_are_known(what):
    for state in STATES[what].split():
        element = Element("1", state)
        assert (element.ended, element.pending) == (what == "ended", what == "waits"), state
        assert element.alive == (what != "ended")


@pytest.mark.parametrize(
    "reason",
    [
        *("DependencyNeverSatisfied", "JobHoldMaxRequeue", "launch failed requeued held"),
        "user env retrieval failed requeued held",
    ],
)
def test_a_job_that_slurm_holds_for_ever_is_not_waited_for(reason):
    element = Element("1", "PENDING", reason)
    assert (element.stuck, element.alive, element.outcome) == (True, False, reason)
    assert not Element("1", "COMPLETED", reason).stuck
    assert Element("1", "PENDING", "JobHeldUser").alive
