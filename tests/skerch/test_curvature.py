"""The Hessian operator against dense Hessians by `torch.func` on all the data at once.

The oracle shares nothing with the operator: no batches, no weights, no products. It writes the mean
loss over the whole data set out in a closed form and takes its Hessian forward over reverse.
"""

import gc
import weakref
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian
from torch.utils.data import DataLoader, TensorDataset

from skerch.curvature import (
    HessianOperator,
    label_weight,
    params_to_vector,
    strategies,
    supervised_loss,
    vector_to_params,
)
from skerch.curvature.strategies import clock
from skerch.curvature.strategies.linear_map import StrategyError
from skerch.curvature.strategies.tape import Tape, TapeError
from skerch.errors import SkerchError

IGNORED = -100
CLASS_WEIGHTS = torch.tensor([0.2, 3.0, 1.0], dtype=torch.float64)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def convnet() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)),
        nn.Conv2d(1, 3, 2, padding=1),
        nn.Softplus(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(3, 3),
    )


class Wasteful(nn.Module):
    """Has parameters that the loss does not depend on, and one of shape ()."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.tensor(1.3))
        self.net = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.net(x)


MODELS = {"mlp": mlp, "convnet": convnet, "wasteful": Wasteful}


def make(name: str = "mlp", examples: int = 11) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(3)
    model = MODELS[name]().double()
    x = torch.randn(examples, 4, dtype=torch.float64)
    x[-1] *= 5  # an outlier in the short last batch shows what an unweighted mean does
    return model, x, torch.arange(examples) % 3


def batches(x: Tensor, y: Tensor, size: int = 4) -> list:
    return list(zip(x.split(size), y.split(size), strict=True))


def mean_loss(logits: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
    """Σ_i c_i (log Σ_j exp z_ij - z_i,y_i) / Σ_i c_i over the labels that are not ignored."""
    c = torch.ones(3, dtype=logits.dtype) if weights is None else weights
    logits, y = logits[y != IGNORED], y[y != IGNORED]
    terms = logits.logsumexp(1) - logits.gather(1, y[:, None])[:, 0]
    return (c[y] * terms).sum() / c[y].sum()


def dense(model: nn.Module, loss, names: list[str] | None = None) -> Tensor:
    """The Hessian of loss(forward) by torch.func, on the named parameters in order."""
    fixed = {name: p.detach() for name, p in model.named_parameters()}
    names = list(fixed) if names is None else names

    def function(theta: dict[str, Tensor]) -> Tensor:
        return loss(lambda x: functional_call(model, {**fixed, **theta}, (x,)))

    H = hessian(function)({name: fixed[name] for name in names})
    return torch.cat(
        [
            torch.cat([H[a][b].reshape(fixed[a].numel(), fixed[b].numel()) for b in names], 1)
            for a in names
        ]
    )


def matrix(op: HessianOperator) -> Tensor:
    return op @ torch.eye(op.shape[0], dtype=op.dtype)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    assert expected.abs().max() > 1e-3
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("strategy", strategies.STRATEGIES)
@pytest.mark.parametrize("name", MODELS)
def test_equals_the_dense_hessian_on_uneven_batches(name, strategy):
    model, x, y = make(name)
    op = HessianOperator(
        model, batches(x, y), supervised_loss(nn.CrossEntropyLoss()), strategy=strategy
    )
    assert_close(matrix(op), dense(model, lambda f: mean_loss(f(x), y)))
    assert op.loss() == pytest.approx(mean_loss(model(x), y).item(), rel=1e-12)


@pytest.mark.parametrize("strategy", strategies.STRATEGIES)
def test_attention_equals_finite_differences(strategy):
    """Not `torch.func.hessian`: forward over reverse of a layer norm is wrong in torch 2.15."""
    torch.manual_seed(3)
    layer = nn.TransformerEncoderLayer(6, 2, 4, dropout=0, activation="gelu", batch_first=True)
    model = nn.Sequential(nn.Unflatten(1, (2, 6)), layer, nn.Flatten(), nn.Linear(12, 3)).double()
    x, y = torch.randn(11, 12, dtype=torch.float64), torch.arange(11) % 3
    op = HessianOperator(
        model, batches(x, y), supervised_loss(nn.CrossEntropyLoss()), strategy=strategy
    )
    theta, step = params_to_vector(op.params), 1e-5

    def gradient(vector: Tensor) -> Tensor:
        vector_to_params(vector, op.params)
        loss = mean_loss(model(x), y)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(op.params.values()))])

    shifts = step * torch.eye(len(theta), dtype=torch.float64)
    H = torch.stack([gradient(theta + e) - gradient(theta - e) for e in shifts]) / (2 * step)
    vector_to_params(theta, op.params)
    assert_close(matrix(op), H, 1e-8)


@pytest.mark.parametrize("strategy", strategies.STRATEGIES)
def test_ignored_labels_and_class_weights_combine_exactly(strategy):
    model, x, y = make()
    y[[1, 2, 4, 5, 6, 7]] = IGNORED  # the second batch has nothing left: its own mean is 0/0
    criterion = nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, ignore_index=IGNORED)
    op = HessianOperator(
        model,
        batches(x, y),
        supervised_loss(criterion),
        batch_weight=label_weight(IGNORED, CLASS_WEIGHTS),
        strategy=strategy,
    )
    assert_close(matrix(op), dense(model, lambda f: mean_loss(f(x), y, CLASS_WEIGHTS)))
    assert op.loss() == pytest.approx(mean_loss(model(x), y, CLASS_WEIGHTS).item(), rel=1e-12)


def test_dict_batches_take_their_labels_by_key():
    model, x, y = make()
    y[:3] = IGNORED
    data = [{"x": a, "labels": b} for a, b in batches(x, y)]
    op = HessianOperator(
        model,
        data,
        lambda model, batch: nn.functional.cross_entropy(model(batch["x"]), batch["labels"]),
        batch_weight=label_weight(labels="labels"),
    )
    assert_close(matrix(op), dense(model, lambda f: mean_loss(f(x), y)))


def test_dataloaders_serve_every_product():
    model, x, y = make()
    loader = DataLoader(TensorDataset(x, y), batch_size=4)
    op = HessianOperator(model, loader, supervised_loss(nn.CrossEntropyLoss()))
    expected = dense(model, lambda f: mean_loss(f(x), y))
    assert_close(matrix(op), expected)
    assert_close(op @ torch.ones(op.shape[0], dtype=op.dtype), expected.sum(1))


def test_param_filter_selects_the_block_of_the_hessian():
    model, x, y = make()
    op = HessianOperator(
        model,
        batches(x, y),
        supervised_loss(nn.CrossEntropyLoss()),
        param_filter=["2.*", "0.bias"],
    )
    names = ["0.bias", "2.weight", "2.bias"]
    assert list(op.params) == names
    assert_close(matrix(op), dense(model, lambda f: mean_loss(f(x), y), names))


def test_equals_curvlinops_in_float32():
    curvlinops = pytest.importorskip("curvlinops")
    model, x, y = make()
    model, x = model.float(), x.float()
    criterion = nn.CrossEntropyLoss()
    theirs = curvlinops.HessianLinearOperator(
        model, criterion, list(model.parameters()), batches(x, y)
    )
    ours = HessianOperator(model, batches(x, y), supervised_loss(criterion))
    X = torch.randn(ours.shape[0], 6, generator=torch.Generator().manual_seed(1))
    assert_close(ours @ X, theirs @ X, 1e-5)


def test_chunks_and_strategies_agree_and_the_layout_of_the_block_does_not_matter():
    model, x, y = make()
    X = torch.randn(7, 43, generator=torch.Generator().manual_seed(1), dtype=torch.float64).T
    loss_fn = supervised_loss(nn.CrossEntropyLoss())
    vectorised = [(name, size) for name in ("batched", "tape") for size in (None, 1, 3)]
    choices = [("loop", None), *vectorised]
    ops = [
        HessianOperator(model, batches(x, y), loss_fn, strategy=s, chunk_size=c) for s, c in choices
    ]
    expected = ops[0] @ X
    for op in ops:
        assert_close(op @ X, expected, 1e-13)
        assert torch.equal(op @ X, op @ X.contiguous())
        assert torch.equal(op @ X, op @ X)


def test_is_symmetric_and_its_own_adjoint():
    model, x, y = make("convnet")
    op = HessianOperator(model, batches(x, y), supervised_loss(nn.CrossEntropyLoss()))
    H = matrix(op)
    assert_close(H, H.T, 1e-13)
    assert op.T is op


@pytest.mark.parametrize("strategy", ["auto", *strategies.STRATEGIES])
def test_a_linear_loss_has_a_zero_hessian(strategy):
    data = [torch.randn(5, 3)]
    op = HessianOperator(nn.Linear(3, 1), data, lambda f, x: f(x).mean(), strategy=strategy)
    assert torch.equal(op @ torch.ones(4, 2), torch.zeros(4, 2))


def test_a_loss_linear_in_some_parameters_keeps_their_cross_terms():
    model = nn.Module()
    model.a = nn.Parameter(torch.tensor([2.0, 5.0]))
    model.b = nn.Parameter(torch.tensor([3.0]))

    def loss_fn(model: nn.Module, x: Tensor) -> Tensor:
        return (model.a * x).sum() * model.b[0]

    op = HessianOperator(model, [torch.ones(2)], loss_fn)
    assert torch.equal(matrix(op), torch.tensor([[0.0, 0, 1], [0, 0, 1], [1, 1, 0]]))
    for strategy in strategies.STRATEGIES:
        part = HessianOperator(model, [torch.ones(2)], loss_fn, param_filter="a", strategy=strategy)
        assert torch.equal(matrix(part), torch.zeros(2, 2))


@pytest.mark.parametrize("check", [True, False])
def test_products_leave_the_model_alone_and_no_graph_behind(check):
    model, x, y = make()
    outputs = []

    def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        logits = model(batch[0])
        outputs.append(weakref.ref(logits))
        return nn.functional.cross_entropy(logits, batch[1])

    op = HessianOperator(model, batches(x, y), loss_fn, check=check)
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
    assert_close(product, dense(model, lambda f: mean_loss(f(x), y)))
    assert not product.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(before, params_to_vector(op.params))


class Unvectorisable(torch.autograd.Function):
    """x², with a backward pass that cannot be vectorised: it looks at numbers."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * x * g if g.abs().sum().item() >= 0 else g


