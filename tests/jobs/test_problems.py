"""Problems: the bundled ones, a user's own, and what is said of those that do not work."""

import pickle
import sys
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.utils.data import TensorDataset

import skerch
from skerch import config
from skerch.curvature import supervised_loss
from skerch.jobs.config import load
from skerch.jobs.config.schema import Hessian
from skerch.jobs.errors import ConfigError
from skerch.jobs.launchers.complete import complete
from skerch.jobs.problems import Problem, load_problem, names
from skerch.jobs.training.datapoints import batches, hessian_batch


def parameters(problem: Problem) -> int:
    return sum(p.numel() for p in problem.model().parameters())


def test_the_registry_is_the_folder():
    assert names() == [
        "cifar100_allcnnc",
        "cifar10_3c3d",
        "digits_mlp",
        "fmnist_2c2d",
        "fmnist_mlp",
        "imagenet_resnet18",
        "mnist_mini",
        "tiny_gpt2",
    ]


TUNING = yaml.safe_load((Path(config.__file__).parent / "tuning.yaml").read_text())


def test_every_problem_has_an_experiment_that_is_tuned_as_said():
    experiments = {path.stem for path in Path(config.__file__).parent.glob("experiment/*.yaml")}
    assert {load(name).problem["name"] for name in experiments} == set(names()) == set(TUNING)
    for name in experiments:
        found = load(name)
        tuned = TUNING[found.problem["name"]]["training"]
        assert {key: getattr(found.training, key) for key in tuned} == tuned
        assert found.training.optimizer_options == tuned.get("optimizer_options", {})


