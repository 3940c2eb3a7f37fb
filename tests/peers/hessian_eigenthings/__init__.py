"""hessian-eigenthings 1.0, all of whose public names are skerch's, for its own tests.

Its tests also use some private names, which stand for public ones of skerch here.
"""

import sys
from itertools import islice
from types import ModuleType

import torch

from skerch import curvature, krylov
from skerch.curvature import losses
from skerch.curvature.batching import check_microbatches
from skerch.curvature.losses.softmax_product import softmax_product

__version__ = "skerch"
MODULES = (
    *("operators", "operators.base", "operators.distributed", "algorithms", "algorithms.lanczos"),
    *("algorithms.power_iteration", "algorithms.trace", "algorithms.spectral_density"),
    *("algorithms.result", "loss_fns", "loss_fns.standard", "loss_fns.huggingface", "linalg"),
    *("loss_fns.transformer_lens", "loss_fns._fused_ce_hvp", "param_utils", "batching"),
)
NAMES = {
    name: getattr(place, name) for place in (krylov, losses, curvature) for name in place.__all__
}
NAMES |= {
    "assert_microbatch_safe": check_microbatches,
    "iterate_batches": lambda batches, num_batches=None: islice(batches, num_batches),
    "move_batch_to_device": curvature.to_device,
}


class LossOfOutputWithHvp:
    """A loss of outputs, and its product."""

    def __init__(self, loss, hvp):
        self.loss, self.hvp = loss, hvp

    def __call__(self, output, batch):
        return self.loss(output, batch)


def product(backend):
    """Of logits (n, classes) and vectors, at the n positions that are valid, over so many."""
    return lambda z, u, valid, n: softmax_product(z, u, (valid / n)[:, None], 1, backend)


NAMES |= {
    "_LossOfOutputWithHvp": LossOfOutputWithHvp,
    "_ce_hvp_reference": product("eager"),
    "_hf_lm_ce_hvp_eager": product("eager"),
    "compiled_ce_hvp": product("compile"),
    "triton_ce_hvp": product("triton"),
    "_triton_available": torch.cuda.is_available,
    "_hf_lm_ce_hvp": lambda logits, batch, u, backend: losses.hf_lm_loss_of_output(
        fused=backend
    ).hvp(logits, batch, u),
}
globals().update(NAMES)
for path in MODULES:
    module = ModuleType(f"{__name__}.{path}")
    module.__dict__.update(NAMES, __path__=[])
    sys.modules[module.__name__] = module