def test_auto_falls_to_the_loop_where_vectorising_fails():
    model, x, y = make()
    criterion = nn.MSELoss()

    def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return criterion(Unvectorisable.apply(model(batch[0])), batch[0][:, :3])

    op = HessianOperator(model, batches(x, y), loss_fn)
    assert op.resolve(16).strategy == "loop"
    assert_close(matrix(op), dense(model, lambda f: ((f(x) ** 2 - x[:, :3]) ** 2).mean()))
    with pytest.raises(StrategyError, match=r"cannot be vectorised: .*; set strategy to loop"):
        matrix(HessianOperator(model, batches(x, y), loss_fn, strategy="batched"))
    with pytest.raises(TapeError, match="is no tensor; set strategy to batched or loop"):
        matrix(HessianOperator(model, batches(x, y), loss_fn, strategy="tape"))


@pytest.mark.parametrize(("examples", "widths"), [(70, (80, 3, 66, 5)), (5, (3, 70, 4, 90))])
def test_a_tape_multiplies_matrices_of_all_shapes(examples, widths):
    torch.manual_seed(3)
    layers = [nn.Sequential(nn.Linear(a, b), nn.Tanh()) for a, b in pairwise(widths)]
    model = nn.Sequential(*layers).double()
    data = [(torch.randn(examples, widths[0]).double(), torch.randn(examples, widths[-1]).double())]
    loop, tape = (
        HessianOperator(model, data, supervised_loss(nn.MSELoss()), strategy=strategy)
        for strategy in ("loop", "tape")
    )
    X = torch.randn(loop.shape[0], 9, dtype=torch.float64)
    assert_close(tape @ X, loop @ X, 1e-13)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_a_tape_knows_log_softmax_along_any_dimension(dim):
    x, y = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    p = x.softmax(dim)

    def backward(vectors: list[Tensor]) -> list[Tensor]:
        z = x.clone().requires_grad_()
        return list(torch.autograd.grad(z.log_softmax(dim), z, vectors[0] * y))

    V = torch.randn(6, 4, 3, 5, dtype=torch.float64)
    along = dim % 3 + 1
    expected = V * y - p * (V * y).sum(along, keepdim=True)
    assert_close(Tape(backward, [x])([V])[0], expected, 1e-14)


