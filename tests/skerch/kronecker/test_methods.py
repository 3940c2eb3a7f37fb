"""Methods against dense matrices: each example's gradients by autograd, one at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian, jacrev
from torch.nn import functional as F

from skerch.curvature import (
    EmpiricalFisherOperator,
    FisherOperator,
    GGNOperator,
    supervised_loss,
)
from skerch.curvature.fisher import Numbered
from skerch.errors import SkerchError
from skerch.kronecker.correction import Correction
from skerch.kronecker.fit import eigenbases, factors_of, kronecker
from skerch.kronecker.layers import find_layers
from skerch.kronecker.methods import METHODS, make
from skerch.kronecker.sums import sum_up

N = 7
EXACT = {"rtol": 1e-12, "atol": 1e-14}


class Reader(nn.Module):
    """Words, and weights that are shared over them."""

    def __init__(self):
        super().__init__()
        self.words, self.hidden, self.out = nn.Embedding(6, 3), nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.hidden(self.words(x)).tanh().mean(1))


MODELS = {
    "vectors": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), (N, 4)),
    "groups": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)
        ),
        (N, 2, 4),
    ),
    "words": (Reader, (N, 5)),
}
LOSSES = {
    "cross-entropy": nn.CrossEntropyLoss(),
    "weights and ignored labels": nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 0.5]).double()),
    "soft labels": nn.CrossEntropyLoss(),
    "squares": nn.MSELoss(),
    "binary": nn.BCEWithLogitsLoss(),
}


def problem(model="vectors", loss="cross-entropy", n=N):
    torch.manual_seed(1)
    build, shape = MODELS[model]
    network = build().double()
    x = torch.randint(6, shape) if model == "words" else torch.randn(shape).double()
    if loss == "squares":
        y = torch.randn(N, 3).double()
    elif loss == "binary":
        y = torch.rand(N, 3).double().round()
    elif loss == "soft labels":
        y = torch.rand(N, 3).double().softmax(1)
    else:
        y = torch.randint(3, (N,))
        if loss != "cross-entropy":
            y[2] = -100
    return network, x[:n], y[:n], LOSSES[loss]


def dense(model, x, y, criterion, empirical=False):
    """G (examples and scores, parameters) with Σ G Gᵀ = F, by name of a parameter."""
    params = {name: p.detach() for name, p in model.named_parameters()}
    if isinstance(criterion, nn.CrossEntropyLoss) and y.ndim == 1:
        counted = [
            0.0 if label < 0 else float(1 if criterion.weight is None else criterion.weight[label])
            for label in y
        ]
        criterion = type(criterion)()
    else:
        counted = [1.0] * len(x)
    found = {name: [] for name in params}
    for i in range(len(x)):
        if not counted[i]:
            continue

        def output(p, i=i):
            return functional_call(model, p, (x[i : i + 1],))

        z, J = output(params), jacrev(output)(params)
        k = z.numel()
        if empirical:
            slope = torch.func.grad(lambda z, i=i: criterion(z, y[i : i + 1]))(z)
            roots = slope.reshape(k, 1)
        else:
            B = hessian(lambda z, i=i: criterion(z, y[i : i + 1]))(z).reshape(k, k)
            values, vectors = torch.linalg.eigh(B)
            roots = vectors * values.clamp(min=0).sqrt()
        roots = roots * (counted[i] / sum(counted)) ** 0.5
        for name, part in J.items():
            found[name].append(torch.einsum("ks,kp->sp", roots, part.reshape(k, -1)))
    return {name: torch.cat(parts) for name, parts in found.items()}


def of_layer(layer, G):
    """(examples and scores, groups, outputs, inputs)."""
    return layer.matrix({n: G[n].reshape(-1, *shape) for n, shape in layer.shapes.items()})


def whole(factor):
    return factor.diag_embed() if factor.ndim == 2 else factor


def fisher(G):
    """F of each group (groups, outputs inputs, outputs inputs)."""
    rows = G.flatten(2)
    return torch.einsum("ngp,ngq->gpq", rows, rows)


def kron(S, A, norms=None):
    pairs = zip(S.contiguous(), whole(A).contiguous(), strict=True)
    return torch.stack([torch.kron(s, a) for s, a in pairs])


def factors_by(op, layers, name, **options):
    method = make(name, **options)
    return factors_of(method, layers, sum_up(op, layers, method))


def nearest(op, layers, passes):
    factors = None
    for number in range(1, passes + 1):
        factors = factors_by(op, layers, "nearest", before=factors, number=number)
    return factors


@pytest.mark.parametrize("sizes", [[7], [3, 4], [1, 6]])
@pytest.mark.parametrize("method", ["kfac", "ekfac"])
def test_of_a_deep_linear_network_and_squares_it_is_the_block_of_the_ggn(method, sizes):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).double()
    x, y = torch.randn(N, 4).double(), torch.randn(N, 2).double()
    batches = list(zip(x.split(sizes), y.split(sizes), strict=True))
    op = FisherOperator.of_loss(model, batches, supervised_loss(F.mse_loss))
    G = dense(model, x, y, F.mse_loss)
    for block in kronecker(op, method).blocks:
        eye = torch.eye(math.prod(block.layer.shape), dtype=torch.float64)
        eye = eye.view(-1, *block.layer.shape)
        found = block.multiply(eye).flatten(1)
        torch.testing.assert_close(found, fisher(of_layer(block.layer, G))[0], **EXACT)


@pytest.mark.parametrize("loss", ["cross-entropy", "squares", "binary"])
@pytest.mark.parametrize("method", ["kfac", "tkfac", "shampoo", "nearest"])
def test_one_example_of_unshared_weights_is_exact_and_seven_of_cross_entropy_are_not(method, loss):
    for n in (1, N) if loss == "cross-entropy" else (1,):
        model, x, y, criterion = problem(loss=loss, n=n)
        op = FisherOperator.of_loss(model, [(x, y)], supervised_loss(criterion))
        layers, G = find_layers(model, op.params).covered, dense(model, x, y, criterion)
        one = nearest(op, layers, 2) if method == "nearest" else factors_by(op, layers, method)
        for layer in layers:
            block = fisher(of_layer(layer, G))
            error = (kron(**one[layer.name]) - block).norm() / block.norm()
            assert error < 1e-12 if n == 1 else error > 1e-3


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("loss", LOSSES)
def test_shampoo_has_the_sums_of_gradients_of_examples_and_the_trace_of_the_fisher(model, loss):
    network, x, y, criterion = problem(model, loss)
    op = FisherOperator.of_loss(network, [(x, y)], supervised_loss(criterion))
    layers, exact = find_layers(network, op.params).covered, dense(network, x, y, criterion)
    for layer in layers:
        S, A = factors_by(op, [layer], "shampoo")[layer.name].values()
        G = of_layer(layer, exact)
        torch.testing.assert_close(S, (G @ G.mT).sum(0), **EXACT)
        expected = (G.mT @ G).sum(0) / (G**2).sum((0, 2, 3))[:, None, None]
        if layer.indices:
            expected = expected.diagonal(dim1=1, dim2=2)
        torch.testing.assert_close(A, expected, **EXACT)
        traces = kron(S, A).diagonal(dim1=1, dim2=2).sum(1)
        torch.testing.assert_close(traces, (G**2).sum((0, 2, 3)), **EXACT)


@pytest.mark.parametrize("loss", LOSSES)
def test_tkfac_of_unshared_weights_has_the_trace_of_the_fisher(loss):
    model, x, y, criterion = problem("vectors", loss)
    op = FisherOperator.of_loss(model, [(x, y)], supervised_loss(criterion))
    layers, exact = find_layers(model, op.params).covered, dense(model, x, y, criterion)
    for layer in layers:
        S, A = factors_by(op, layers, "tkfac")[layer.name].values()
        G = of_layer(layer, exact)  # g aᵀ, so that ‖a‖² g gᵀ is G Gᵀ
        torch.testing.assert_close(S, (G @ G.mT).sum(0), **EXACT)
        torch.testing.assert_close(A, (G.mT @ G).sum(0) / (G**2).sum(), **EXACT)


def test_tkfac_weighs_positions_of_shared_weights():
    model, x, y, criterion = problem("words")
    op = EmpiricalFisherOperator.of_loss(model, [(x, y)], supervised_loss(criterion))
    layers = {layer.name: layer for layer in find_layers(model, op.params).covered}
    rows, words = model.words(x).detach(), model.words.weight.detach()
    leaf = words[x].requires_grad_()
    pre = model.hidden(leaf)
    pre.retain_grad()
    F.cross_entropy(model.out(pre.tanh().mean(1)), y, reduction="sum").backward()
    for name, a, g in (
        ("hidden", torch.cat([rows, torch.ones(N, 5, 1)], -1), pre.grad),
        ("words", F.one_hot(x, 6).double(), leaf.grad),
    ):
        S, A = factors_by(op, [layers[name]], "tkfac")[name].values()
        norms, squares = (a**2).sum(-1), (g**2).sum(-1)
        expected = torch.einsum("nt,nti,ntj->ij", norms, g, g) / N
        torch.testing.assert_close(S[0], expected, **EXACT)
        expected = torch.einsum("nt,nti,ntj->ij", squares, a, a) / (norms * squares).sum()
        torch.testing.assert_close(whole(A)[0], expected, **EXACT)


@pytest.mark.parametrize("model", ["vectors", "groups"])
def test_nearest_is_the_svd_of_the_rearrangement_and_positive(model):
    network, x, y, criterion = problem(model)
    op = FisherOperator.of_loss(network, [(x, y)], supervised_loss(criterion))
    layers, exact = find_layers(network, op.params).covered, dense(network, x, y, criterion)
    found = nearest(op, layers, 200)
    others = [factors_by(op, layers, name) for name in ("kfac", "tkfac", "shampoo")]
    for layer in layers:
        F_, (groups, outputs, inputs) = fisher(of_layer(layer, exact)), layer.shape
        S, A = found[layer.name]["S"], found[layer.name]["A"]
        shuffled = F_.view(groups, outputs, inputs, outputs, inputs).transpose(2, 3)
        singular = torch.linalg.svdvals(shuffled.reshape(groups, outputs**2, inputs**2))
        errors = (F_ - kron(S, A)).flatten(1).norm(dim=1)
        norms = found[layer.name]["norms"]
        assert (norms.diff(dim=1) >= -1e-12 * norms[:, 1:]).all()
        left = F_.square().sum((1, 2)) - norms[:, -1] ** 2
        torch.testing.assert_close(left, errors**2, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(errors, singular[:, 1:].norm(dim=1), rtol=1e-10, atol=1e-12)
        for factor in (S, A):
            values = torch.linalg.eigvalsh(factor)
            assert (values >= -1e-14 * values.amax(1, keepdim=True)).all()
        for other in others:
            far = (F_ - kron(**other[layer.name])).flatten(1).norm(dim=1)
            assert (errors <= far * (1 + 1e-12)).all()


@pytest.mark.parametrize("model", MODELS)
def test_each_pass_of_nearest_is_the_best_given_the_one_before(model):
    network, x, y, criterion = problem(model)
    op = FisherOperator.of_loss(network, [(x, y)], supervised_loss(criterion))
    layers, exact = find_layers(network, op.params).covered, dense(network, x, y, criterion)
    for layer in layers:
        G, before = of_layer(layer, exact), nearest(op, [layer], 2)
        S, A = before[layer.name]["S"], whole(before[layer.name]["A"])
        after = factors_by(op, [layer], "nearest", before=before, number=3)[layer.name]
        expected = (G @ A @ G.mT).sum(0) / (A**2).sum((1, 2), keepdim=True)
        torch.testing.assert_close(after["S"], expected, **EXACT)
        after = factors_by(op, [layer], "nearest", before=before, number=4)[layer.name]
        expected = (G.mT @ S @ G).sum(0) / (S**2).sum((1, 2), keepdim=True)
        if layer.indices:
            expected = expected.diagonal(dim1=1, dim2=2).diag_embed()
        torch.testing.assert_close(whole(after["A"]), expected, **EXACT)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("empirical", [False, True])
def test_autocorrelation_is_the_dense_fisher_of_a_layer(model, loss, empirical):
    network, x, y, criterion = problem(model, loss)
    kind = EmpiricalFisherOperator if empirical else FisherOperator
    op = kind.of_loss(network, [(x, y)], supervised_loss(criterion))
    layers = find_layers(network, op.params).covered
    found = factors_by(op, layers, "autocorrelation")
    if empirical and isinstance(criterion, nn.CrossEntropyLoss) and criterion.weight is not None:
        return  # whose gradients have the weights themselves
    exact = dense(network, x, y, criterion, empirical)
    for layer in layers:
        rows = of_layer(layer, exact).flatten(1)
        torch.testing.assert_close(found[layer.name]["C"], rows.T @ rows, **EXACT)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", ["kfac", "tkfac", "shampoo"])
def test_corrected_eigenvalues_are_the_fishers_in_the_basis_and_nearer_than_the_others(model, name):
    network, x, y, criterion = problem(model)
    op = FisherOperator.of_loss(network, [(x, y)], supervised_loss(criterion))
    layers, exact = find_layers(network, op.params).covered, dense(network, x, y, criterion)
    factors = factors_by(op, layers, name)
    bases = eigenbases(layers, factors)
    method = Correction(bases)
    found = factors_of(method, layers, sum_up(op, layers, method))
    for layer in layers:
        G, values = of_layer(layer, exact), found[layer.name]["values"]
        Q_S, Q_A = (basis.vectors for basis in bases[layer.name])
        if Q_A is None:
            Q_A = torch.eye(layer.shape[2], dtype=torch.float64)[None]
        expected = sum((Q_S.mT @ each @ Q_A) ** 2 for each in G)
        torch.testing.assert_close(values, expected, **EXACT)
        torch.testing.assert_close(values.sum(), (G**2).sum(), **EXACT)
        Q, F_ = kron(Q_S, Q_A), fisher(G)
        near = F_ - Q @ values.flatten(1).diag_embed() @ Q.mT
        assert near.norm() <= (F_ - kron(**factors[layer.name])).norm() * (1 + 1e-12)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("samples", [0, 3])
@pytest.mark.parametrize("name", [*METHODS, "correction"])
def test_batches_and_parts_do_not_change_sums(name, samples, model):
    network, x, y, criterion = problem(model, "weights and ignored labels")

    def sums(*batches):
        op = FisherOperator.of_loss(network, batches, supervised_loss(criterion), samples=samples)
        layers = find_layers(network, op.params).covered
        method = make("kfac" if name == "correction" else name)
        if name == "correction":
            method = Correction(eigenbases(layers, factors))
        return sum_up(op, layers, method)

    def part(index):
        return Numbered((x[index], y[index]), index) if samples else (x[index], y[index])

    op = FisherOperator.of_loss(network, [(x, y)], supervised_loss(criterion))
    factors = factors_by(op, find_layers(network, op.params).covered, "kfac")
    one = sums((x, y))
    order = torch.tensor([6, 0, 3, 5, 1, 2, 4])
    for other in (
        sums(*zip(x.split(3), y.split(3), strict=True)),
        sums(part(order[:2])) + sums(part(order[2:3]), part(order[3:])),
    ):
        assert other.total == pytest.approx(one.total, rel=1e-14)
        torch.testing.assert_close(other.layers, one.layers, **EXACT)


def test_monte_carlo_tends_to_the_expectation():
    model, x, y, criterion = problem()
    found = []
    for samples in (0, 5000):
        op = FisherOperator.of_loss(model, [(x, y)], supervised_loss(criterion), samples=samples)
        found.append(factors_by(op, find_layers(model, op.params).covered, "shampoo"))
    for name, exact in found[0].items():
        for key, factor in exact.items():
            assert (found[1][name][key] - factor).norm() < 0.05 * factor.norm()


def test_a_vocabulary_has_no_square_matrix():
    torch.manual_seed(0)
    model = Reader()
    model.words = nn.Embedding(300_000, 3)  # squared, 360 GB
    x, y = torch.randint(300_000, (N, 5)), torch.randint(3, (N,))
    op = FisherOperator.of_loss(model, [(x, y)], supervised_loss(F.cross_entropy))
    for name in ("ekfac", "tkfac", "shampoo", "nearest"):
        A = kronecker(op, name).blocks[0].A
        assert A.vectors is None


def test_scores_of_a_vocabulary_are_refused():
    model = nn.Linear(2, 10_001)
    batch = torch.randn(2, 2), torch.tensor([0, 1])
    op = FisherOperator.of_loss(model, [batch], supervised_loss(F.cross_entropy))
    with pytest.raises(SkerchError, match=r"10,001 outputs .* draw labels"):
        kronecker(op)


@pytest.mark.parametrize("iterations", [0, -3])
def test_nearest_takes_a_pass_at_least(iterations):
    model, data = nn.Linear(3, 2), [(torch.randn(4, 3), torch.randint(2, (4,)))]
    op = FisherOperator.of_loss(model, data, supervised_loss(F.cross_entropy))
    with pytest.raises(SkerchError, match="no number of passes"):
        kronecker(op, "nearest", iterations=iterations)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("tkfac", {"sharing": "reduce"}),
        ("shampoo", {"iterations": 4}),
        ("nearest", {"project": 5}),
        ("kfac", {"rank": 3}),
        ("ekfac", {"tol": 0.2}),
        ("autocorrelation", {"factor_eigh": "sketched"}),
        ("autocorrelation", {"rank": 3}),
    ],
)
def test_options_that_would_do_nothing_are_refused(method, options):
    model, data = nn.Linear(3, 2), [(torch.randn(4, 3), torch.randint(2, (4,)))]
    op = FisherOperator.of_loss(model, data, supervised_loss(F.cross_entropy))
    with pytest.raises(SkerchError, match=f"{next(iter(options))} is of .*leave it out"):
        kronecker(op, method, **options)


def test_a_curvature_without_scores_is_refused_by_name():
    model, data = nn.Linear(3, 2), [(torch.randn(4, 3), torch.randint(2, (4,)))]
    op = GGNOperator.of_loss(model, data, supervised_loss(F.cross_entropy))
    with pytest.raises(SkerchError, match="not of a GGNOperator"):
        kronecker(op, "kfac")
