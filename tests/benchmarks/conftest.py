"""Scripts of the benchmarks' folder import each other as siblings, and so do their tests."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
