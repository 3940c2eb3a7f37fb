"""Products that would not be the Hessian's are refused; what is right is let through."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from skerch import HessianOperator, SkerchError, aslinearoperator, seigh
from skerch.curvature import label_weight, supervised_loss
from skerch.curvature.checks import CheckError, second_derivative
from skerch.curvature.dense import hessian_rows
from skerch.curvature.strategies.linear_map import DerivativeError, StrategyError

CROSS_ENTROPY = supervised_loss(nn.functional.cross_entropy)


def make(*layers: nn.Module, examples: int = 12) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 5), *layers, nn.Linear(5, 3)).double()
    return model, torch.randn(examples, 4).double(), torch.arange(examples) % 3


def hessian(loss, model: nn.Module) -> Tensor:
    """By torch's own double backward, row by row."""
    params = list(model.parameters())
    grads = torch.autograd.grad(loss, params, create_graph=True)
    rows = [
        torch.autograd.grad(g, params, retain_graph=True) for part in grads for g in part.view(-1)
    ]
    return torch.stack([torch.cat([r.flatten() for r in row]) for row in rows])


class SquareGradient(torch.autograd.Function):
    """x ↦ 2 x, whose vectorised form takes the first vector for all."""

    @staticmethod
    def forward(x):
        return 2 * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return SquareGradient.apply(g)

    @staticmethod
    def vmap(info, in_dims, x):
        return (2 * x.select(in_dims[0], 0).expand_as(x.movedim(in_dims[0], 0))), 0


class Doubled(nn.Module):
    def forward(self, x):
        return SquareGradient.apply(x)


@pytest.mark.parametrize("strategy", ["batched", "tape"])
def test_a_vectorised_product_that_differs_one_by_one_is_refused(strategy):
    model, x, y = make(nn.Tanh(), Doubled())
    op = HessianOperator(model, [(x, y)], CROSS_ENTROPY, strategy=strategy)
    eye = torch.eye(op.shape[0]).double()
    if strategy == "tape":  # which has rules of its own
        torch.testing.assert_close(op @ eye, hessian(CROSS_ENTROPY(model, (x, y)), model))
        return
    with pytest.raises(
        StrategyError, match=r"batched gives other products .* Set strategy to loop"
    ):
        op @ eye


def test_auto_leaves_out_strategies_that_differ_one_by_one():
    model, x, y = make(nn.Tanh(), Doubled())
    op = HessianOperator(model, [(x, y)], CROSS_ENTROPY)
    torch.testing.assert_close(
        op @ torch.eye(op.shape[0]).double(), hessian(CROSS_ENTROPY(model, (x, y)), model)
    )
    assert op.strategy != "batched"


class Straight(torch.autograd.Function):
    """x³, whose gradient's derivative is left out, and symmetric all the same."""

    @staticmethod
    def forward(ctx, x):
        ctx.slope = 3 * x.detach() ** 2
        return x**3

    @staticmethod
    def backward(ctx, g):
        return g * ctx.slope


class Cube(nn.Module):
    def forward(self, x):
        return Straight.apply(x)


