"""Losses of language models of random weights, against their own, dense matrices, one batch."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from skerch.curvature import FisherOperator, GGNOperator, HessianOperator
from skerch.curvature.losses import (
    hf_lm_forward,
    hf_lm_loss,
    hf_lm_loss_of_output,
    hf_seq2seq_loss,
    tlens_loss,
)
from skerch.errors import SkerchError

from ..cases import assert_close

IGNORED, TOKENS = -100, 11
SIZES = ("layers", "ffn_dim", "attention_heads")


@pytest.fixture
def gpt2(needs):
    needs(find_spec("transformers"), "Transformers: pip install transformers")
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    own = {"n_layer": 1, "n_head": 2, "n_embd": 4, "n_positions": 6, "bos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=TOKENS, eos_token_id=0, **own)).eval().double()


@pytest.fixture
def bart(needs):
    needs(find_spec("transformers"), "Transformers: pip install transformers")
    from transformers import BartConfig, BartForConditionalGeneration

    torch.manual_seed(0)
    sides = {f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in SIZES}
    config = BartConfig(
        vocab_size=TOKENS,
        d_model=4,
        max_position_embeddings=8,
        forced_eos_token_id=None,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
        **sides | {"encoder_layers": 1, "decoder_layers": 1, "decoder_start_token_id": 0},
    )
    return BartForConditionalGeneration(config).eval().double()


def padded(*lengths):
    """Sentences that are padded to the longest, of which the padding has labels to ignore."""
    tokens = torch.randint(1, TOKENS, (len(lengths), 6), generator=torch.Generator().manual_seed(1))
    padding = torch.arange(6) >= torch.tensor(lengths)[:, None]
    return {
        "input_ids": tokens.masked_fill(padding, 0),
        "attention_mask": (~padding).long(),
        "labels": tokens.masked_fill(padding, IGNORED),
    }


def parts(batch, *slices):
    return [{key: value[s] for key, value in batch.items()} for s in slices]


def dense_ggn(model, batch):
    """Σ Jᵀ (diag p - p pᵀ) J over the positions of tokens that follow one, over their number."""
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    params = list(model.parameters())
    G, count = 0, 0
    for sentence, labels in zip(logits, batch["labels"], strict=True):
        for z, label in zip(sentence[:-1], labels[1:], strict=True):
            if label != IGNORED:
                grads = [torch.autograd.grad(e, params, retain_graph=True) for e in z]
                J = torch.stack([parameters_to_vector(row) for row in grads])
                p = z.detach().softmax(0)
                G, count = G + J.T @ (torch.diag(p) - torch.outer(p, p)) @ J, count + 1
    return G / count


def test_the_loss_of_a_causal_model_is_its_own(gpt2):
    batch = padded(6, 3, 5)
    ours = hf_lm_loss()(gpt2, batch)
    assert float(ours.detach()) == pytest.approx(float(gpt2(**batch).loss.detach()), rel=1e-6)
    assert hf_lm_loss().batch_weight(batch) == 5 + 2 + 4


def test_the_loss_of_a_model_with_a_decoder_is_its_own(bart):
    batch = padded(6, 3, 5)
    loss, own = hf_seq2seq_loss(), float(bart(**batch).loss.detach())
    assert float(loss(bart, batch).detach()) == pytest.approx(own, rel=1e-6)
    assert loss.batch_weight(batch) == 6 + 3 + 5
    with pytest.raises(SkerchError, match="take hf_seq2seq_loss"):
        hf_lm_loss()(bart, batch)


@pytest.mark.parametrize(
    ("labels", "message"),
    [({}, "None"), ({"labels": torch.tensor([0, 1, 2])}, r"of shape \(3,\)"), (None, "None")],
)
@pytest.mark.parametrize("loss", [hf_lm_loss, hf_seq2seq_loss])
def test_labels_that_are_not_one_a_token_are_refused(loss, labels, message):
    tokens = torch.zeros(3, 4, dtype=torch.long)
    batch = (tokens, tokens) if labels is None else {"input_ids": tokens, **labels}
    with pytest.raises(SkerchError, match=rf"they are {message}.* Of a classifier"):
        loss().batch_weight(batch)


def test_a_masked_language_model_has_labels_where_they_stand(needs):
    needs(find_spec("transformers"), "transformers: pip install transformers")
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 7}
    model = BertForMaskedLM(BertConfig(num_hidden_layers=1, **sizes)).double().eval()
    batch = {"input_ids": torch.arange(6).view(2, 3), "labels": torch.tensor([[-100, 3, 1]] * 2)}
    ours, own = hf_seq2seq_loss()(model, batch), model(**batch).loss
    assert float(ours.detach()) == pytest.approx(float(own.detach()), rel=1e-6)
    with pytest.raises(SkerchError, match=r"BertForMaskedLM predicts .* take hf_seq2seq_loss"):
        hf_lm_loss()(model, batch)


@pytest.mark.parametrize("kind", [HessianOperator, GGNOperator, FisherOperator])
@pytest.mark.parametrize("model", ["gpt2", "bart"])
def test_batches_padding_and_microbatches_give_the_matrix_of_one_batch(kind, model, request):
    network = request.getfixturevalue(model)
    loss = {"gpt2": hf_lm_loss, "bart": hf_seq2seq_loss}[model]()
    batch = padded(6, 3, 5, 2, 6)
    whole = kind.of_loss(network, [batch], loss)
    X = torch.randn(whole.size, 3, generator=torch.Generator().manual_seed(0)).double()
    uneven = parts(batch, slice(0, 1), slice(1, 4), slice(4, 5))
    expected = whole @ X
    assert_close(kind.of_loss(network, uneven, loss) @ X, expected, 1e-10)
    assert_close(kind.of_loss(network, uneven, loss, microbatch_size=2) @ X, expected, 1e-10)


@pytest.mark.parametrize("fused", ["eager", "compile"])
def test_the_ggn_of_a_causal_model_is_the_dense_one(gpt2, fused):
    batch = padded(6, 3, 2)
    data = parts(batch, slice(0, 2), slice(2, 3))
    loss = hf_lm_loss_of_output(fused=fused)
    exact = dense_ggn(gpt2, batch)
    X = torch.randn(len(exact), 4, generator=torch.Generator().manual_seed(0)).double()
    for strategy in ("loop", "batched", "tape"):
        op = GGNOperator(gpt2, data, hf_lm_forward(), loss, strategy=strategy)
        assert_close(op @ X, exact @ X, 1e-9)


def test_the_loss_of_transformer_lens_is_its_own(gpt2, needs, tmp_path):
    needs(find_spec("transformer_lens"), "TransformerLens: pip install transformer-lens")
    from transformer_lens.model_bridge import TransformerBridge

    gpt2.float().save_pretrained(tmp_path)
    model = TransformerBridge.boot_transformers(str(tmp_path), hf_model=gpt2, device="cpu").eval()
    loss, tokens = tlens_loss(), padded(6, 6, 6)["input_ids"]
    own = float(model(tokens, return_type="loss").detach())
    assert float(loss(model, tokens).detach()) == pytest.approx(own, rel=1e-6)
    assert float(loss(model, {"tokens": tokens}).detach()) == pytest.approx(own, rel=1e-6)
    whole = GGNOperator.of_loss(model, [tokens], loss)
    X = torch.randn(whole.size, 3, generator=torch.Generator().manual_seed(0))
    uneven = GGNOperator.of_loss(model, [tokens[:1], tokens[1:]], loss)
    assert_close(uneven @ X, whole @ X, 1e-4)
