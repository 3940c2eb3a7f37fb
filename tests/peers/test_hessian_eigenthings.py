"""The tests of hessian-eigenthings 1.0 pass on skerch, whose names, arguments and results are its.

They come from its source distribution, by name; `hessian_eigenthings/` beside this file is skerch
under its name.
"""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

RELEASE = "hessian-eigenthings==1.0.0a5"
DOWNLOAD = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", RELEASE]
NOT_RUN = (
    # these take a network from the Internet
    *("test_hf_lm_loss_runs_on_tiny_gpt2", "test_tlens_loss_runs_on_solu_1l"),
    # these leave out loss_hvp="autograd", which its next version asks for, as skerch does
    *("test_ggn_operator", "test_ggn_matches_curvlinops_cross_entropy"),
)


@pytest.mark.slow
def test_its_own_tests_pass(tmp_path):
    subprocess.run([*DOWNLOAD, "-d", tmp_path], check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    (tests,) = tmp_path.glob("*/tests")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", tests, "-k", f"not ({' or '.join(NOT_RUN)})"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:]
