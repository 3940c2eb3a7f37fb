"""The stages that tasks are of: one row each, which says all that others know of one.

A stage's work is `run(context)` of the module of its name in `skerch.jobs.stages`.
"""

from __future__ import annotations

from dataclasses import dataclass

BLOCKS = ", or take a smaller sketch.block_size, under another name"


@dataclass(frozen=True)
class Stage:
    """What pipeline, launchers and commands know of a stage."""

    name: str
    resumes: str | None = None  # a task that was stopped goes on from its last … , in a word
    sooner: str = ""  # what else than a longer time brings it to the next one, in words
    shared: bool = False  # MPI ranks do a task together
    array: bool = False  # its tasks are those of an array, by number
    result: bool = False  # users want its outputs; those of others are only read by later tasks
    first_round: int | None = None  # the first of those of which each task is one, by number
    resources_of: str | None = None  # the stage whose resources it has, under its own


STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            "train",
            resumes="checkpoint",
            sooner=", or lower training.eval_samples if evaluations take long",
            result=True,
        ),
        Stage("layout", first_round=1, resources_of="measure"),  # which times matvecs for workers
        Stage("measure", resumes="block", sooner=BLOCKS, shared=True, array=True, first_round=1),
        Stage("range_finder", shared=True, first_round=2),  # 1 where there is a start
        Stage(  # all of them in one
            "rounds", resumes="block", sooner=BLOCKS, shared=True, resources_of="measure"
        ),
        Stage("merge", shared=True),
        Stage("decompose", shared=True, result=True),
        Stage("analyze", result=True),
        Stage("lanczos", result=True, resources_of="measure"),
        Stage("trace", result=True, resources_of="measure"),
        Stage("density", result=True, resources_of="measure"),
    )
}
