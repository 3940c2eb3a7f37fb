"""Curvature of a network's loss as linear operators on its parameters."""

from skerch.curvature.base import CurvatureOperator, LambdaOperator
from skerch.curvature.batching import count_examples, split_batch, to_device
from skerch.curvature.hessian import HessianOperator
from skerch.curvature.losses import label_weight, supervised_loss
from skerch.curvature.operator import LossCurvature
from skerch.curvature.parameters import params_to_vector, select_parameters, vector_to_params

__all__ = [
    "CurvatureOperator",
    "HessianOperator",
    "LambdaOperator",
    "LossCurvature",
    "count_examples",
    "label_weight",
    "params_to_vector",
    "select_parameters",
    "split_batch",
    "supervised_loss",
    "to_device",
    "vector_to_params",
]
