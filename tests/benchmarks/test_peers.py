"""Peers are asked in turn, and compute the same Hessian; figures are held to their targets."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import peers
from benchmarks.peers.products import Gradient, vectors
from benchmarks.tables import hessian, matvecs


@pytest.fixture
def problem():
    """A small network and its batch."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    return network, (torch.rand(6, 5), torch.arange(6) % 3)


@pytest.fixture
def dense(problem):
    """The Hessian by torch.func."""
    network, (x, y) = problem
    names, sizes = zip(*((n, p.numel()) for n, p in network.named_parameters()), strict=True)
    shapes = [p.shape for p in network.parameters()]

    def loss(vector):
        parts = (v.view(s) for v, s in zip(vector.split(sizes), shapes, strict=True))
        outputs = torch.func.functional_call(network, dict(zip(names, parts, strict=True)), x)
        return nn.functional.cross_entropy(outputs, y)

    return torch.func.hessian(loss)(nn.utils.parameters_to_vector(network.parameters()).detach())


def test_peers_products_are_the_hessians(problem, dense):
    V = vectors(3, len(dense))
    with peers.Peer("curvlinops_products", Path(sys.executable)) as peer:
        peer.load(*problem)
        for matrix in (False, True):
            found = peer.ask("products", count=3, matrix=matrix)
            assert found["norm"] == pytest.approx(float((V @ dense).norm()), rel=1e-5)
            assert found["seconds"] > 0


@pytest.mark.parametrize("way", ["loop", "batched"])
def test_the_plain_loops_are_the_hessians(problem, dense, way):
    V = vectors(3, len(dense))
    torch.testing.assert_close(getattr(Gradient(*problem), way)(V), V @ dense)


def test_a_peer_that_fails_is_named_with_its_request(problem):
    with (
        peers.Peer("skerch_1_2", Path(sys.executable)) as peer,  # which has another skerch
        pytest.raises(peers.PeerError, match="skerch_1_2 ended with status 1 at load"),
    ):
        peer.load(*problem)


def test_an_environment_is_made_once_and_anew_for_other_requirements(monkeypatch, tmp_path):
    monkeypatch.setattr(peers, "ENVIRONMENTS", tmp_path)
    monkeypatch.setattr(peers, "REQUIREMENTS", {"nobody": ["pip"]})
    python = peers.python_of("nobody")
    kept = tmp_path / "nobody" / "kept"
    kept.touch()
    assert peers.python_of("nobody") == python
    assert kept.exists()
    peers.REQUIREMENTS["nobody"] = ["pip>=1"]
    peers.python_of("nobody")
    assert not kept.exists()
    peers.REQUIREMENTS["nobody"] = ["./nothing-there"]
    with pytest.raises(peers.PeerError, match="nothing-there"):
        peers.python_of("nobody")


def test_the_batched_strategys_memory_is_that_of_a_chunk():
    _, growth = matvecs.memory()
    assert growth.value < 2  # not 8; the target is for a machine at rest


def test_every_stage_of_a_decomposition_is_found_on_the_clock():
    case = hessian.digits(None)
    bench = hessian.Bench(case, products=None, peer=None, folder=None)
    found = hessian.stages(lambda: bench.ours(20, ("loop",)))
    assert all(seconds > 0 for seconds in found.values())
    assert found.keys() == hessian.floors(case, 1.0, 1.0).keys()
