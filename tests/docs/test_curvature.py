"""The page on curvatures and methods: its Python runs."""


def test_its_python_runs(blocks):
    namespace = {}
    for language, text in blocks("curvature.md"):
        if language == "python":
            exec(text, namespace)
    assert namespace["gap"].value > 0
    assert namespace["corner"].shape == (16 * 20 + 16, 16 * 3 + 3)
    assert bool(namespace["top"].converged.all())
