"""The page on Kronecker factors: its Python runs."""

import torch


def test_its_python_runs(blocks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for language, text in blocks("kronecker.md"):
        if language == "python":
            exec(text, namespace)
    assert torch.equal(namespace["again"] @ namespace["g"], namespace["K"] @ namespace["g"])
    assert bool(namespace["solved"].converged.all())
