"""Curvature of a network's loss as linear operators on its parameters."""

from skerch.curvature.base import CurvatureOperator, LambdaOperator
from skerch.curvature.batching import count_examples, split_batch, to_device
from skerch.curvature.distributed import (
    DDPEmpiricalFisherOperator,
    DDPFisherOperator,
    DDPGGNOperator,
    DDPHessianOperator,
)
from skerch.curvature.empirical_fisher import EmpiricalFisherOperator
from skerch.curvature.fisher import FisherOperator, Numbered
from skerch.curvature.ggn import GGNOperator
from skerch.curvature.hessian import HessianOperator
from skerch.curvature.losses import (
    cross_entropy_loss_of_output,
    hf_lm_forward,
    hf_lm_loss,
    hf_lm_loss_of_output,
    hf_seq2seq_loss,
    label_weight,
    mse_loss_of_output,
    supervised_forward,
    supervised_loss,
    supervised_loss_of_output,
    supervised_per_sample_loss,
    tlens_forward,
    tlens_loss,
    tlens_loss_of_output,
)
from skerch.curvature.operator import LossCurvature
from skerch.curvature.parameters import (
    ParamFilter,
    load_vector,
    match_names,
    match_regex,
    params_to_vector,
    select_parameters,
    total_size,
    vector_to_params,
)

__all__ = [
    "CurvatureOperator",
    "DDPEmpiricalFisherOperator",
    "DDPFisherOperator",
    "DDPGGNOperator",
    "DDPHessianOperator",
    "EmpiricalFisherOperator",
    "FisherOperator",
    "GGNOperator",
    "HessianOperator",
    "LambdaOperator",
    "LossCurvature",
    "Numbered",
    "ParamFilter",
    "count_examples",
    "cross_entropy_loss_of_output",
    "hf_lm_forward",
    "hf_lm_loss",
    "hf_lm_loss_of_output",
    "hf_seq2seq_loss",
    "label_weight",
    "load_vector",
    "match_names",
    "match_regex",
    "mse_loss_of_output",
    "params_to_vector",
    "select_parameters",
    "split_batch",
    "supervised_forward",
    "supervised_loss",
    "supervised_loss_of_output",
    "supervised_per_sample_loss",
    "tlens_forward",
    "tlens_loss",
    "tlens_loss_of_output",
    "to_device",
    "total_size",
    "vector_to_params",
]
