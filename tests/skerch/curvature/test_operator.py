"""What every curvature has of the operator: the data's loop, blocks, filters and refusals.

Shown on the Hessian.
"""

from __future__ import annotations

import gc
import weakref
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from skerch.curvature import GGNOperator, HessianOperator, count_examples, params_to_vector
from skerch.curvature.checks import CheckError
from skerch.curvature.dense import dense_hessian
from skerch.errors import SkerchError

from . import cases
from .cases import CROSS_ENTROPY, Case, assert_close, matrix, network


def test_dataloaders_serve_every_product():
    case = cases.make()
    loader = DataLoader(TensorDataset(case.x, case.y), batch_size=4)
    op = HessianOperator(case.model, loader, CROSS_ENTROPY)
    assert_close(matrix(op), case.hessian())
    assert_close(op @ torch.ones(op.shape[0], dtype=op.dtype), case.hessian().sum(1))


@pytest.mark.parametrize("name", ["class weights", "dicts", "regression", "tied weights"])
@pytest.mark.parametrize(("kind", "size"), [(HessianOperator, 1), (GGNOperator, 3)])
def test_microbatches_are_the_same_matrix(name, kind, size):
    case = cases.make(name)
    op = case.operator(kind, microbatch_size=size)
    expected = case.ggn() if kind is GGNOperator else case.hessian()
    assert_close(matrix(op), expected, case.tolerance)
    assert max(count_examples(batch) for _, batch in op.data_batches()) == size


def test_an_uneven_last_batch_weighs_its_examples():
    """33 examples in batches of 32: the last one, an outlier, is not half of the mean."""
    torch.manual_seed(0)
    model, x, y = network(nn.Tanh(), examples=33)
    x[-1] *= 10
    op = HessianOperator(model, DataLoader(TensorDataset(x, y), 32), CROSS_ENTROPY)
    H = dense_hessian(model, list(op.params), (x, y), CROSS_ENTROPY)
    assert_close(matrix(op), H)
    halves = HessianOperator(
        model, op.dataloader, CROSS_ENTROPY, batch_weight=lambda batch: 1, check=False
    )
    assert (matrix(halves) - H).norm() > H.norm()


def test_num_batches_takes_the_first_ones():
    case = cases.make()
    op = case.operator(HessianOperator, num_batches=2)
    first = Case(case.model, case.x[:8], case.y[:8])
    assert_close(matrix(op), first.hessian())
    assert op.loss() == pytest.approx(float(first.loss().detach()))


@pytest.mark.parametrize("frozen", [True, False])
def test_products_of_a_part_of_the_data_take_batches_in_turn(frozen):
    case = cases.make()
    op = case.operator(HessianOperator, full_dataset=False)
    pairs = case.operator(HessianOperator, full_dataset=False, num_batches=2)
    H = [Case(case.model, case.x[i : i + 4], case.y[i : i + 4]).hessian() for i in (0, 4, 8)]
    with op.frozen() if frozen else nullcontext():
        for index in (0, 1, 2, 0, 1):
            assert_close(matrix(op), H[index])
    assert_close(matrix(pairs), (H[0] + H[1]) / 2)
    assert_close(matrix(pairs), (3 * H[2] + 4 * H[0]) / 7)


@pytest.mark.parametrize("kind", [nn.BatchNorm1d(5), nn.BatchNorm1d(5, track_running_stats=False)])
def test_microbatches_of_layers_that_normalise_by_batches_are_refused_by_name(kind):
    model, x, y = network(kind, nn.Tanh())
    options = {"microbatch_size": 4, "check": False}
    with pytest.raises(SkerchError, match=r"1 \(BatchNorm1d\) normalises.*microbatch_unsafe"):
        HessianOperator(model, [(x, y)], CROSS_ENTROPY, **options)
    HessianOperator(model, [(x, y)], CROSS_ENTROPY, microbatch_unsafe=True, **options)
    model.eval()
    if kind.track_running_stats:
        op = HessianOperator(model, [(x, y)], CROSS_ENTROPY, microbatch_size=4)
        assert_close(matrix(op), dense_hessian(model, list(op.params), (x, y), CROSS_ENTROPY))


def test_microbatches_of_a_loss_of_pairs_of_examples_are_refused_by_measurement():
    model, x, _ = network(nn.Tanh())

    def contrastive(model, x):
        z = nn.functional.normalize(model(x))
        return nn.functional.cross_entropy(z @ z.T, torch.arange(len(x)))

    with pytest.raises(CheckError, match="Batches do not combine"):
        HessianOperator(model, [x], contrastive, microbatch_size=4).verify()
    HessianOperator(model, [x], contrastive, microbatch_size=4, microbatch_unsafe=True).verify()


def test_param_filter_selects_the_block_of_the_hessian():
    case, names = cases.make(), ["0.bias", "2.weight", "2.bias"]
    op = case.operator(HessianOperator, param_filter=["2.*", "0.bias"])
    assert list(op.params) == names
    assert_close(matrix(op), case.hessian(names))