@pytest.mark.parametrize("aliased", [False, True])
def test_a_tape_is_right_about_writing_in_place_or_refuses(aliased):
    x = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64)

    def backward(vectors: list[Tensor]) -> list[Tensor]:
        product = vectors[0] * x
        seen = product.view(3, 1) if aliased else product
        product.mul_(3).mul_(x)
        return [seen.view(3)]

    if aliased:
        with pytest.raises(TapeError, match="writes into a tensor; set strategy"):
            Tape(backward, [x])
    else:
        V = torch.randn(4, 3, dtype=torch.float64)
        assert_close(Tape(backward, [x])([V])[0], 3 * x**2 * V, 1e-14)


class Unpad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, g):
        out = torch.zeros(len(g), 4)
        out[:, :3] = g
        return out

    @staticmethod
    def backward(ctx, h):
        return h[:, :3].clone()


class Pad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x[:, :3].clone()

    @staticmethod
    def backward(ctx, g):
        return Unpad.apply(g)


def test_a_tape_refuses_what_is_written_into_a_part_of_a_tensor():
    torch.manual_seed(0)
    small, large = nn.Linear(3, 4), nn.Linear(3, 3)
    x, y = torch.randn(2, 300, 3)

    def loss_fn(model: nn.ModuleList, batch: tuple[Tensor, Tensor]) -> Tensor:
        shown = Pad.apply(model[0](batch[0]).tanh()), 30 * model[1](batch[0])
        return sum(nn.functional.mse_loss(z, batch[1]) for z in shown)

    op = HessianOperator(nn.ModuleList([small, large]), [(x, y)], loss_fn, strategy="tape")
    with pytest.raises(TapeError, match="cannot be recorded"):
        op @ torch.ones(op.shape[0], 2)


