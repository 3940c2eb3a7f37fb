"""Between two rounds: an orthonormal basis of the range that the first one found."""

from __future__ import annotations

from skerch.jobs.stage import Context, main
from skerch.measurements.range_finder import find_range


def run(context: Context) -> None:
    """Write range.h5, whose columns are the second round's test vectors."""
    columns = context.round_size(2).columns
    find_range(context.array(1), context.directory.range, columns)


if __name__ == "__main__":
    main("range_finder")