def test_chunks_and_strategies_agree_and_the_layout_of_the_block_does_not_matter():
    case = cases.make()
    X = torch.randn(7, 43, generator=torch.Generator().manual_seed(1), dtype=torch.float64).T
    vectorised = [(name, size) for name in ("batched", "tape") for size in (None, 1, 3)]
    choices = [("loop", None), *vectorised]
    ops = [case.operator(HessianOperator, strategy=s, chunk_size=c) for s, c in choices]
    expected = ops[0] @ X
    for op in ops:
        assert_close(op @ X, expected, 1e-13)
        assert torch.equal(op @ X, op @ X.contiguous())
        assert torch.equal(op @ X, op @ X)


@pytest.mark.parametrize("check", [True, False])
def test_products_leave_the_model_alone_and_no_graph_behind(check):
    case = cases.make()
    outputs = []

    def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        logits = model(batch[0])
        outputs.append(weakref.ref(logits))
        return nn.functional.cross_entropy(logits, batch[1])

    op = HessianOperator(case.model, case.batches, loss_fn, check=check)
    before = params_to_vector(op.params)
    gc.collect()
    gc.disable()
    try:
        with torch.no_grad():
            product = matrix(op)
        assert check or len(outputs) == 4  # three batches, and the one that "auto" was timed on
        assert all(reference() is None for reference in outputs)
    finally:
        gc.enable()
    assert_close(product, case.hessian())
    assert not product.requires_grad
    assert all(p.grad is None for p in case.model.parameters())
    assert torch.equal(before, params_to_vector(op.params))


class Moody(nn.Module):
    """Draws, counts, replaces a buffer and changes its mode, and fails at a call."""

    def __init__(self, fails: int):
        super().__init__()
        self.linear, self.calls, self.fails = nn.Linear(4, 3), 0, fails
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.norm.train()
        self.seen = self.seen + 1
        z = self.norm(self.linear(x)) + 0 * torch.randn(())
        if self.calls == self.fails:
            raise FloatingPointError(f"call {self.calls}")
        return z


@pytest.mark.parametrize("fails", [0, 1, 2])
@pytest.mark.parametrize("method", ["autograd", "finite_difference"])
def test_buffers_modes_and_random_numbers_are_as_before_also_after_an_exception(fails, method):
    _, x, y = network()
    model = Moody(fails).double().eval()
    loader = DataLoader(TensorDataset(x, y), 6)  # which draws a random number where it begins
    before = {name: t.clone() for name, t in model.state_dict().items()}
    buffers, random = list(model.buffers()), torch.get_rng_state()
    op = HessianOperator(model, loader, CROSS_ENTROPY, method=method, check=False)
    with pytest.raises(FloatingPointError) if fails else nullcontext():
        op @ torch.ones(op.size).double()
    assert model.calls
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert all(now is then for now, then in zip(model.buffers(), buffers, strict=True))
    assert not any(module.training for module in model.modules())


def test_products_in_inference_mode_are_those_outside():
    model, x, y = network(nn.Tanh())
    op = HessianOperator(model, [(x, y)], CROSS_ENTROPY, strategy="tape")
    with torch.inference_mode():
        H = op @ torch.eye(43).double()
    torch.testing.assert_close(H, dense_hessian(model, list(op.params), (x, y), CROSS_ENTROPY))


def test_frozen_products_share_the_graph_of_a_single_batch():
    model, x, y = network(nn.Tanh())
    calls = []

    def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        calls.append(1)
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    op = HessianOperator(model, [(x, y)], loss_fn, strategy="tape")
    X = torch.randn(op.shape[0], 3, dtype=torch.float64)
    before = op @ X
    with op.frozen():
        assert torch.equal(op @ X, before)
        calls.clear()
        assert torch.equal(op @ X, before)
        assert not calls
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    assert (op @ X - before).norm() > 0.1 * before.norm()
    assert calls


