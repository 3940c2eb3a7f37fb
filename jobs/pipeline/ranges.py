"""Task numbers as text: 3, 5, 6, 7 is "3,5-7"."""

from __future__ import annotations

from collections.abc import Iterable

from skerch.jobs.errors import ConfigError

MOST = 1_000_000  # numbers, as nobody has more tasks


def format_ranges(numbers: Iterable[int]) -> str:
    """Ascending numbers as a list of ranges."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def parse_ranges(text: str, option: str = "--tasks") -> tuple[int, ...]:
    """The numbers of a list of ranges: "3,5-7" is 3, 5, 6, 7."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        numeric = first.isdecimal() and (last.isdecimal() or not dash)
        if not numeric or not int(first) <= int(last or first) < MOST:
            raise ConfigError(f"{option} {text!r} is not a list of ranges such as 3,5-9.")
        numbers += range(int(first), int(last or first) + 1)
    return tuple(numbers)


def counted(number: int, noun: str) -> str:
    """1 task, 2 tasks."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
