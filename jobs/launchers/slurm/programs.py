"""A command of Slurm that is run, and what it means where it fails."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence

from skerch.errors import SkerchError

# The shell's variables that say which Slurm is meant. Others, which would override an option or a
# question, have no say.
KEPT = (
    *("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT"),
    *("SLURM_SACK_KEY", "SLURM_SACK_JWKS", "SLURM_SACK_SOCKET"),
)
IGNORED = ("SLURM_", "SBATCH_", "SRUN_", "SQUEUE_", "SCANCEL_", "SACCT_", "SCONTROL_")
WORDS = 300  # characters of what a command printed, at most, in a sentence
PATIENCE = 60.0  # seconds that a command may take, where nothing can be done without it
BUSY = re.compile(
    r"timed? ?out|unexpected message|unable to contact|connect failure|connection re(fused|set)|"
    r"zero bytes|(temporarily|currently) un|try again|not responding|message (send|receive) fail",
    re.IGNORECASE,
)
FULL = re.compile(r"MaxSubmit|MaxJobCount|MaxJobsPer|sleeping and retrying")
POLICY = re.compile(r"job submit limit, user's size")  # with the limit's name, where Slurm says it
PERSISTENCE = "SKERCH_SLURM_PERSISTENCE"  # seconds for which a busy Slurm is asked again: 120
LONGEST_PAUSE = 30.0  # seconds


class SlurmError(SkerchError):
    """Slurm that is not here, does not answer or refuses; the message has its words."""


class BusyError(SlurmError):
    """A controller that is down or has too much to do: asked later, it may answer."""


class NoAnswerError(BusyError):
    """A command of Slurm that may have done what it was told: it did not answer in time."""


class FullError(SlurmError):
    """A job that was not taken, as there are as many as there may be."""


def overruled() -> list[str]:
    """The shell's variables with which sbatch would override a script; they are kept from it."""
    return sorted(name for name in os.environ if name.startswith("SBATCH_"))


def environment() -> dict[str, str]:
    """The shell's, without the variables that would override an option of Slurm's commands."""
    return {
        key: value
        for key, value in os.environ.items()
        if key in KEPT or not key.startswith(IGNORED)
    }


def again() -> Iterator[None]:
    """Attempts at what a busy Slurm refuses, with longer and longer pauses between."""
    given = os.environ.get(PERSISTENCE, "")
    end, pause = time.monotonic() + (float(given) if given.isdecimal() else 120.0), 1.0
    yield
    while time.monotonic() + pause < end:
        time.sleep(pause * random.uniform(0.7, 1.3))  # not all who wait at once
        pause = min(2 * pause, LONGEST_PAUSE)
        yield


def call(command: list[str], *, patience: float) -> subprocess.CompletedProcess[str]:
    """A command of Slurm that has ended well; a SlurmError where it fails or does not answer.

    A busy Slurm is asked again, where there is patience.
    """
    for _ in again() if patience >= PATIENCE else [None]:
        try:
            return call_once(command, patience)
        except NoAnswerError:
            raise
        except BusyError as error:
            busy = error
    raise busy


def call_once(
    command: list[str], patience: float, text: str | None = None, keep: Sequence[int] = ()
) -> subprocess.CompletedProcess[str]:
    name = command[0]
    if shutil.which(name) is None:
        raise SlurmError(f"{name} is not on PATH: use a machine from which jobs are submitted.")
    try:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=patience,
            env=environment(),
            pass_fds=keep,
            stdin=None if text is not None else subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise NoAnswerError(
            f"{name} does not answer within {patience:g} s. Try again later."
        ) from None
    except OSError as error:
        raise SlurmError(f"{name} cannot be run: {error}.") from error
    if done.returncode:
        said = re.sub(rf"{name}: (error|fatal): ", "", done.stderr)
        words = "; ".join(line.strip(" .") for line in said.splitlines() if line.strip())
        raise _refusal(words)(f"{name} failed: {words[:500] or f'exit status {done.returncode}'}.")
    return done


def _refusal(words: str) -> type[SlurmError]:
    """The kind of a refusal, by Slurm's words."""
    named = re.search(r"\w+Limit\b", words)
    if FULL.search(words) or (POLICY.search(words) and not named):
        return FullError
    return BusyError if BUSY.search(words) else SlurmError