def test_a_tape_looks_at_each_parameter():
    x = torch.ones(2), torch.ones(2)

    def backward(vectors: list[Tensor]) -> list[Tensor]:
        small = vectors[0].numpy().copy()  # which no recorder sees
        return [vectors[0] * 0 + 1e-2 * torch.from_numpy(small), 30 * vectors[1]]

    with pytest.raises(TapeError, match="it does other things for other vectors"):
        Tape(backward, x)


def test_a_tape_knows_gelu_of_any_dimension():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))
    data = [(torch.randn(5, 6, 3), torch.randn(5, 6, 2))]
    loop, tape = (
        HessianOperator(model, data, supervised_loss(nn.MSELoss()), strategy=strategy)
        for strategy in ("loop", "tape")
    )
    X = torch.randn(loop.shape[0], 3)
    assert_close(tape @ X, loop @ X, 1e-5)


def test_a_tape_leaves_an_infinite_hessian_to_whoever_looks_at_its_columns():
    model, x, y = make()
    data = [(x.masked_fill(x > 1, torch.inf), y)]
    loss_fn = supervised_loss(nn.CrossEntropyLoss())
    op = HessianOperator(model, data, loss_fn, strategy="tape", check=False)
    assert not torch.isfinite(op @ torch.ones(op.shape[0], 2, dtype=torch.float64)).all()


