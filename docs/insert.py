"""Put the Markdown on standard input between two markers of a document.

    python tests/jobs/chaos.py --kills 200 | python docs/insert.py docs/reliability.md kills

replaces what stands between `<!-- kills -->` and `<!-- /kills -->`.
"""

from __future__ import annotations

import sys
from pathlib import Path


def insert(text: str, section: str, markdown: str) -> str:
    """The text with Markdown in the place of a section's.

    Raises:
        ValueError: the text has not exactly one such section, or the Markdown is empty.
    """
    begin, end = f"<!-- {section} -->", f"<!-- /{section} -->"
    before, opened, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (opened and closed) or begin in rest or end in before + after:
        raise ValueError(f"it needs {begin} and {end}, in this order, once each.")
    if not markdown.strip():
        raise ValueError("there is nothing on standard input to insert.")
    return f"{before}{begin}\n\n{markdown.strip()}\n\n{end}{after}"


def main() -> None:
    """The command."""
    if len(sys.argv) != 3:
        sys.exit("usage: COMMAND | python docs/insert.py FILE SECTION")
    path, section = Path(sys.argv[1]), sys.argv[2]
    markdown = sys.stdin.read()  # before the file, which others may fill meanwhile
    try:
        path.write_text(insert(path.read_text(), section, markdown))
    except (OSError, ValueError) as error:
        sys.exit(f"{path}: {error}")


if __name__ == "__main__":
    main()
