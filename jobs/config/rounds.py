"""How many Hessian products in how many rounds: what is not asked for, and what a run there has.

A run grows by further rounds, which are found in the measurements of those before and are none
larger. So what is measured stays first in every later plan.
"""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from skerch.decompositions import recoveries
from skerch.jobs.config.schema import Sketch


def resolve_rounds(
    sketch: DictConfig, launcher: DictConfig, there: Sketch | None, queued: bool
) -> None:
    """Fill in `inner` and `rounds` of a section; `there` is that of the run that is to go on.

    Where it is `queued`, each round's tasks wait for a scheduler. A start is for few rounds, too.
    """
    recipe = recoveries.RECOVERIES.get(sketch.recovery)
    bound = sketch.target is not None  # inner is the most that the target may take
    listed = list(sketch.rounds) if OmegaConf.is_list(sketch.rounds) else []
    if OmegaConf.is_missing(sketch, "inner"):
        if listed and all(type(number) is int and number > 0 for number in listed):
            sketch.inner = sum(listed)
        else:
            sketch.inner = recoveries.default_inner(sketch.outer, bound)
            enough = there and there.outer >= sketch.outer and there.target == sketch.target
            if there and (enough or there.inner > sketch.inner):
                sketch.inner = there.inner
    if there and listed == there.rounds and recipe and sketch.inner > there.inner:
        sketch.rounds = recoveries.further_rounds(listed, sketch.inner, listed[-1])
    number = sketch.rounds
    if number == "auto" and recipe:
        shared = 1 if launcher.workers == 1 else launcher.workers * sketch.block_size
        most = -(-sketch.outer // 2) if bound else sketch.inner
        columns = most if queued or sketch.start is not None else shared
        number = recoveries.default_rounds(
            sketch.recovery, sketch.outer, sketch.inner, columns, bound
        )
    if type(number) is int:
        sketch.rounds = _grown_rounds(there, sketch, number) if there and recipe else number
        if sketch.start is not None and recipe and 1 < number == sketch.rounds <= sketch.inner:
            sketch.rounds = recoveries.started_rounds(sketch.outer, sketch.inner, number)


def _grown_rounds(there: Sketch, sketch: DictConfig, number: int) -> int | list[int]:
    """The rounds that are there and as many as asked for in all, or `auto`, as far as they fit.

    Where `inner` has grown and the number has not, further ones are as large as the last.
    """
    measured = [each.columns for each in there.each_round()]
    first = measured[:number]
    more, further = sketch.inner - there.inner, number - len(measured)
    grown = isinstance(there.rounds, list) and first == recoveries.split(sum(first), number)
    if more == 0 and (sketch.rounds == "auto" or grown):
        return there.rounds  # type: ignore[no-any-return]
    columns = measured[-1]
    if sketch.rounds == "auto":
        columns = min(columns, -(-sketch.inner // number))
    elif further > 0:
        columns = -(-more // further)
    if more < 1 or columns > measured[-1]:
        return number
    return recoveries.further_rounds(measured, sketch.inner, columns)