def test_frozen_products_share_the_graph_of_a_single_batch():
    model, x, y = make()
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
    x, y = torch.randn(11, 3, 5, 5, dtype=torch.float64), torch.arange(11) % 3
    seen = []

    def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        seen.append(batch[0].is_contiguous(memory_format=torch.channels_last))
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    op = HessianOperator(model, batches(x, y), loss_fn, memory_format="channels_last")
    assert_close(matrix(op), dense(model, lambda f: mean_loss(f(x), y)))
    assert all(seen)
    HessianOperator(model, batches(x, y), loss_fn).resolve(4)
    assert not all(seen)  # "auto" tries both


def test_auto_takes_the_strategy_that_the_clock_favours(monkeypatch):
    model, x, y = make()
    ticks = iter(range(10_000))
    monkeypatch.setattr(clock, "_now", lambda device: next(ticks) / 1024)
    loss_fn = supervised_loss(nn.CrossEntropyLoss())
    op = HessianOperator(model, batches(x, y), loss_fn)
    op @ torch.ones(43, dtype=torch.float64)
    assert op.strategy == "auto"
    # Every call takes one tick: the largest chunk is the cheapest for each vector.
    assert op.resolve(40) == strategies.Choice("batched", 40)
    assert (op.strategy, op.chunk_size) == ("batched", 40)
    assert op.resolve(2) == strategies.Choice("batched", 40)
    monkeypatch.setattr(clock, "_now", lambda device: 10.0 * next(ticks))
    slow = HessianOperator(model, batches(x, y), loss_fn)
    assert slow.resolve(40) == strategies.Choice("loop", 1)
    assert HessianOperator(model, batches(x, y), loss_fn).resolve(1).strategy == "loop"


def mixed() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3).double())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"data": (b for b in [])}, "type generator cannot be iterated more than once"),
        ({"data": iter([])}, "type list_iterator cannot be iterated more than once"),
        ({"data": 3}, "type int cannot be iterated more than once"),
        ({"data": []}, "no batch of positive weight"),
        ({"batch_weight": lambda batch: 0}, "no batch of positive weight"),
        ({"batch_weight": lambda batch: -2}, r"weighs -2\.0"),
        ({"batch_weight": lambda batch: float("nan")}, "weighs nan"),
        ({"strategy": "fast"}, "'fast'; choose auto, loop, batched, tape"),
        ({"memory_format": "NCHW"}, "'NCHW'; choose auto, preserve, channels_last"),
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"param_filter": ["0.*", "1.*"]}, r"'1\.\*' matches no .* 0\.weight, 0\.bias, 2\.weight"),
        ({"param_filter": []}, "empty param_filter"),
        ({"model": mixed()}, "torch.float32 on cpu and torch.float64 on cpu"),
        ({"model": nn.Tanh()}, "no parameter with requires_grad=True"),
        (
            {"loss_fn": lambda model, batch: model(batch[0])[:, 0]},
            r"returned \(4,\); take the mean",
        ),
        ({"loss_fn": lambda model, batch: 1.0}, "returned float; take the mean"),
        ({"data": ["text", "more"]}, r"cannot be counted .* give a batch_weight"),
    ],
)
def test_what_cannot_be_had_is_said_in_a_sentence(kwargs, message):
    model, x, y = make()
    defaults = {
        "model": model,
        "data": batches(x, y),
        "loss_fn": supervised_loss(nn.CrossEntropyLoss()),
    }
    with pytest.raises(SkerchError, match=message):
        matrix(HessianOperator(**{**defaults, **kwargs}))
