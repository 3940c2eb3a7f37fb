"""How long a part's sums and the eigendecompositions take here."""

from __future__ import annotations

from typing import Any

from skerch.curvature.batching import to_device
from skerch.jobs.commands.calibrate import operator_here, repeated
from skerch.jobs.commands.check import sample_inputs
from skerch.jobs.config import Config
from skerch.jobs.pipeline.kronecker import is_corrected
from skerch.jobs.problems import user_code
from skerch.jobs.stages.kronecker import batches
from skerch.kronecker.checks import layers_of
from skerch.kronecker.correction import Correction
from skerch.kronecker.fit import eigenbases, factors_of
from skerch.kronecker.methods import make
from skerch.kronecker.methods.autocorrelation import Autocorrelation
from skerch.kronecker.methods.base import Method
from skerch.kronecker.sums import sum_up


def seconds(config: Config) -> dict[str, float]:
    """The seconds of a part in stages that sum, and of all in the eigenbasis, by stage."""
    asked, options = config.kronecker, dict[str, Any]()
    if config.method == "autocorrelation":
        options = {"project": asked.project, "seed": asked.seed}
    elif config.method in ("kfac", "ekfac"):
        options = {"sharing": asked.sharing}
    method: Method = make(config.method, **options)
    with operator_here(config, "factors") as opened, user_code("A part cannot be summed up"):
        op: Any = opened
        layers = layers_of(op, include_bias=asked.include_bias).covered
        data = to_device(sample_inputs(config).data, op.device, op.precision)
        op.dataloader = batches(config, op, data, 0)
        factors = factors_of(method, layers, sum_up(op, layers, method))
        times = {"factors": repeated(lambda: sum_up(op, layers, method))[1]}
        if isinstance(method, Autocorrelation):
            blocks = [(layer, factors[layer.name]) for layer in layers]
            times["eigenbasis"] = repeated(lambda: [method.block(*each) for each in blocks])[0]
            return times
        how = {key: getattr(asked, key) for key in ("factor_eigh", "rank", "tol", "seed")}
        times["eigenbasis"] = repeated(lambda: eigenbases(layers, factors, **how))[0]
        if is_corrected(config):
            pass_ = Correction(eigenbases(layers, factors, **how))
            times["correction"] = repeated(lambda: sum_up(op, layers, pass_))[1]
    return times
