"""hessian-eigenthings 1.0, all of whose public names are skerch's, for its own tests."""

import sys
from itertools import islice
from types import ModuleType

from skerch import curvature, krylov

__version__ = "skerch"
MODULES = (
    *("operators", "operators.base", "operators.distributed", "algorithms", "algorithms.lanczos"),
    *("algorithms.power_iteration", "algorithms.trace", "algorithms.spectral_density"),
    *("algorithms.result", "loss_fns", "loss_fns.standard", "loss_fns.huggingface", "linalg"),
    *("loss_fns.transformer_lens", "param_utils", "batching"),
)
NAMES = {name: getattr(place, name) for place in (krylov, curvature) for name in place.__all__}
NAMES |= {
    "assert_microbatch_safe": curvature.assert_microbatch_safe,
    "iterate_batches": lambda batches, num_batches=None: islice(batches, num_batches),
    "move_batch_to_device": curvature.to_device,
}
globals().update(NAMES)
for path in MODULES:
    module = ModuleType(f"{__name__}.{path}")
    module.__dict__.update(NAMES, __path__=[])
    sys.modules[module.__name__] = module