SMALL = ["eval_samples=20", "batch_size=10", "max_steps=2", "record_steps=[2]"]
FEW = ["hessian.splits=[test]", "hessian.datapoints=3", "hessian.subset=first"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fmnist_mlp", "fmnist_2c2d", "cifar100_allcnnc"])
def test_random_images_run_from_training_to_overlap(name, tmp_path):
    run_small(name, tmp_path)


def test_random_text_runs_from_training_to_overlap(tmp_path, transformers):
    run_small("tiny_gpt2", tmp_path)


def run_small(name, run_dir):
    sketch = ["outer=2", "inner=4", "probes=2", "rounds=2", "block_size=4"]
    options = [f"run_dir={run_dir}", "problem.synthetic=true", "hessian.strategy=tape", *FEW]
    options += [f"training.{key}" for key in SMALL] + [f"sketch.{key}" for key in sketch]
    assert not complete(load(name, options))
    h = skerch.load(run_dir)[2, "test"]
    w = h.eigenvectors[:, :1]
    assert h.eigenvalues.isfinite().all()
    assert torch.equal(h.operator() @ w, h.operator() @ w)  # dropout is off


def test_digits_are_split_and_scaled():
    problem = load_problem({"name": "digits_mlp"})
    assert parameters(problem) == 1930
    train, test = problem.data("train"), problem.data("test")
    assert (len(train), len(test)) == (1198, 599)
    assert torch.equal(train.targets, train.tensors[1])
    assert (train.tensors[0].min(), train.tensors[0].max()) == (0, 1)
    assert test.targets.bincount().min() >= 50
    assert problem.loss_fn(problem.model(), test[:7]).shape == ()


def test_mnist_mini_is_mnist_at_16x16(mnist):
    problem = load_problem({"name": "mnist_mini", "root": str(mnist)})
    assert parameters(problem) == 7030
    train, test = problem.data("train"), problem.data("test")
    assert train.tensors[0].shape == (8000, 1, 16, 16)
    assert len(test) == 2000
    images = train.tensors[0]
    assert 0 <= images.min() < images.max() <= 1
    raw = (mnist / "MNIST" / "raw" / "train-images-idx3-ubyte").read_bytes()[16:]
    mean = torch.frombuffer(bytearray(raw), dtype=torch.uint8).float().mean() / 255
    assert images.mean() == pytest.approx(float(mean), abs=1e-3)


def test_3c3d_has_the_papers_size_and_layers():
    model = load_problem({"name": "cifar10_3c3d"}).model()
    assert sum(p.numel() for p in model.parameters()) == 895_210
    x, shapes = torch.zeros(1, 3, 32, 32), []
    for layer in model:
        x = layer(x)
        shapes.append(tuple(x.shape[1:]))
    pooled = [(64, 14, 14), (96, 6, 6), (128, 3, 3)]
    assert shapes[2:9:3] == pooled
    assert shapes[9:] == [(1152,), (512,), (512,), (256,), (256,), (10,)]


@pytest.mark.parametrize(
    ("name", "size", "weights", "bias"),
    [
        ("fmnist_mlp", 1_336_610, 0.03, 0.0),
        ("fmnist_2c2d", 3_274_634, 0.05, 0.05),
    ],
)
def test_networks_for_fashion_mnist_are_deepobs(name, size, weights, bias):
    torch.manual_seed(0)
    model = load_problem({"name": name}).model()
    assert sum(p.numel() for p in model.parameters()) == size
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert all((p == bias).all() for n, p in model.named_parameters() if "bias" in n)
    drawn = torch.cat([p.flatten() for n, p in model.named_parameters() if "weight" in n])
    assert drawn.abs().max() <= 2 * weights
    truncated = 0.7737  # the variance of N(0, 1) within two deviations
    assert float(drawn.var()) == pytest.approx(truncated * weights**2, rel=0.01)


def test_all_cnn_c_has_the_papers_size_and_layers():
    model = load_problem({"name": "cifar100_allcnnc"}).model()
    assert sum(p.numel() for p in model.parameters()) == 1_387_108
    x, shapes = torch.randn(2, 3, 32, 32), []
    for layer in model:
        x = layer(x)
        if isinstance(layer, torch.nn.Conv2d):
            shapes.append(tuple(x.shape[1:]))
            assert (layer.bias == 0.1).all()
    wide, narrow = [(96, 32, 32)] * 2 + [(96, 16, 16)], [(192, 16, 16)] * 2 + [(192, 8, 8)]
    assert shapes == [*wide, *narrow, (192, 6, 6), (192, 6, 6), (100, 6, 6)]
    assert x.shape == (2, 100)


def test_stride_2_is_padded_as_tensorflow_pads():
    model = load_problem({"name": "cifar100_allcnnc"}).model()
    pad, convolution = model[5:7]
    image = torch.randn(1, 96, 32, 32)
    corner = (convolution.weight[0] * image[0, :, :3, :3]).sum() + convolution.bias[0]
    torch.testing.assert_close(convolution(pad(image))[0, 0, 0, 0], corner)


def test_resnet18_is_torchvisions():
    from torchvision.models import resnet18

    problem = load_problem({"name": "imagenet_resnet18"})
    assert parameters(problem) == 11_689_512
    torch.manual_seed(1)
    theirs = resnet18().eval()
    torch.manual_seed(1)
    ours = problem.model().eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("name", "sizes", "shape", "classes"),
    [
        ("mnist_mini", (60_000, 10_000), (1, 16, 16), 10),
        ("cifar10_3c3d", (50_000, 10_000), (3, 32, 32), 10),
        ("cifar100_allcnnc", (50_000, 10_000), (3, 32, 32), 100),
        ("fmnist_mlp", (60_000, 10_000), (1, 28, 28), 10),
        ("fmnist_2c2d", (60_000, 10_000), (1, 28, 28), 10),
        ("imagenet_resnet18", (1_281_167, 50_000), (3, 224, 224), 1000),
    ],
)
def test_synthetic_images_are_drawn_when_asked_for(name, sizes, shape, classes, monkeypatch):
    problem = load_problem({"name": name, "synthetic": True})
    train, test = problem.data("train"), problem.data("test")
    assert (len(train), len(test)) == sizes
    image, label = test[7]
    assert (image.shape, image.dtype, label) == (shape, torch.float32, 7)
    assert float(image.mean()) == pytest.approx(0, abs=0.1)
    assert float(image.std()) == pytest.approx(1, abs=0.1)
    assert torch.equal(image, problem.data("test")[7][0])
    assert not torch.equal(image, train[7][0])
    assert not torch.equal(image, test[8][0])
    drawn = []
    draw = type(train).__getitem__
    monkeypatch.setattr(
        type(train), "__getitem__", lambda self, index: drawn.append(index) or draw(self, index)
    )
    _, labels = hessian_batch(train, "train", Hessian(datapoints=classes))
    assert sorted(labels.tolist()) == list(range(classes))
    assert drawn == list(range(classes))


