"""What is of a network, and of torch, that computing with it must not change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn import Module


@contextmanager
def unchanged(model: Module, device: torch.device) -> Iterator[None]:
    """Afterwards, buffers, modes and random numbers are as before, also after an exception.

    Modes are those of training and evaluation, random numbers those of torch, of the CPU and the
    device: a DataLoader draws one where it begins, dropout more.
    """
    modes = [(module, module.training) for module in model.modules()]
    held = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and buffer.layout == torch.strided
    ]
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        for module, training in modes:
            module.training = training
        for module, name, buffer, value in held:
            module._buffers[name] = buffer
            if not torch.equal(buffer, value):  # batch norm does not count it as a new version
                with torch.no_grad():
                    buffer.copy_(value)