def test_a_second_derivative_that_leaves_something_out_is_refused():
    model, x, y = make(Cube())
    with pytest.raises(CheckError, match=r"differs from the difference of gradients .* Replace it"):
        seigh(HessianOperator(model, [(x, y)], CROSS_ENTROPY), outer=5)
    op = HessianOperator(model.float(), [(x.float(), y)], CROSS_ENTROPY)
    with pytest.raises(CheckError, match="differs from the difference of gradients"):
        op @ torch.ones(op.shape[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kinks_are_no_wrong_derivatives(dtype):
    """Units at exactly zero: the gradient jumps there, and differences of it say nothing."""
    model, x, y = make(nn.ReLU())
    nn.init.zeros_(model[0].bias)
    x[::2] = 0
    op = HessianOperator(model.to(dtype), [(x.to(dtype), y)], CROSS_ENTROPY)
    assert torch.isfinite(op @ torch.ones(op.shape[0], dtype=dtype)).all()


def test_a_network_that_knows_one_precision_is_checked_in_that():
    model, x, y = make(Cube())
    model, x, offset = model.float(), x.float(), torch.zeros(5, 3)

    def loss_fn(model, batch):
        return nn.functional.cross_entropy(model(batch[0]) + batch[0][:, :1] @ offset[:1], batch[1])

    with pytest.raises(CheckError, match="differs from the difference of gradients"):
        HessianOperator(model, [(x, y)], loss_fn).verify()
    model[1] = nn.Tanh()
    HessianOperator(model, [(x, y)], loss_fn).verify()


class Branch(nn.Module):
    """x + ε b(a(x)³) with the incomplete derivative of `Cube`, on two units of many."""

    def __init__(self, ε: float):
        super().__init__()
        self.a, self.cube, self.b, self.ε = nn.Linear(5, 2), Cube(), nn.Linear(2, 5), ε

    def forward(self, x):
        return x + self.ε * self.b(self.cube(self.a(x)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("how", ["small branch", "beside kinks", "float32 logits"])
def test_a_wrong_derivative_does_not_hide(dtype, how):
    """Not behind larger parts of the network, units at their kink, or other precisions."""
    model, x, y = make(nn.ReLU(), Branch(0.01) if how == "small branch" else Cube())
    if how == "beside kinks":
        nn.init.zeros_(model[0].bias)
        x[::2] = 0

    def loss_fn(model, batch):
        logits = model(batch[0])
        logits = logits.to(torch.float32) if how == "float32 logits" else logits
        return nn.functional.cross_entropy(logits, batch[1])

    op = HessianOperator(model.to(dtype), [(x.to(dtype), y)], loss_fn)
    with pytest.raises(CheckError, match="differs from the difference of gradients"):
        op.verify()
    for layer in (model[2], getattr(model[2], "cube", None)):
        if isinstance(layer, Cube):
            layer.forward = torch.sin
    op.verify()


def test_rounding_is_no_wrong_derivative_unless_it_takes_all():
    """A saturated softmax in float32: 1 - p has lost most of its digits."""
    model, x, _ = make(nn.Tanh())
    y = model(x).argmax(dim=1)
    with torch.no_grad():
        logits = model(x).sort(dim=1).values
        model[2].weight *= 14 / (logits[:, 2] - logits[:, 1]).min()
        model[2].bias *= 14 / (logits[:, 2] - logits[:, 1]).min()
    batch = (x.float(), y)
    told = second_derivative(HessianOperator(model.float(), [batch], CROSS_ENTROPY))
    assert "beside θ, with" in told
    assert CROSS_ENTROPY(model, batch) < 1e-6
    with torch.no_grad():
        model[2].weight *= 1.3
        model[2].bias *= 1.3
    with pytest.raises(CheckError, match=r"Rounding takes 0\.\d of the norm .*float64"):
        HessianOperator(model, [batch], CROSS_ENTROPY).verify()
    HessianOperator(model.double(), [(x, y)], CROSS_ENTROPY).verify()
    nn.init.zeros_(model[2].weight)
    model[2].bias.data = torch.tensor([20.0, 0.0, 0.0]).double()
    with pytest.raises(CheckError, match=r"Rounding takes 0\.\d of the norm"):
        HessianOperator(model.float(), [(x.float(), 0 * y)], CROSS_ENTROPY).verify()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gradient_that_is_not_that_of_the_loss_is_refused(dtype):
    model, x, y = make(nn.Tanh())
    losses = {
        "detach": lambda m, b: CROSS_ENTROPY(m, b) + m[2].weight.detach().square().sum(),
        "scaled": lambda m, b: Twice.apply(CROSS_ENTROPY(m, b)),
    }
    for loss_fn in losses.values():
        op = HessianOperator(model.to(dtype), [(x.to(dtype), y)], loss_fn)
        with pytest.raises(CheckError, match="gradient along v differs from the difference of los"):
            op.verify()


class Twice(torch.autograd.Function):
    """L, with the gradient of 2 L."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return 2 * g


def test_batches_under_autocast_combine_but_for_rounding():
    model, x, y = make(nn.GELU(), examples=40)

    def loss_fn(model, batch):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(batch[0])
        return nn.functional.cross_entropy(logits.float(), batch[1], reduction=reduction)

    data = [(x[:30].float(), y[:30]), (x[30:].float(), y[30:])]
    reduction = "mean"
    HessianOperator(model.float(), data, loss_fn).verify()
    reduction = "sum"
    with pytest.raises(CheckError, match="Batches do not combine"):
        HessianOperator(model.float(), data, loss_fn).verify()


class Cut(nn.Module):
    def forward(self, x):
        return x.detach().tanh()


def test_parameters_behind_a_cut_graph_are_refused_by_name():
    model, x, y = make(Cut())
    with pytest.raises(CheckError, match=r"depends on 0\.weight, 0\.bias.*param_filter"):
        HessianOperator(model, [(x, y)], CROSS_ENTROPY) @ torch.ones(43).double()
    part = HessianOperator(model, [(x, y)], CROSS_ENTROPY, param_filter="2.*")
    assert (part @ torch.ones(18).double()).norm() > 0


def test_parameters_that_the_loss_does_not_use_have_zero_rows():
    model, x, y = make(nn.Tanh())
    model.unused = nn.Parameter(torch.ones(2).double())
    op = HessianOperator(
        model, [(x, y)], lambda m, b: nn.functional.cross_entropy(m[2](m[1](m[0](b[0]))), b[1])
    )
    H = op @ torch.eye(45).double()
    assert not H[list(op.params).index("unused") :][:2].any()
    assert H.norm() > 0


def test_a_loss_that_reaches_no_parameter_is_refused():
    model, x, y = make(nn.Tanh())
    other = copy.deepcopy(model)
    losses = {
        "does not depend on any": lambda _, batch: CROSS_ENTROPY(other, batch),
        "its gradient does not reach": torch.no_grad()(CROSS_ENTROPY),
    }
    for words, loss_fn in losses.items():
        with pytest.raises(CheckError, match=words):
            HessianOperator(model, [(x, y)], loss_fn) @ torch.ones(43).double()
    op = HessianOperator(model, [(x, y)], losses["does not depend on any"], check=False)
    with pytest.raises(SkerchError, match="depends on none of the 4 selected parameters"):
        op @ torch.ones(43).double()


class Last(nn.Module):
    def forward(self, outputs):
        return outputs[0][:, -1]


def test_the_checks_leave_graphs_that_somebody_else_holds_alone():
    torch.manual_seed(0)
    lstm = nn.LSTM(4, 3, num_layers=2, batch_first=True)
    model, (_, x, y) = nn.Sequential(lstm, Last()), make()
    batch = (x.float()[:, None].expand(-1, 3, -1), y)
    held = CROSS_ENTROPY(model, batch)
    expected = torch.autograd.grad(held, list(model.parameters()), retain_graph=True)
    HessianOperator(model, [batch], CROSS_ENTROPY).verify()
    again = torch.autograd.grad(held, list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))
    assert torch.equal(CROSS_ENTROPY(model, batch), held)


def test_parameters_that_were_replaced_are_refused_by_name():
    model, x, y = make(nn.Tanh())
    op = HessianOperator(model, [(x, y)], CROSS_ENTROPY)
    op @ torch.ones(43).double()
    model[2] = nn.Linear(5, 3).double()
    with pytest.raises(SkerchError, match=r"parameter 2\.weight is another one .* anew"):
        op @ torch.ones(43).double()


def test_products_in_inference_mode_are_those_outside():
    model, x, y = make(nn.Tanh())
    op = HessianOperator(model, [(x, y)], CROSS_ENTROPY, strategy="tape")
    with torch.inference_mode():
        H = op @ torch.eye(43).double()
    torch.testing.assert_close(H, hessian(CROSS_ENTROPY(model, (x, y)), model))


@pytest.mark.parametrize("change", ["double", "half", "frozen"])
def test_parameters_that_became_others_are_refused_by_name(change):
    model, x, y = make(nn.Tanh())
    op = HessianOperator(model.float(), [(x.float(), y)], CROSS_ENTROPY)
    op @ torch.ones(43)
    {"double": model.double, "half": model.half, "frozen": model.requires_grad_}[change](
        *[False] * (change == "frozen")
    )
    with pytest.raises(SkerchError, match=r"parameter 0\.weight is another one .* anew"):
        op @ torch.ones(43)


@pytest.mark.parametrize("sparse", [False, True])
def test_padding_gets_no_gradient_and_is_let_through(sparse):
    """The Hessian is that of the network with the padding's vector as a constant."""
    torch.manual_seed(2)
    embedding = nn.Embedding(6, 3, padding_idx=2, sparse=sparse)
    nn.init.normal_(embedding.weight)
    model, tokens = nn.Sequential(embedding, nn.Flatten(), nn.Linear(12, 3)), torch.arange(40) % 6
    op = HessianOperator(
        model.double(), [(tokens.view(10, 4), torch.arange(10) % 3)], CROSS_ENTROPY
    )
    told = second_derivative(op)
    assert "gradients to" in told
    H = op @ torch.eye(op.shape[0]).double()
    assert not H[6:9].any()
    assert not H[:, 6:9].any()
    assert H[:6].any()
    exact = torch.stack(list(hessian_rows(model, list(op.params), op.data[0], CROSS_ENTROPY)))
    torch.testing.assert_close(H, exact)


def test_a_shuffled_loader_of_all_the_data_is_let_through():
    model, x, y = make(nn.Tanh())
    data = DataLoader(TensorDataset(x.float(), y), 5, shuffle=True)
    for _ in range(3):
        HessianOperator(model.float(), data, CROSS_ENTROPY).verify()


class Augmented(Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, index):
        return torch.randn(4).double(), index % 3


def test_data_that_come_otherwise_each_time_are_refused():
    model, _, _ = make(nn.Tanh())
    op = HessianOperator(model, DataLoader(Augmented(), 4), CROSS_ENTROPY)
    with pytest.raises(CheckError, match=r"and then .* no random augmentation"):
        seigh(op, outer=3)


def test_a_forward_pass_that_changes_a_buffer_is_refused_and_undone():
    model, x, y = make(nn.BatchNorm1d(5), nn.Tanh())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckError, match=r"changes 1\.running_mean; .*track_running_stats=False"):
        HessianOperator(model, [(x, y)], CROSS_ENTROPY) @ torch.ones(53).double()
    assert torch.equal(model.state_dict()["1.running_mean"], before["1.running_mean"])
    HessianOperator(model.eval(), [(x, y)], CROSS_ENTROPY).verify()


def test_batches_that_do_not_combine_are_refused():
    """Tokens are counted before the loss shifts them: padding makes the weights wrong."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Embedding(7, 4), nn.Tanh(), nn.Linear(4, 7)).double()
    tokens = torch.randint(7, (9, 6))
    labels = tokens.masked_fill(torch.arange(6) >= torch.arange(2, 11)[:, None] % 6 + 2, -100)

    def shifted(model, batch):
        logits = model(batch[0])[:, :-1].transpose(1, 2)
        return nn.functional.cross_entropy(logits, batch[1][:, 1:], ignore_index=-100)

    data = [(tokens[:6], labels[:6]), (tokens[6:], labels[6:])]
    for weight in (None, label_weight(), lambda batch: 1.0):
        op = HessianOperator(model, data, shifted, batch_weight=weight)
        with pytest.raises(CheckError, match="Batches do not combine"):
            op @ torch.ones(op.shape[0]).double()
    right = HessianOperator(
        model, data, shifted, batch_weight=lambda batch: float((batch[1][:, 1:] != -100).sum())
    )
    whole = HessianOperator(model, [(tokens, labels)], shifted)
    v = torch.randn(right.shape[0]).double()
    torch.testing.assert_close(right @ v, whole @ v)


@pytest.mark.parametrize("size", [7, 4])
def test_right_weights_of_batches_along_another_dimension_are_let_through(size):
    """Time first: what is joined along dimension 0 is another sequence, and tells nothing."""
    torch.manual_seed(3)
    rnn, head = nn.RNN(3, 4).double(), nn.Linear(4, 2).double()
    x, y = torch.randn(5, 8, 3).double(), torch.arange(8)[None] % 2

    def loss_fn(model, batch):
        return nn.functional.cross_entropy(model[1](model[0](batch[0])[0][-1]), batch[1][0])

    data = [(x[:, :size], y[:, :size]), (x[:, size:], y[:, size:])]
    op = HessianOperator(
        nn.ModuleList([rnn, head]), data, loss_fn, batch_weight=lambda b: b[0].shape[1]
    )
    whole = HessianOperator(op.model, [(x, y)], loss_fn)
    v = torch.randn(op.shape[0]).double()
    torch.testing.assert_close(op @ v, whole @ v)


def test_an_operator_that_is_not_symmetric_is_said_to_be_so():
    A = torch.triu(torch.randn(30, 30, generator=torch.Generator().manual_seed(0)))
    op = aslinearoperator(lambda X: A @ X, shape=(30, 30), self_adjoint=True)
    for recovery in ("nystrom", "hmt"):
        with pytest.warns(UserWarning, match=r"symmetric, and its products are so to .* only"):
            seigh(op, outer=5, recovery=recovery)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("recovery", ["nystrom", "hmt", "oversampled"])
def test_a_symmetric_matrix_is_not_doubted(recovery):
    A = torch.randn(300, 300, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.float64):
        seigh((A + A.T).to(dtype), outer=20, recovery=recovery)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_over_batches_in_float32(dtype):
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x, y = torch.randn(1200, 3), torch.arange(1200) % 2
    exact = hessian(CROSS_ENTROPY(model.double(), (x.double(), y)), model)
    model.to(dtype)
    eye = torch.eye(len(exact), dtype=dtype)

    def error(size):
        data = list(zip(x.to(dtype).split(size), y.split(size), strict=True))
        H = HessianOperator(model, data, CROSS_ENTROPY, strategy="batched") @ eye
        return float((H.double() - exact).norm() / exact.norm())

    assert error(6) < 2 * error(1200) + torch.finfo(dtype).eps


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
    model, (_, x, y) = Packed(), make()
    op = HessianOperator(model, [(x, y)], CROSS_ENTROPY, strategy=strategy)
    H = op @ torch.eye(op.shape[0]).double()
    torch.testing.assert_close(H, hessian(CROSS_ENTROPY(model, (x, y)), model))


def test_a_missing_second_derivative_names_the_operation_and_its_layer():
    net, x, _ = make(nn.Tanh())
    model = nn.ModuleDict({"net": net, "criterion": nn.MultiLabelMarginLoss()})
    targets = torch.tensor([[0, 2, -1]]).expand(12, 3)

    def loss_fn(model, batch):
        return model["criterion"](model["net"](batch[0]), batch[1])

    for strategy in ("loop", "batched", "tape", "auto"):
        op = HessianOperator(model, [(x, targets)], loss_fn, strategy=strategy, check=False)
        with pytest.raises(DerivativeError, match=r"multilabel_margin.* Replace .* in criterion\."):
            op @ torch.ones(43, 2).double()


def test_a_loss_that_differentiates_its_inputs_is_a_loss():
    model, x, _ = make(nn.Tanh())

    def loss_fn(model, batch):
        z = batch.detach().requires_grad_()
        (slope,) = torch.autograd.grad(model(z).square().sum(), z, create_graph=True)
        return slope.square().mean()

    op = HessianOperator(model, [x], loss_fn)
    assert op.loss() == pytest.approx(float(loss_fn(model, x)))
    H = op @ torch.eye(43).double()
    torch.testing.assert_close(H, hessian(loss_fn(model, x), model))


def test_compiled_parts_of_a_model_run_as_they_were():
    model, x, y = make(nn.Tanh())
    expected = hessian(CROSS_ENTROPY(model, (x, y)), model)
    model[0] = torch.compile(model[0], backend="aot_eager")
    compiled = torch.compile(model, backend="aot_eager")
    op = HessianOperator(compiled, [(x, y)], CROSS_ENTROPY)
    torch.testing.assert_close(op @ torch.eye(43).double(), expected)