def test_cifar10_is_read_and_normalised(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(256, size=(10, 3, 32, 32), dtype=np.uint8)
    batch = pickle.dumps({"data": pixels.reshape(10, -1), "labels": list(range(10))})
    meta = pickle.dumps({"label_names": list("abcdefghij")})
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for name, content in {**dict.fromkeys(names, batch), "batches.meta": meta}.items():
        (folder / name).write_bytes(content)
    problem = load_problem({"name": "cifar10_3c3d", "root": str(tmp_path)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torchvision.datasets.CIFAR10._check_integrity", lambda self: True)
        patch.setattr("torchvision.datasets.cifar.check_integrity", lambda *file: True)
        train, test = problem.data("train"), problem.data("test")
    assert (len(train), len(test)) == (50, 10)
    image, label = test[3]
    assert label == 3
    mean, deviation = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    for channel, mu, sigma in zip(range(3), mean, deviation, strict=True):
        expected = (pixels[3, channel] / 255 - mu) / sigma
        np.testing.assert_allclose(image[channel], expected, atol=1e-3)
    images, labels = hessian_batch(train, "train", Hessian(datapoints=20))
    assert images.shape == (20, 3, 32, 32)
    assert Counter(labels.tolist()) == dict.fromkeys(range(10), 2)


def test_cifar100_is_read_and_normalised(tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(256, size=(100, 3, 32, 32), dtype=np.uint8)
    content = {"data": pixels.reshape(100, -1), "fine_labels": list(range(100))}
    for name in ("train", "test"):
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": list(map(str, range(100)))}))
    problem = load_problem({"name": "cifar100_allcnnc", "root": str(tmp_path)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torchvision.datasets.CIFAR100._check_integrity", lambda self: True)
        patch.setattr("torchvision.datasets.cifar.check_integrity", lambda *file: True)
        image, label = problem.data("train")[7]
    assert label == 7
    np.testing.assert_allclose(image[2], (pixels[7, 2] / 255 - 0.4409) / 0.2762, atol=1e-3)


@pytest.mark.parametrize("name", ["fmnist_mlp", "fmnist_2c2d"])
def test_fashion_mnist_is_read_as_mnist_is(name, mnist, tmp_path):
    (tmp_path / "FashionMNIST").symlink_to(mnist / "MNIST")
    train = load_problem({"name": name, "root": str(tmp_path)}).data("train")
    images, labels = train.tensors
    assert (images.shape, len(labels)) == ((8000, 1, 28, 28), 8000)
    assert (images.min(), images.max()) == (0, 1)


@pytest.fixture
def transformers(needs):
    needs(find_spec("transformers"), "Transformers: pip install transformers")


def test_a_tiny_gpt2_knows_nothing_at_first(transformers):
    problem = load_problem({"name": "tiny_gpt2", "synthetic": True})
    torch.manual_seed(0)
    model = problem.model()
    assert sum(p.numel() for p in model.parameters()) == 34_688
    (batch,) = batches(problem.data("train"), [torch.arange(50)])
    loss = float(problem.loss_fn(model, batch).detach())
    assert loss == pytest.approx(np.log(256), rel=0.02)
    assert problem.batch_weight(batch) == 50 * 31


def test_random_text_goes_on_in_four_ways():
    problem = load_problem({"name": "tiny_gpt2", "synthetic": True})
    train, test = problem.data("train"), problem.data("test")
    assert (len(train), len(test)) == (9900, 1100)
    following = {}
    for sample in (*train, *test):
        for byte, after in pairwise(sample["input_ids"].tolist()):
            following.setdefault(byte, set()).add(after)
    assert {*map(len, following.values())} <= {1, 2, 3, 4}  # some are drawn twice
    assert sum(map(len, following.values())) > 3.9 * len(following)


def test_a_texts_last_tenth_is_the_test_split(tmp_path):
    (tmp_path / "text").write_bytes(bytes(range(250)) * 40)
    problem = load_problem({"name": "tiny_gpt2", "root": str(tmp_path / "text")})
    train, test = problem.data("train"), problem.data("test")
    assert (len(train), len(test)) == (281, 31)
    assert train[1]["input_ids"].tolist() == list(range(32, 64))
    assert int(test[0]["labels"][0]) == 281 * 32 % 250


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, r"is missing"), ("", r"cannot be read \("), ("short", r"5 bytes, fewer than 320")],
)
def test_a_text_that_is_not_there_is_one_sentence(text, words, tmp_path):
    (tmp_path / "short").write_text("short")
    root = {} if text is None else {"root": str(tmp_path / text)}
    problem = load_problem({"name": "tiny_gpt2", **root})
    with pytest.raises(ConfigError, match=rf"^problem\.root.*{words}.*problem\.synthetic=true\.$"):
        problem.data("train")


def test_missing_transformers_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install transformers"):
        load_problem({"name": "tiny_gpt2"}).model()


def test_imagenet_is_cropped_at_the_centre_and_normalised(tmp_path):
    colours = {"n01": (255, 0, 0), "n02": (0, 0, 255)}
    for folder, (name, colour) in ((f, c) for f in ("train", "val") for c in colours.items()):
        path = tmp_path / folder / name
        path.mkdir(parents=True)
        image = Image.new("RGB", (400, 300), (0, 255, 0))
        image.paste(colour, (100, 50, 300, 250))
        image.save(path / "a.png")
    problem = load_problem({"name": "imagenet_resnet18", "root": str(tmp_path)})
    (red, zero), (blue, one) = problem.data("test")
    assert (red.shape, zero, one) == ((3, 224, 224), 0, 1)
    centre = torch.tensor([(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225])
    torch.testing.assert_close(red[:, 112, 112], centre)
    assert blue[2, 112, 112] == pytest.approx((1 - 0.406) / 0.225)
    assert red[1, 0, 0] == pytest.approx((1 - 0.456) / 0.224)
    inside = (red[0] > 0).nonzero()
    assert (inside.min(dim=0).values - 27).abs().max() <= 1  # 256/300 · 50 - 16, and likewise
    assert (inside.max(dim=0).values - 196).abs().max() <= 2
    _, labels = hessian_batch(problem.data("train"), "train", Hessian(datapoints=2))
    assert labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("mnist_mini", r"problem\.download=true or problem\.synthetic=true"),
        ("cifar10_3c3d", r"problem\.download=true or problem\.synthetic=true"),
        ("cifar100_allcnnc", r"problem\.download=true or problem\.synthetic=true"),
        ("fmnist_mlp", r"problem\.download=true or problem\.synthetic=true"),
        ("fmnist_2c2d", r"problem\.download=true or problem\.synthetic=true"),
        ("imagenet_resnet18", r"problem\.synthetic=true"),
    ],
)
def test_images_that_are_not_there_are_one_sentence(name, way_out, tmp_path):
    problem = load_problem({"name": name, "root": str(tmp_path)})
    with pytest.raises(ConfigError, match=rf"^problem\.root: .*{way_out}") as caught:
        problem.data("train")
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=rf"^problem\.root is missing.*{way_out}"):
        load_problem({"name": name}).data("train")
    with pytest.raises(ConfigError, match=r"train and test, not 'valid'"):
        problem.data("valid")


def test_missing_torchvision_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    problem = load_problem({"name": "mnist_mini", "root": "."})
    assert parameters(problem) == 7030
    with pytest.raises(ConfigError, match=r"pip install torchvision"):
        problem.data("train")


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a user's module into a folder of its own; its import is undone afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    written = []

    def write(name: str, text: str) -> str:
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        written.append(path.stem)
        return str(tmp_path)

    yield write
    for name in written:
        sys.modules.pop(name, None)


OWN = """
import torch
from own_layers import WIDTH
from skerch.jobs.problems import Problem

def make(depth, scale=1.0):
    return Problem(lambda: torch.nn.Linear(WIDTH, depth), lambda split: None, lambda m, b: m(b))
"""


def test_a_users_factory_comes_from_its_own_folder(module):
    module("own_layers", "WIDTH = 3")
    folder = module("own_problem", OWN)
    problem = load_problem({"factory": "own_problem:make", "depth": 4}, folder)
    assert parameters(problem) == 16


def test_modules_of_one_name_in_two_folders_are_not_confused(module, tmp_path):
    folders = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    for width, folder in enumerate(folders, start=3):
        module(f"{folder.name}/own_layers", f"WIDTH = {width}")
        module(f"{folder.name}/own_problem", OWN)
    for folder in (folders[0], folders[1], folders[0], folders[2]):
        problem = load_problem({"factory": "own_problem:make", "depth": 4}, str(folder))
        assert parameters(problem) == 4 * (4 + folders.index(folder))


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        ({"name": "digits_mlp", "depth": 2}, r"no key problem\.depth"),
        ({"factory": "own2:make", "deep": 2}, r"problem\.deep; did you mean problem\.depth\?"),
        ({"factory": "own2:make"}, r"problem\.depth is missing; make needs it"),
        ({"factory": "own2:mak"}, r"own2\.py has no function mak"),
        ({"factory": "own3:make"}, r"own3:make cannot be imported: ModuleNotFoundError: .*own3"),
        ({"factory": "broken:make"}, r"broken:make .*ZeroDivisionError: .*broken\.py:2\)"),
        ({"factory": "own2:nothing"}, r"returned a NoneType; it must return .*Problem"),
        ({"factory": "own2:fails"}, r"problem failed: KeyError: 'x' .*own2\.py:\d+\)"),
        ({"factory": "own2"}, r"must be module:function"),
        ({}, r"either name or factory"),
    ],
)
def test_a_problem_that_cannot_be_had_is_one_sentence(problem, words, module):
    module("broken", "\n1 / 0\n")
    text = OWN.replace("own_layers", "own_layers2")
    module("own_layers2", "WIDTH = 3")
    folder = module("own2", f"{text}\ndef nothing(): pass\n\ndef fails(): return {{}}['x']\n")
    with pytest.raises(ConfigError, match=words) as caught:
        load_problem(problem, folder)
    assert "\n" not in str(caught.value)


