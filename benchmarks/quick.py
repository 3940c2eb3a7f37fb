"""The figures of the benchmarks from less work, in two minutes: does a change make something slow?

    python benchmarks/quick.py

In one process, as to import torch for each takes long. Exit status 1 if a target is missed.
"""

import sys
import traceback
from importlib import import_module

import torch

BENCHMARKS = ("start", "columns", "matvecs", "hessian", "out_of_core", "scale")


def main() -> None:
    """The command."""
    threads, failed = torch.get_num_threads(), False
    for name in BENCHMARKS:
        sys.argv = [f"{name}.py", "--quick"]
        torch.set_num_threads(threads)
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
