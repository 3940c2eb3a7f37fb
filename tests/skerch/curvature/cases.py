"""Networks, losses and data that the tests of every curvature share, with their dense oracles.

An oracle shares nothing with an operator: no batches, no weights, no products. It differentiates
the mean loss over all the data at once, written out in a closed form of the network's output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian
from torch.nn import functional as F

from skerch.curvature import LossCurvature, label_weight, load_vector, supervised_loss

IGNORED = -100
CLASS_WEIGHTS = torch.tensor([0.2, 3.0, 1.0], dtype=torch.float64)
CROSS_ENTROPY = supervised_loss(F.cross_entropy)


def mean_cross_entropy(logits: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
    """Σ_i c_i (log Σ_j exp z_ij - z_i,y_i) / Σ_i c_i over the labels that are not ignored.

    Of logits (n, classes, …) and labels (n, …); c_i is the weight of a label's class.
    """
    c = torch.ones(logits.shape[1], dtype=logits.dtype) if weights is None else weights
    logits = logits.movedim(1, -1)[y != IGNORED]
    y = y[y != IGNORED]
    terms = logits.logsumexp(1) - logits.gather(1, y[:, None])[:, 0]
    return (c[y] * terms).sum() / c[y].sum()


def mean_square(z: Tensor, y: Tensor) -> Tensor:
    """The mean over examples and outputs of (z - y)²."""
    return ((z - y) ** 2).sum() / math.prod(z.shape)


@dataclass(frozen=True)
class Case:
    """A network, its loss, and data in uneven batches."""

    model: nn.Module  # in float64
    x: Tensor  # (n, …), all inputs
    y: Tensor  # (n, …), all targets
    mean: Callable[[Tensor, Tensor], Tensor] = mean_cross_entropy  # the closed form of outputs
    loss_fn: Callable[[nn.Module, Any], Tensor] = CROSS_ENTROPY
    batch_weight: Callable[[Any], float] | None = None
    keys: tuple[str, str] | None = None  # of the inputs and targets in batches that are dicts
    forward_mode: bool = True  # False where torch's is wrong, as of a layer norm in torch 2.15

    @property
    def tolerance(self) -> float:
        """The relative error of the oracle, and of what is right."""
        return 1e-10 if self.forward_mode else 1e-8

    @property
    def batches(self) -> list[Any]:
        """Four examples each, and the last one fewer."""
        pairs = zip(self.x.split(4), self.y.split(4), strict=True)
        return [dict(zip(self.keys, pair, strict=True)) if self.keys else pair for pair in pairs]

    def operator(self, kind: type[LossCurvature], **options: Any) -> LossCurvature:
        """The curvature of a kind, of the batches."""
        weight = self.batch_weight
        return kind.of_loss(self.model, self.batches, self.loss_fn, batch_weight=weight, **options)

    def loss(self, call: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The mean loss over all the data, of the network or of another `call`."""
        return self.mean((call or self.model)(self.x), self.y)

    def hessian(self, names: list[str] | None = None) -> Tensor:
        """∇² of the loss in the named parameters: forward over reverse, or by differences."""
        fixed = {name: p.detach() for name, p in self.model.named_parameters()}
        names = names or list(fixed)
        if not self.forward_mode:
            return differences(self.loss, {name: self.model.get_parameter(name) for name in names})

        def function(theta: dict[str, Tensor]) -> Tensor:
            return self.loss(lambda x: functional_call(self.model, {**fixed, **theta}, (x,)))

        H = hessian(function)({name: fixed[name] for name in names})
        sizes = {name: fixed[name].numel() for name in names}
        rows = [[H[a][b].reshape(sizes[a], sizes[b]) for b in names] for a in names]
        return torch.cat([torch.cat(row, 1) for row in rows])

    def jacobian(self, z: Tensor | None = None) -> Tensor:
        """∂z/∂θ of the network's outputs, or of others of theirs, one row an entry."""
        z, params = self.model(self.x) if z is None else z, list(self.model.parameters())
        rows = [
            torch.autograd.grad(entry, params, retain_graph=True, materialize_grads=True)
            for entry in z.flatten()
        ]
        return torch.stack([nn.utils.parameters_to_vector(row) for row in rows])

    def ggn(self) -> Tensor:
        """Jᵀ ∇²L J of the loss L of the network's outputs over all the data."""
        z, J = self.model(self.x).detach(), self.jacobian()
        return J.T @ hessian(lambda flat: self.mean(flat.view_as(z), self.y))(z.flatten()) @ J