RAISES = """
import json, sys, torch

class Mute(Exception):
    def __str__(self): raise ValueError("no words")

def wordless(): assert 1 > 2
def mute(): raise Mute
def in_torch(): torch.ones(2, 3) @ torch.ones(2)
in_lambda = lambda: [1][2]
def in_python(): json.loads("{")
def listed(): torch.nn.Linear(2, 1).load_state_dict({})
def lines(): raise OSError("\\n  no disk\\nat all")
def leaves(): sys.exit(3)
def deep(): deep()
def chained():
    try: {}["x"]
    except KeyError as error: raise TypeError("no x") from error
def interrupted(): raise KeyboardInterrupt
"""


@pytest.mark.parametrize("folder", ["", "lib/python3.11/site-packages/vision"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wordless", "AssertionError (:7)"),
        ("mute", "Mute: <exception str() failed> (:8)"),
        ("in_torch", "RuntimeError: size mismatch; (:9)"),
        ("in_lambda", "IndexError: list index out of range (:10)"),
        ("in_python", "JSONDecodeError: Expecting property name; (:11)"),
        (
            "listed",
            'RuntimeError: Error(s) in; for Linear: Missing key(s) in state_dict: "weight"; (:12)',
        ),
        ("lines", "OSError: no disk (:13)"),
        ("leaves", "SystemExit: 3 (:14)"),
        ("deep", "RecursionError: maximum recursion depth exceeded; (:15)"),
        ("chained", "TypeError: no x (:18), from KeyError: 'x' (:17)"),
    ],
)
def test_an_error_is_named_with_the_line_of_the_users_own_code(folder, name, words, module):
    place = folder and f"{folder}/"
    path = module(f"{place}own4", RAISES)
    with pytest.raises(ConfigError, match=r"^problem failed: [^\n]*$") as caught:
        load_problem({"factory": f"own4:{name}"}, f"{path}/{folder}")
    for part in words.replace("(:", f"({path}/{place}own4.py:").split("; "):
        assert part in str(caught.value)


def test_an_interrupt_of_the_users_code_is_no_error_of_it(module):
    folder = module("own4", RAISES)
    with pytest.raises(KeyboardInterrupt):
        load_problem({"factory": "own4:interrupted"}, folder)


def test_a_loss_says_itself_what_its_mean_divides_by():
    loss_fn = supervised_loss(torch.nn.CrossEntropyLoss(ignore_index=0))
    batch = torch.zeros(3, 2), torch.tensor([0, 1, 1])
    problem = Problem(lambda: torch.nn.Linear(2, 2), lambda split: TensorDataset(*batch), loss_fn)
    assert problem.batch_weight(batch) == 2
    assert replace(problem, batch_weight=lambda _: 7.0).batch_weight(batch) == 7
    assert Problem(problem.model, problem.data, lambda model, batch: None).batch_weight is None
