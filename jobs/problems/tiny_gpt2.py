"""A small GPT-2 on the bytes of a text: two layers of width 32, 34,688 parameters.

It is Hugging Face's network, built from a config without a download, with its initialisation and
its dropout of 0.1 in training. A sample is 32 bytes, each predicted from those before it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from skerch.curvature.losses import hf_lm_loss
from skerch.jobs.errors import ConfigError
from skerch.jobs.problems import Problem
from skerch.jobs.problems._classification import is_test
from skerch.randomness import stream

BYTES, LENGTH = 256, 32
TEST_SHARE = 0.1  # of a text, at its end


def tiny_gpt2(root: str | None = None, synthetic: bool = False) -> Problem:
    """The problem; `root` is a text file, the last tenth of which is the test split.

    With `synthetic` the text is a random walk over the bytes, and needs no file.
    """

    def data(split: str) -> _Sequences:
        text = _walk() if synthetic else _read(root)
        begin = round(len(text) * (1 - TEST_SHARE)) // LENGTH * LENGTH
        return _Sequences(text[begin:] if is_test(split) else text[:begin])

    return Problem(_model, data, hf_lm_loss())


class _Sequences(Dataset[dict[str, Tensor]]):
    """Consecutive pieces of a text (n,), each both input and labels."""

    def __init__(self, text: Tensor):
        self.pieces = text[: len(text) // LENGTH * LENGTH].view(-1, LENGTH)

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        piece = self.pieces[index].long()
        return {"input_ids": piece, "labels": piece}


def _model() -> nn.Module:
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"tiny_gpt2 needs Transformers ({error}); pip install transformers."
        ) from error
    options: dict[str, Any] = {"attn_implementation": "eager"}  # some versions do not declare it
    config = GPT2Config(
        vocab_size=BYTES,
        n_positions=LENGTH,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
        **options,
    )
    model: nn.Module = GPT2LMHeadModel(config)
    return model


def _read(root: str | None) -> Tensor:
    """The bytes (n,) of a text file."""
    way_out = "give a text file, or set problem.synthetic=true"
    if root is None:
        raise ConfigError(f"problem.root is missing; {way_out}.")
    try:
        text = bytearray(Path(root).read_bytes())
    except OSError as error:
        raise ConfigError(f"problem.root: {root} cannot be read ({error}); {way_out}.") from error
    if len(text) < LENGTH / TEST_SHARE:
        raise ConfigError(
            f"problem.root: {root} has {len(text)} bytes, fewer than {LENGTH / TEST_SHARE:.0f}; "
            f"{way_out}."
        )
    return torch.frombuffer(text, dtype=torch.uint8)


def _walk(steps: int = 352_000) -> Tensor:
    """A text of a Markov chain: after each byte come four, in equal parts."""
    random = stream(0, "synthetic")
    following = random.integers(BYTES, size=(BYTES, 4)).tolist()
    text = [0]
    for choice in random.integers(4, size=steps - 1).tolist():
        text.append(following[text[-1]][choice])
    return torch.tensor(text, dtype=torch.uint8, device="cpu")
