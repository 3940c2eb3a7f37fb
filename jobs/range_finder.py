"""Between two rounds: an orthonormal basis of the range that the first one found."""

from __future__ import annotations

from skerch.decompositions.recovery import RECOVERIES
from skerch.jobs.stage import Context, main
from skerch.measurements.range_finder import find_range


def run(context: Context) -> None:
    """Write range.h5, whose columns are the second round's test vectors."""
    sketch = context.config.sketch
    sizes = RECOVERIES[sketch.recovery].sizes(
        sketch.rounds, sketch.outer, sketch.inner, sketch.probes
    )
    find_range(context.array(1), context.directory.range, sizes[1].columns)


if __name__ == "__main__":
    main("range_finder")
