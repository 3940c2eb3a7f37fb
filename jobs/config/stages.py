"""The stages that tasks are of: one row each, which says all that others know of one.

A stage's work is `run(context)` of the module of its name in `skerch.jobs.stages`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """What pipeline, launchers and commands know of a stage."""

    name: str
    resumes: bool = False  # a task that was stopped goes on where it was
    shared: bool = False  # MPI ranks do a task together
    array: bool = False  # its tasks are those of an array, by number
    result: bool = False  # users want its outputs; those of others are only read by later tasks
    resources_of: str | None = None  # the stage whose resources it has, under its own


STAGES = {
    stage.name: stage
    for stage in (
        Stage("train", resumes=True, result=True),
        Stage("layout", resources_of="measure"),  # which times matvecs for the workers
        Stage("measure", resumes=True, shared=True, array=True),
        Stage("range_finder", shared=True),
        Stage("rounds", resumes=True, shared=True, resources_of="measure"),  # all of them in one
        Stage("merge", shared=True),
        Stage("decompose", shared=True, result=True),
        Stage("analyze", result=True),
    )
}
