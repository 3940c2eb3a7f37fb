"""The command: print tables, or fill them into their documents."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.harness import ROOT, Options, run, say, tables


def main() -> None:
    """Exit status 1 if a figure falls short of its target, 2 if one cannot be had."""
    found = tables()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f"{main.__doc__}\n\n"
        + "\n".join(f"{name:12} {(m.__doc__ or '').splitlines()[0]}" for name, m in found.items()),
    )
    targets = sorted({module.BENCHMARK.make for module in found.values()})
    parser.add_argument("names", nargs="*", metavar="NAME", help="tables to print, of the above")
    parser.add_argument("--make", choices=targets, help="fill in all tables of this target")
    parser.add_argument("--quick", action="store_true", help="from less work, on one thread")
    root = ROOT.parent / "shared" / "data"
    parser.add_argument("--root", type=Path, default=root, help="the folder that holds MNIST/raw")
    given = parser.parse_args()
    if unknown := set(given.names) - found.keys():
        parser.error(f"there is no table {', '.join(unknown)}; there are {', '.join(found)}.")
    options = Options(given.quick, given.root.absolute())
    if not (given.names or given.make or given.quick):
        parser.error("name a table, or give --make TARGET or --quick.")
    if given.make:
        belongs = {name: module.BENCHMARK for name, module in found.items()}
        wanted = {name: b.document for name, b in belongs.items() if b.make == given.make}
        sys.exit(max(fill(name, document, options) for name, document in wanted.items()))
    if given.quick:  # what else the machine does slows threads that wait for each other
        import torch

        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)
    names = given.names or [name for name, module in found.items() if module.BENCHMARK.quick]
    sys.exit(max(run(found[name], options) for name in names))


def fill(name: str, document: str, options: Options) -> int:
    """Measure a table in a process of its own, and put it into its document; the exit status."""
    say(f"{name}, for {document}")
    command = [sys.executable, "-m", "benchmarks", name, "--root", str(options.root)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    if done.returncode < 2:
        insert = [sys.executable, "docs/insert.py", document, name]
        subprocess.run(insert, input=done.stdout, text=True, check=True, cwd=ROOT)
    return done.returncode


if __name__ == "__main__":
    main()
