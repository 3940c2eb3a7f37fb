"""The figures of the benchmarks from less work, in two minutes: does a change make something slow?

    python benchmarks/quick.py

In one process, as to import torch for each takes long, and on one thread: what else the machine
does slows threads that wait for each other many times over. Exit status 1 if a target is missed.
"""

import os
import sys
import traceback
from importlib import import_module

import torch

BENCHMARKS = ("start", "columns", "matvecs", "hessian", "out_of_core", "scale")


def main() -> None:
    """The command."""
    failed = False
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    for name in BENCHMARKS:
        sys.argv = [f"{name}.py", "--quick"]
        try:
            import_module(name).main()
        except SystemExit as end:
            failed |= bool(end.code)
        except Exception:
            traceback.print_exc()
            failed = True
    sys.exit(failed)


if __name__ == "__main__":
    main()