def test_channels_last_is_a_matter_of_layout_only():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3)).double()
    case = Case(model, torch.randn(11, 3, 5, 5, dtype=torch.float64), torch.arange(11) % 3)
    seen = []

    def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        seen.append(batch[0].is_contiguous(memory_format=torch.channels_last))
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    op = HessianOperator(model, case.batches, loss_fn, memory_format="channels_last")
    assert_close(matrix(op), case.hessian())
    assert all(seen)
    HessianOperator(model, case.batches, loss_fn).resolve(4)
    assert not all(seen)  # "auto" tries both


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_over_batches_in_float32(dtype):
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x, y = torch.randn(1200, 3), torch.arange(1200) % 2
    names = [name for name, _ in model.named_parameters()]
    exact = dense_hessian(model.double(), names, (x.double(), y), CROSS_ENTROPY)
    model.to(dtype)
    eye = torch.eye(len(exact))

    def error(size):
        data = list(zip(x.to(dtype).split(size), y.split(size), strict=True))
        H = HessianOperator(model, data, CROSS_ENTROPY, strategy="batched") @ eye
        return float((H.double() - exact).norm() / exact.norm())

    assert error(6) < 2 * error(1200) + torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_vectors_of_half_precision_networks_are_float32_of_any_length(dtype):
    model, x, y = network(nn.Tanh())
    exact = matrix(HessianOperator(model, [(x, y)], CROSS_ENTROPY)).float()
    op = HessianOperator(model.to(dtype), [(x.to(dtype), y)], CROSS_ENTROPY)
    assert (op.dtype, op.precision, op.vector().dtype) == (torch.float32, dtype, torch.float32)
    v = torch.randn(op.size, generator=torch.Generator().manual_seed(0))
    assert (op @ v - exact @ v).norm() < 4 * torch.finfo(dtype).eps * (exact @ v).norm()
    for scale in (1e-6, 1e6):  # beyond the range of float16
        assert_close(op @ (scale * v) / scale, op @ v, 1e-6)


class Packed(nn.Module):
    """Real parameters that are used as complex numbers, behind one that makes them lie oddly."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3).double())
        self.pairs = nn.Parameter(torch.randn(4, 2).double())

    def forward(self, x):
        spectrum = torch.fft.fft(x) * torch.view_as_complex(self.pairs)
        return torch.fft.ifft(spectrum).real[:, :3] * self.scale


@pytest.mark.parametrize("strategy", ["loop", "batched", "auto"])
def test_vectors_lie_as_an_operation_wants_them(strategy):
    torch.manual_seed(4)
    model, (_, x, y) = Packed(), network()
    op = HessianOperator(model, [(x, y)], CROSS_ENTROPY, strategy=strategy)
    H = op @ torch.eye(op.shape[0]).double()
    torch.testing.assert_close(H, dense_hessian(model, list(op.params), (x, y), CROSS_ENTROPY))


@pytest.mark.parametrize("change", ["replaced", "double", "half", "frozen"])
def test_parameters_that_became_others_are_refused_by_name(change):
    model, x, y = network(nn.Tanh())
    op = HessianOperator(model.float(), [(x.float(), y)], CROSS_ENTROPY)
    op @ torch.ones(43)
    changes = {
        "replaced": lambda: model.__setitem__(2, nn.Linear(5, 3)),
        "double": model.double,
        "half": model.half,
        "frozen": lambda: model.requires_grad_(False),
    }
    changes[change]()
    with pytest.raises(SkerchError, match=r"parameter [02]\.weight is another one .* anew"):
        op @ torch.ones(43)


def mixed() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3).double())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"dataloader": (b for b in [])}, "type generator cannot be iterated more than once"),
        ({"dataloader": iter([])}, "type list_iterator cannot be iterated more than once"),
        ({"dataloader": 3}, "type int cannot be iterated more than once"),
        ({"dataloader": []}, "no batch of positive weight"),
        ({"batch_weight": lambda batch: 0}, "no batch of positive weight"),
        ({"batch_weight": lambda batch: -2}, r"weighs -2\.0"),
        ({"batch_weight": lambda batch: float("nan")}, "weighs nan"),
        ({"strategy": "fast"}, "'fast'; choose auto, loop, batched, tape"),
        ({"memory_format": "NCHW"}, "'NCHW'; choose auto, preserve, channels_last"),
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"num_batches": 0}, "num_batches is 0"),
        ({"microbatch_size": -1}, "microbatch_size is -1"),
        ({"dataloader": [], "full_dataset": False}, "no batch of positive weight"),
        ({"param_filter": ["0.*", "1.*"]}, r"'1\.\*' matches no .* 0\.weight, 0\.bias, 2\.weight"),
        ({"param_filter": []}, "empty param_filter"),
        ({"model": mixed()}, "torch.float32 on cpu and torch.float64 on cpu"),
        ({"model": nn.Tanh()}, "no parameter with requires_grad=True"),
        (
            {"loss_fn": lambda model, batch: model(batch[0])[:, 0]},
            r"returned \(4,\); take the mean",
        ),
        ({"loss_fn": lambda model, batch: 1.0}, "returned float; take the mean"),
        ({"loss_fn": lambda model, batch: torch.tensor(1j)}, "a complex loss; a loss is real"),
        ({"dataloader": ["text", "more"]}, r"cannot be counted .* give a batch_weight"),
    ],
)
def test_what_cannot_be_had_is_said_in_a_sentence(kwargs, message):
    case = cases.make()
    defaults = {"model": case.model, "dataloader": case.batches, "loss_fn": case.loss_fn}
    with pytest.raises(SkerchError, match=message):
        matrix(HessianOperator(**{**defaults, **kwargs}))
