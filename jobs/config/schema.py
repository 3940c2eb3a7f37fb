"""The keys of an experiment, their types, defaults and bounds.

A `Config` is resolved: what follows from other keys (MISSING here) is there once it is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, DictConfig

from skerch.decompositions.recoveries import RECOVERIES, Round
from skerch.jobs.config.curvatures import CURVATURES, FISHERS
from skerch.jobs.config.methods import METHODS

LARGEST = 2**31 - 1
BLOCKS = 4  # of a task, until one is timed


def _number(default: Any, least: int = 1, most: int = LARGEST) -> Any:
    """A whole number from `least` to `most`."""
    return field(default=default, metadata={"least": least, "most": most})


def _choice(*choices: str) -> Any:
    """One of several words, the first by default."""
    return field(default=choices[0], metadata={"choices": choices})


@dataclass
class Training:
    """How the network is trained, and at which steps its parameters are recorded."""

    optimizer: str = "SGD"  # a class of torch.optim
    lr: float = 0.1
    batch_size: int = _number(100)
    max_steps: int = _number(300, least=0)
    record_steps: list[int] = MISSING  # by default [0, max_steps], or the checkpoints' steps
    eval_samples: int | None = _number(None)  # of a split, for the log; None: all
    seed: int = _number(12345, least=0)
    optimizer_options: dict[str, Any] = field(default_factory=dict)  # passed on: momentum, …
    checkpoints: str | None = None  # a glob of state dicts of a training done elsewhere


@dataclass
class Hessian:
    """Which curvature, of which data, and how its matvecs are computed."""

    curvature: str = _choice(*CURVATURES)
    splits: list[str] = field(default_factory=lambda: ["train", "test"])
    datapoints: int = _number(500)
    subset: str = _choice("balanced", "first")
    batch_size: int | None = _number(None)  # None: all datapoints in one batch
    mode: str = _choice("eval", "train")  # train: batch norm takes the datapoints' own statistics
    param_filter: list[str] | None = None  # globs of parameter names; ! takes away
    dtype: str = _choice("float32", "float64")
    strategy: str = "auto"
    chunk_size: int | None = _number(None)
    memory_format: str = _choice("auto", "preserve", "channels_last")


@dataclass
class Sketch:
    """The measurements and the recovery."""

    kind: str = "sparse_sign"
    recovery: str = _choice("nystrom", "oversampled")
    rounds: Any = "auto"  # a number, or the matvecs of each in a list
    outer: int = _number(100)  # eigenpairs
    inner: int = _number(MISSING)  # matvecs; by default twice outer, at least 40 more
    target: dict[str, Any] | None = None  # at which rounds end: residual or pairs
    probes: int = _number(30, least=2, most=10_000)
    block_size: int = _number(64)
    seed: int = _number(12345, least=0)
    start: Any = None  # whose eigenvectors the first test vectors are: previous, or {step, split}

    def each_round(self) -> list[Round]:
        """The rounds of measurements, in order."""
        recovery = RECOVERIES[self.recovery]
        return recovery.each_round(self.rounds, self.outer, self.inner, self.probes)


@dataclass
class Lanczos:
    """Eigenpairs at an end of the spectrum, one by one."""

    k: int = _number(10)  # eigenpairs
    which: str = _choice("LM", "LA", "SA")  # of largest magnitude, largest, smallest
    tol: float = field(default=1e-4, metadata={"least": 0.0, "most": 1.0})  # ‖Aw - λw‖ over |λ|
    max_products: int | None = _number(None)  # None: as many as there are parameters
    block_size: int = _number(1, most=64)  # vectors in a product
    seed: int = _number(12345, least=0)


@dataclass
class Trace:
    """The sum of all eigenvalues, by random vectors."""

    estimator: str = _choice("xtrace", "hutch++", "hutchinson", "xnystrace")
    products: int = _number(100, least=4)  # at most, where there is a tol
    tol: float | None = field(default=None, metadata={"least": 0.0, "most": 1.0})  # of the error
    deflate: str | None = None  # whose eigenpairs are left to no product: a method's folder
    seed: int = _number(12345, least=0)


@dataclass
class Density:
    """The distribution of all eigenvalues, by stochastic Lanczos quadrature."""

    runs: int = _number(10, least=2)  # random vectors, whose scatter is the error
    steps: int = _number(80)  # products of each
    deflate: str | None = None  # whose eigenpairs are atoms: a method's folder
    seed: int = _number(12345, least=0)


@dataclass
class Kronecker:
    """Factors of the Fisher matrix, as sums over parts of the datapoints."""

    fisher: str = _choice(*FISHERS)
    samples: int = _number(1)  # draws of all labels, of mc
    seed: int = _number(12345, least=0)
    correction: bool | None = None  # of the eigenvalues; None: ekfac's are corrected
    sharing: str = _choice("expand", "reduce")  # of weights over positions, in kfac and ekfac
    include_bias: bool = True
    iterations: int = _number(6, most=1000)  # passes of nearest
    project: int | None = _number(None)  # rows of autocorrelation's sketch; None: whole blocks
    factor_eigh: str = _choice("exact", "sketched")
    rank: int | None = _number(None)  # of a sketched eigendecomposition
    tol: float | None = field(default=None, metadata={"least": 1e-7, "most": 0.99})  # its error
    against: str | None = None  # whose eigenpairs it is compared with: a method's folder
    part_size: int = _number(100)  # examples of a partial sum
    partitions: int = _number(1, most=10_000)  # of the layers, each with passes of its own

    def count_parts(self, datapoints: int) -> int:
        """The parts of so many examples."""
        return -(-datapoints // self.part_size)


@dataclass
class Launcher:
    """How tasks are run."""

    name: str = "auto"  # local, or srun in an allocation
    workers: int = _number(1, most=1024)
    threads: int | None = _number(None, most=1024)  # OpenMP ends the process at too many
    device: str = "auto"
    blocks_per_task: Any = "auto"  # a number, or what suits the time of a block
    fuse: bool = True  # jobs of Slurm: those that would only wait for each other are one
    heals: int = _number(3, least=0, most=100)  # of a failed task, by Slurm's last job
    keep_products: bool = True  # of Krylov methods, on disk until there are results

    @property
    def blocks(self) -> int:
        """The blocks of a task; a few where that is auto, until one is timed."""
        return BLOCKS if self.blocks_per_task == "auto" else int(self.blocks_per_task)


@dataclass
class Config:
    """One experiment."""

    problem: dict[str, Any] = field(default_factory=dict)  # name or factory, and its arguments
    run_dir: str = ""  # by default runs/<the experiment file's name>
    method: str = field(default=next(iter(METHODS)), metadata={"choices": METHODS})
    name: str | None = None  # of the method's folder
    training: Training = field(default_factory=Training)
    hessian: Hessian = field(default_factory=Hessian)
    sketch: Sketch = field(default_factory=Sketch)
    lanczos: Lanczos = field(default_factory=Lanczos)
    trace: Trace = field(default_factory=Trace)
    density: Density = field(default_factory=Density)
    kronecker: Kronecker = field(default_factory=Kronecker)
    masks: dict[str, Any] = field(default_factory=dict)  # files of further masks, by name
    launcher: Launcher = field(default_factory=Launcher)
    cluster: str | None = None
    resources: dict[str, Any] = field(default_factory=dict)
    keep_blocks: bool = True
    consolidate: bool = True
    problem_path: str | None = None  # the folder that problem.factory is imported from


def method_name(config: Config | DictConfig) -> str:
    """The method's folder: what the user calls it, or the method and the curvature."""
    if config.name is not None:
        return str(config.name)
    curvature, method = config.hessian.curvature, str(config.method)
    return method if curvature == "hessian" else f"{method}-{curvature}"
