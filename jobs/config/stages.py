"""The stages that tasks are of: one row each, which says all that others know of one.

A stage's work is `run(context)` of the module of its name in `skerch.jobs.stages`.
"""

from __future__ import annotations

from dataclasses import dataclass

BLOCKS = ", or take a smaller sketch.block_size, under another name"
PARTS = ", or take a smaller kronecker.part_size, under another name"


@dataclass(frozen=True)
class Stage:
    """What pipeline, launchers and commands know of a stage."""

    name: str
    resumes: str | None = None  # a task that was stopped goes on from its last … , in a word
    sooner: str = ""  # what else than a longer time brings it to the next one, in words
    shared: bool = False  # MPI ranks do a task together
    array: bool = False  # its tasks are those of an array, by number
    result: bool = False  # users want its outputs; those of others are only read by later tasks
    brief: bool = False  # it takes seconds, beside a wait in a queue
    once: bool = False  # several at once do no harm: all go by what the first has written
    first_round: int | None = None  # the first of those of which each task is one, by number
    resources_of: str | None = None  # the stage whose resources it has, under its own


REPORT = Stage("report", resources_of="analyze")  # of no method: it ends a chain of jobs
STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            "train",
            resumes="checkpoint",
            sooner=", or lower training.eval_samples if evaluations take long",
            result=True,
        ),
        Stage(  # which times matvecs for workers
            "layout", brief=True, once=True, first_round=1, resources_of="measure"
        ),
        Stage("measure", resumes="block", sooner=BLOCKS, shared=True, array=True, first_round=1),
        Stage("range_finder", shared=True, brief=True, first_round=2),  # 1 where there is a start
        Stage(  # all of them in one
            "rounds", resumes="block", sooner=BLOCKS, shared=True, resources_of="measure"
        ),
        Stage("merge", shared=True, brief=True),
        Stage("decompose", shared=True, brief=True, result=True),
        Stage("analyze", brief=True, result=True),
        Stage("lanczos", result=True, resources_of="measure"),
        Stage("trace", result=True, resources_of="measure"),
        Stage("density", result=True, resources_of="measure"),
        Stage("layers", brief=True, once=True, result=True, resources_of="measure"),
        Stage(
            "factors",
            resumes="part",
            sooner=PARTS,
            shared=True,
            array=True,
            first_round=1,
            resources_of="measure",
        ),
        Stage(
            "factors_merge",
            shared=True,
            brief=True,
            array=True,
            first_round=1,
            resources_of="merge",
        ),
        Stage("eigenbasis", shared=True, array=True, result=True, resources_of="merge"),
        Stage(
            "correction",
            resumes="part",
            sooner=PARTS,
            shared=True,
            array=True,
            resources_of="measure",
        ),
        Stage(
            "correction_merge",
            shared=True,
            brief=True,
            array=True,
            result=True,
            resources_of="merge",
        ),
        Stage("assess", result=True, resources_of="measure"),
        REPORT,
    )
}