def differences(
    loss: Callable[[], Tensor], params: dict[str, nn.Parameter], step: float = 1e-5
) -> Tensor:
    """The Hessian of a loss by central differences of its gradient, right to 1e-8."""
    theta = nn.utils.parameters_to_vector(params.values()).detach()

    def gradient(vector: Tensor) -> Tensor:
        load_vector(vector, params)
        grads = torch.autograd.grad(loss(), list(params.values()), materialize_grads=True)
        return nn.utils.parameters_to_vector(grads)

    shifts = step * torch.eye(len(theta), dtype=theta.dtype)
    rows = [gradient(theta + e) - gradient(theta - e) for e in shifts]
    load_vector(theta, params)
    return torch.stack(rows) / (2 * step)


def matrix(op: LossCurvature) -> Tensor:
    """All columns of an operator."""
    return op @ torch.eye(op.shape[0], dtype=op.dtype)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    """Entries agree to a share of the largest one."""
    assert expected.abs().max() > 1e-3
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


class Wasteful(nn.Module):
    """Has parameters that the loss does not depend on, and one of shape ()."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.tensor(1.3))
        self.net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.net(x)


class Tied(nn.Module):
    """Predicts tokens (n, length) by the embedding that reads them: logits (n, tokens, length)."""

    def __init__(self, tokens: int):
        super().__init__()
        self.embedding = nn.Embedding(tokens, 4)
        self.inner = nn.Linear(4, 4)
        self.head = nn.Linear(4, tokens, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(self.embedding(x)).tanh()).mT


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


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(6, 2, 4, dropout=0, activation="gelu", batch_first=True)
    return nn.Sequential(nn.Unflatten(1, (2, 6)), layer, nn.Flatten(), nn.Linear(12, 3))


def classified(
    model: nn.Module, ignored: Sequence[int] = (), features: int = 4, **fields: Any
) -> Case:
    """Eleven examples of three classes, some of which are ignored."""
    x, y = torch.randn(11, features, dtype=torch.float64), torch.arange(11) % 3
    x[-1] *= 5  # an outlier in the short last batch shows what an unweighted mean does
    y[list(ignored)] = IGNORED
    return Case(model.double(), x, y, **fields)


def weighted() -> Case:
    """Cross-entropy with weights of classes, of which the second batch has none that count."""
    return classified(
        mlp(),
        (1, 2, 4, 5, 6, 7),
        mean=lambda z, y: mean_cross_entropy(z, y, CLASS_WEIGHTS),
        loss_fn=supervised_loss(nn.CrossEntropyLoss(CLASS_WEIGHTS, ignore_index=IGNORED)),
        batch_weight=label_weight(IGNORED, CLASS_WEIGHTS),
    )


def dicts() -> Case:
    return classified(
        mlp(),
        (0, 1, 2),
        loss_fn=lambda model, batch: F.cross_entropy(model(batch["x"]), batch["labels"]),
        batch_weight=label_weight(labels="labels"),
        keys=("x", "labels"),
    )


def regression() -> Case:
    x, y = torch.randn(11, 4).double(), torch.randn(11, 3).double()
    return Case(mlp().double(), x, y, mean_square, supervised_loss(nn.MSELoss()))


def tokens() -> Case:
    """Sentences of other lengths, padded by labels that are ignored."""
    x, lengths = torch.randint(5, (11, 6)), torch.arange(11) % 6 + 1
    y = x.roll(-1, 1).masked_fill(torch.arange(6) >= lengths[:, None], IGNORED)
    return Case(Tied(5).double(), x, y, batch_weight=label_weight())


_CASES: dict[str, Callable[[], Case]] = {
    "mlp": lambda: classified(mlp()),
    "convolution": lambda: classified(convnet()),
    "attention": lambda: classified(transformer(), features=12, forward_mode=False),
    "unused parameters": lambda: classified(Wasteful()),
    "tied weights": tokens,
    "class weights": weighted,
    "dicts": dicts,
    "regression": regression,
}
NAMES = list(_CASES)


def make(name: str = "mlp") -> Case:
    """A case by its name, always the same."""
    torch.manual_seed(3)
    return _CASES[name]()


def network(*layers: nn.Module, examples: int = 12) -> tuple[nn.Module, Tensor, Tensor]:
    """A network that has some layers inside, with inputs and labels of three classes."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 5), *layers, nn.Linear(5, 3)).double()
    return model, torch.randn(examples, 4).double(), torch.arange(examples) % 3
