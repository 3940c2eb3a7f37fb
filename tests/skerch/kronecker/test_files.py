"""Files of factors and operators: what is read is what was written, or a sentence."""

from __future__ import annotations

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from skerch.files import FileError
from skerch.kronecker.eigenbasis import decompose
from skerch.kronecker.files import OPERATOR, bases_of, basis_tensors, load, read, save, write
from skerch.kronecker.layers import find_layers
from skerch.kronecker.operator import DenseBlock, KroneckerBlock, KroneckerOperator


def psd(groups, size):
    X = torch.randn(groups, size, size, dtype=torch.float64)
    return X @ X.mT


@pytest.fixture
def op():
    """Blocks of all sorts: diagonal, sketched, corrected and dense."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Embedding(5, 2), nn.Linear(2, 60), nn.Linear(60, 2, bias=False))
    params = dict(network.named_parameters())
    first, second, third = find_layers(network, params).covered
    blocks = [
        KroneckerBlock.of(first, decompose(psd(1, 2)), decompose(torch.rand(1, 5))),
        KroneckerBlock.of(
            second, decompose(psd(1, 60), how="sketched", rank=3), decompose(psd(1, 3))
        ),
        DenseBlock(
            third,
            torch.rand(4).double(),
            torch.linalg.qr(torch.randn(120, 3).double()).Q.contiguous(),
        ),
    ]
    blocks[0] = blocks[0].with_values(torch.rand(1, 2, 5).double())
    shapes = {"free": (3,), **{n: p.shape for n, p in params.items()}}
    return KroneckerOperator(shapes, blocks, uncovered={"free": "it is free"}, dtype=torch.float64)


def test_an_operator_comes_back_to_the_bit_without_its_network(op, tmp_path):
    save(tmp_path, op, method="ekfac")
    found = load(tmp_path)
    X = torch.randn(op.size, 3, dtype=torch.float64)
    assert torch.equal(found @ X, op @ X)
    assert torch.equal(found.inverse(0.1) @ X, op.inverse(0.1) @ X)
    assert list(found.columns.items()) == list(op.columns.items())
    assert found.uncovered == op.uncovered
    assert read(tmp_path / OPERATOR).about["method"] == "ekfac"


def test_an_inverse_is_an_operator_that_is_saved(op, tmp_path):
    save(tmp_path, op.inverse(0.1))
    assert load(tmp_path).elsewhere == 10


def test_the_same_content_is_the_same_bytes(tmp_path):
    S, A, weight = torch.rand(1, 3, 3), torch.rand(1, 4, 4), torch.rand(())
    write(tmp_path / "a", "sums", {"x": {"S": S, "A": A, "weight": weight}}, {"a": 1, "b": 2})
    write(tmp_path / "b", "sums", {"x": {"weight": weight, "A": A, "S": S}}, {"b": 2, "a": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_parts_and_transposes_of_tensors_are_written_as_they_are(tmp_path):
    whole = torch.rand(4, 3)
    layers = {"a.b": {"S": whole[1:3], "A": whole.T}, "": {"S": whole}}
    write(tmp_path / "f", "factors", layers)
    found = read(tmp_path / "f", "factors").layers
    assert found.keys() == layers.keys()
    for layer, tensors in layers.items():
        assert all(torch.equal(found[layer][name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("groups", [1, 2])
def test_bases_come_back(groups, tmp_path):
    S, A = decompose(psd(groups, 50), how="sketched", rank=2), decompose(torch.rand(groups, 3))
    write(tmp_path / "f", "basis", {"x": basis_tensors(S, A)})
    for found, basis in zip(bases_of(read(tmp_path / "f").layers["x"]), (S, A), strict=True):
        assert torch.equal(found.values, basis.values)
        assert found.size == basis.size
        assert (found.vectors is None) == (basis.vectors is None)


def test_a_changed_byte_is_refused(op, tmp_path):
    save(tmp_path, op)
    path = tmp_path / OPERATOR
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(FileError, match=f"{OPERATOR} is damaged: its hash"):
        load(tmp_path)


def test_a_file_that_is_cut_off_is_refused(op, tmp_path):
    save(tmp_path, op)
    path = tmp_path / OPERATOR
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(FileError, match=f"{OPERATOR} is damaged"):
        load(tmp_path)


def test_a_tensor_that_is_missing_is_refused(op, tmp_path):
    save(tmp_path, op)
    path = tmp_path / OPERATOR
    metadata = {"skerch": metadata_of(path)}
    tensors = load_file(path)
    tensors.pop("0/A.values")
    save_file(tensors, path, metadata)
    with pytest.raises(FileError, match=f"{OPERATOR} is damaged: its hash"):
        load(tmp_path)


def test_missing_other_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(FileError, match=f"{OPERATOR} is missing"):
        load(tmp_path)
    write(tmp_path / OPERATOR, "factors", {"x": {"S": torch.rand(1, 2, 2)}})
    with pytest.raises(FileError, match="has factors, not operator"):
        load(tmp_path)
    save_file({"S": torch.rand(2)}, tmp_path / OPERATOR)
    with pytest.raises(FileError, match="is no file of skerch's Kronecker factors"):
        load(tmp_path)


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    write(tmp_path / "f", "sums", {"x": {"S": torch.zeros(2)}})

    def full(*_):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("skerch.kronecker.files.save_file", full)
    with pytest.raises(FileError, match="cannot be written: No space left"):
        write(tmp_path / "f", "sums", {"x": {"S": torch.ones(2)}})
    assert not read(tmp_path / "f").layers["x"]["S"].any()
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def metadata_of(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()["skerch"]
