"""The curvatures that can be asked for: one row each.

A curvature is a `LossCurvature` of this class in the module of its name in `skerch.curvature`.
"""

CURVATURES = {
    "hessian": "HessianOperator",
    "ggn": "GGNOperator",
    "fisher": "FisherOperator",
    "empirical_fisher": "EmpiricalFisherOperator",
}

FISHERS = {  # whose Kronecker factors can be asked for, and the curvature that each is
    "type2": "fisher",
    "mc": "fisher",
    "empirical": "empirical_fisher",
}
