"""The house as a whole: its floors, its packaging, and documents that say what the code does."""

from __future__ import annotations

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields, is_dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import get_type_hints

import pytest

import skerch
from skerch.jobs.config.schema import Config

ROOT = Path(__file__).parents[1]
FLOORS = ["skerch", "analysis", "jobs"]
ROOMS = {  # of each folder: an import points to a room further up, or to its own
    "skerch": [
        "linops",
        "sketch_operators",
        "measurements",
        "decompositions",
        "krylov",
        "kronecker",
    ],
    "analysis": [],
    "jobs": [
        *("errors", "problems", "config", "run_dir", "pipeline", "training", "stages"),
        *("launchers", "commands"),
    ],
}
ROOFS = ("skerch/__main__.py", "jobs/launchers/mpi/__main__.py")  # programs of a person
EXPERIMENT = """
problem: {name: digits_mlp}
training: {max_steps: 2}
hessian: {splits: [test], datapoints: 50}
sketch: {outer: 3}
"""


def place(name):
    """The floor and the room, if it is of one, of a module by its dotted name."""
    folder, *parts = name.removeprefix("skerch.").split(".") if "." in name else [name]
    if folder not in FLOORS[1:]:
        folder, parts = "skerch", [folder, *parts]
    rooms = ROOMS[folder]
    room = rooms.index(parts[0]) if parts and parts[0] in rooms else None
    return FLOORS.index(folder), room


def modules():
    """The files of the package by their dotted names."""
    for folder in FLOORS:
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts if folder == "skerch" else ("skerch", *parts))
            yield name.removesuffix(".__init__"), path


def imports(files, tree):
    """The modules of ours that a module imports, at its top or inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            wholes = {f"{node.module}.{alias.name}" for alias in node.names} & files.keys()
            yield from wholes or {node.module} & files.keys()
        elif isinstance(node, ast.Import):
            yield from {alias.name for alias in node.names} & files.keys()


class WithoutTypes(ast.NodeTransformer):
    """Leaves out what is imported for type hints only, which may point up within a room."""

    def visit_If(self, node):
        return None if getattr(node.test, "id", None) == "TYPE_CHECKING" else node


def test_imports_point_down_the_floors_and_rooms():
    files = dict(modules())
    for name, path in files.items():
        if str(path.relative_to(ROOT)) in ROOFS:
            continue
        floor, room = place(name)
        for other in imports(files, ast.parse(path.read_text(encoding="utf-8"))):
            other_floor, other_room = place(other)
            assert other_floor <= floor, f"{name} imports {other}"
            if other_floor == floor and None not in (room, other_room):
                assert other_room <= room, f"{name} imports {other}"


def test_no_modules_import_each_other_in_a_circle():
    files = dict(modules())
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in files.items()}
    graph = {name: {*imports(files, WithoutTypes().visit(tree))} for name, tree in trees.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names them


def test_every_module_of_jobs_is_in_a_room():
    for name, path in modules():
        if place(name)[0] == FLOORS.index("jobs") and name != "skerch.jobs":
            assert place(name)[1] is not None, path


def test_load_is_the_one_name_of_the_library_that_lives_on_a_floor_above():
    above = [name for name, home in skerch._MODULES.items() if place(home)[0] > 0]
    assert above == ["load"]


@pytest.mark.parametrize("folder", FLOORS)
def test_text_files_are_utf_8_in_every_locale(folder):
    for path in (ROOT / folder).rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call):
                name = getattr(call.func, "attr", getattr(call.func, "id", None))
                texts = [a.value for a in call.args if isinstance(a, ast.Constant)]
                is_text = name == "open" and any(
                    re.fullmatch(r"[rwax]\+?t?", str(t)) for t in texts
                )
                if name in ("read_text", "write_text") or is_text:
                    assert "encoding" in [k.arg for k in call.keywords], f"{path}:{call.lineno}"


@pytest.mark.parametrize("folder", FLOORS)
def test_tensors_are_made_on_a_device_that_is_named(folder):
    """Else torch's default device, which is the user's, would decide."""
    makers = {"arange", "as_tensor", "asarray", "empty", "eye", "full", "linspace", "logspace"}
    makers |= {"ones", "rand", "randint", "randn", "randperm", "tensor", "zeros"}
    for path in (ROOT / folder).rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                owner = getattr(call.func.value, "id", None)
                if owner == "torch" and call.func.attr in makers:
                    assert "device" in [k.arg for k in call.keywords], f"{path}:{call.lineno}"


def test_every_package_is_shipped():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    shipped = set(setup["options"]["packages"].split())
    for folder in ("skerch", "analysis", "jobs", "config", "slurm"):
        for path in (ROOT / folder).rglob("__init__.py"):
            parts = path.parent.relative_to(ROOT).parts
            assert ".".join(parts if parts[0] == "skerch" else ("skerch", *parts)) in shipped


def test_every_key_of_an_experiment_is_documented():
    text = (ROOT / "docs" / "experiment.md").read_text()
    for section, hint in get_type_hints(Config).items():
        if section in ("problem_path", "cluster", "resources"):
            continue
        keys = [f.name for f in fields(hint)] if is_dataclass(hint) else []
        for key in keys:
            assert f"`{section}.{key}`" in text or f"`.{key}`" in text, f"{section}.{key}"
        assert f"`{section}" in text


def test_the_readmes_example_runs():
    readme = (ROOT / "README.md").read_text()
    example = readme.split("```python\n")[1].split("```")[0]
    namespace = {}
    exec(example, namespace)
    assert namespace["result"].eigenvalues.shape == (20,)


@pytest.fixture
def elsewhere(tmp_path):
    """A folder with packages `jobs` and `analysis` of its own, that must not be imported."""
    for name in ("jobs", "analysis"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong package')")
    (tmp_path / "small.yaml").write_text(EXPERIMENT)
    return tmp_path


def run_in(folder, **environment):
    return subprocess.run(
        [sys.executable, "-m", "skerch", "run", "small.yaml", "launcher.workers=2"],
        cwd=folder,
        env=os.environ | environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_an_editable_install_runs_beside_folders_of_the_same_names(elsewhere):
    assert "3 eigenpairs from 43 matvecs" in run_in(elsewhere)


@pytest.mark.slow
def test_a_wheel_runs_beside_folders_of_the_same_names(elsewhere, tmp_path_factory):
    built = tmp_path_factory.mktemp("wheel")
    outside = shutil.ignore_patterns(".*", "runs", "build", "*.egg-info")
    source = shutil.copytree(ROOT, built / "source", ignore=outside)
    pip = [sys.executable, "-m", "pip", "--quiet"]
    options = ["--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "wheel", *options, "--wheel-dir", built, source], check=True)
    (wheel,) = built.glob("skerch-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", built / "site", wheel], check=True)
    site = str(built / "site")
    assert "3 eigenpairs from 43 matvecs" in run_in(elsewhere, PYTHONPATH=site)
    where = subprocess.run(
        [sys.executable, "-c", "import skerch.jobs, skerch.config; print(skerch.jobs.__file__)"],
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": site},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert where.startswith(site)
    assert (built / "site" / "skerch" / "config" / "experiment" / "digits.yaml").exists()
