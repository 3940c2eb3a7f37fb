"""GPT-2 with random parameters, on random tokens: nothing is downloaded."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.data import Dataset

from skerch.curvature.losses import hf_lm_loss
from skerch.jobs.problems import Problem


class Tokens(Dataset[dict[str, Tensor]]):
    """Sequences of random tokens."""

    def __init__(self, sequences: int, length: int, vocabulary: int, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.tokens = torch.randint(vocabulary, (sequences, length), generator=generator)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


def make(
    sequences: int = 8,
    length: int = 64,
    layers: int = 12,
    width: int = 768,
    heads: int = 12,
    vocabulary: int = 50257,
) -> Problem:
    """By default the smallest one of Radford et al. (2019), of 124 million parameters."""

    def model() -> Module:
        from transformers import GPT2Config, GPT2LMHeadModel

        torch.manual_seed(0)
        sizes = {"n_layer": layers, "n_embd": width, "n_head": heads, "vocab_size": vocabulary}
        ends = {"bos_token_id": 0, "eos_token_id": 0}
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return GPT2LMHeadModel(GPT2Config(**sizes, **ends, **dropout))

    def data(split: str) -> Tokens:
        return Tokens(sequences, length, vocabulary, seed=int(split == "test"))

    return Problem(model, data, hf_lm_loss())
