from __future__ import annotations

import argparse
import collections
import copy
import datetime
import pathlib
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deterministic_weights import deterministic_weights
from fake_checkpoints import TINY, fake_class, fake_modules, state_dict, ultralytics_like

from trtkit.errors import CheckpointError
from trtkit.models import Preprocess, load
from trtkit.models.checkpoint import Checkpoint, read_checkpoint
from trtkit.models.layers import parse_activation
from trtkit.models.torch_model import from_checkpoint
from trtkit.models.yolo import build_model, has_depthwise_scores, load_weights

# Saving classes made in a test, torch can't keep their source code beside them.
pytestmark = pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")


def save(value: Any, path: Path, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


def test_reads_what_ultralytics_saves(checkpoint: Path) -> None:
    content_read = read_checkpoint(checkpoint)
    expected = state_dict()
    assert set(content_read.weights) == set(expected)
    for name, value in expected.items():
        assert torch.equal(content_read.weights[name], value.half() if value.is_floating_point() else value), name
    assert content_read.yaml == TINY
    assert content_read.layers == ("Conv", "Conv", "C2f", "Conv", "Detect")
    assert content_read.names == {0: "ant", 1: "bee", 2: "cat"}
    assert content_read.stride == (4.0, 8.0)
    assert content_read.args["imgsz"] == 96
    assert content_read.notes == {
        "date": "2026-01-02", "version": "8.4.190", "license": "AGPL-3.0", "docs": "https://docs.ultralytics.com"
    }  # fmt: skip
    assert set(content_read.activations.values()) == {"SiLU"}
    assert set(content_read.epsilons.values()) == {1e-3}


def test_model_has_the_values_of_the_file(checkpoint: Path) -> None:
    model = load(checkpoint)
    assert (model.task, model.stride, model.imgsz, model.channels) == ("detect", 8, (96, 96), 3)
    assert model.names == {0: "ant", 1: "bee", 2: "cat"}
    assert model.architecture == "yolov8n"
    assert model.source == checkpoint
    assert model.module is not None
    assert not model.module.training
    # Two stride levels of a 96 x 64 image: 24 * 16 + 12 * 8 anchors.
    assert model.module(torch.zeros(2, 3, 96, 64)).shape == (2, 7, 480)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_reads_every_pickle_protocol(content: dict[str, Any], tmp_path: Path, checkpoint: Path, protocol: int) -> None:
    path = save(content, tmp_path / "other.pt", pickle_protocol=protocol)
    assert load(path).hash == load(checkpoint).hash


def test_reads_the_legacy_format_of_torch_1_5(content: dict[str, Any], tmp_path: Path, checkpoint: Path) -> None:
    path = save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert load(path).hash == load(checkpoint).hash


def test_prefers_the_ema(content: dict[str, Any], tmp_path: Path, checkpoint: Path) -> None:
    averaged = ultralytics_like(half=False)
    with torch.no_grad():
        for value in averaged.parameters():
            value.mul_(0.5)
    content["ema"] = averaged
    content_read = read_checkpoint(save(content, tmp_path / "ema.pt"))
    name = "model.0.conv.weight"
    assert torch.equal(content_read.weights[name], state_dict()[name] * 0.5)


def test_reads_a_module_saved_alone(fake_ultralytics: None, tmp_path: Path, checkpoint: Path) -> None:
    assert load(save(ultralytics_like(), tmp_path / "alone.pt")).hash == load(checkpoint).hash


def test_hash_depends_on_weights_and_not_on_the_file(content: dict[str, Any], tmp_path: Path, checkpoint: Path) -> None:
    again = copy.deepcopy(content)
    again["train_metrics"], again["date"] = {}, "later"
    assert load(save(again, tmp_path / "again.pt")).hash == load(checkpoint).hash
    with torch.no_grad():
        again["model"].model[0].conv.weight[0, 0, 0, 0] += 1
    assert load(save(again, tmp_path / "other.pt")).hash != load(checkpoint).hash
    assert len(load(checkpoint).hash) == 64


def test_inert_values_around_the_model(content: dict[str, Any], tmp_path: Path) -> None:
    space = fake_class("ultralytics.utils", "IterableSimpleNamespace", argparse.Namespace)
    content.update(
        best_fitness=np.float64(0.5),
        where=pathlib.PurePosixPath("/somewhere"),
        when=datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc),
        kinds={"half": torch.float16, "device": torch.device("cpu")},
        array=np.arange(3),
        raw=b"\xff\x00",
        ordered=collections.OrderedDict(a=1),
        several={1, 2},
    )
    del content["train_args"]
    content["model"].args = space(imgsz=128, model=pathlib.PurePosixPath("x"))
    assert load(save(content, tmp_path / "rich.pt")).imgsz == (128, 128)


def test_activations_and_epsilons_come_from_the_modules(content: dict[str, Any], tmp_path: Path) -> None:
    content["model"].model[0].act = torch.nn.ReLU()
    content["model"].model[1].bn.eps = 0.25
    model = load(save(content, tmp_path / "relu.pt"))
    assert type(model.module.model[0].act) is torch.nn.ReLU
    weights = {name: value.half().float() for name, value in state_dict().items()}
    factor = weights["model.1.bn.weight"] / torch.sqrt(weights["model.1.bn.running_var"] + 0.25)
    expected = weights["model.1.conv.weight"] * factor.reshape(-1, 1, 1, 1)
    assert torch.allclose(model.module.model[1].conv.weight, expected, rtol=1e-6)


def test_weights_fused_before_saving(content: dict[str, Any], tmp_path: Path, checkpoint: Path) -> None:
    plain = load(checkpoint)
    for name, module in list(content["model"].named_modules()):
        if hasattr(module, "bn"):
            del module.bn
            module.conv = copy.deepcopy(plain.module.get_submodule(name).conv)
    fused = load(save(content, tmp_path / "fused.pt"))
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fused.module(image), plain.module(image))


def forward_fuse(self: Any, x: Any) -> Any:
    return x


def test_fused_model_as_ultralytics_saves_it(content: dict[str, Any], tmp_path: Path, checkpoint: Path) -> None:
    """`YOLO(x).fuse()` sets each layer's `forward` to a bound method, which pickle writes as `getattr`."""
    plain = load(checkpoint)
    for name, module in list(content["model"].named_modules()):
        if hasattr(module, "bn"):
            del module.bn
            module.conv = copy.deepcopy(plain.module.get_submodule(name).conv)
            type(module).forward_fuse = forward_fuse
            module.forward = module.forward_fuse
    path = save(content, tmp_path / "fused.pt")
    assert b"getattr" in path.read_bytes()
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(load(path).module(image), plain.module(image))


@pytest.mark.parametrize("key", ["model", "ema", None])
def test_a_parallel_module_is_unwrapped(
    content: dict[str, Any], tmp_path: Path, checkpoint: Path, key: str | None
) -> None:
    wrapped = torch.nn.DataParallel(content["model"])
    path = save({**content, key: wrapped} if key else wrapped, tmp_path / "parallel.pt")
    assert load(path).hash == load(checkpoint).hash


def test_a_parallel_module_of_another_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        load(save({"model": torch.nn.DataParallel(torch.nn.Conv2d(1, 1, 1))}, tmp_path / "other.pt"))
    assert error.value.code == "checkpoint-model-unknown"
    assert error.value.fields["model"] == "torch.nn.modules.conv.Conv2d"


def test_the_class_branch_is_that_of_the_weights() -> None:
    """Ultralytics 8.3.0 to 8.3.10 built YOLO11's class branch for YOLOv8, too."""
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    outputs = []
    for depthwise in (False, True):
        shapes = {
            name: value.shape for name, value in build_model(TINY, depthwise_scores=depthwise).state_dict().items()
        }
        weights = {name: torch.from_numpy(value) for name, value in deterministic_weights(shapes).items()}
        assert has_depthwise_scores(weights) == depthwise
        expected = load_weights(build_model(TINY, depthwise_scores=depthwise), weights)(image)
        outputs.append(from_checkpoint(Checkpoint(yaml=TINY, weights=weights), None).module(image))
        assert torch.equal(outputs[-1], expected)
    assert not torch.equal(*outputs)


def test_options_of_activations_come_from_the_modules(content: dict[str, Any], tmp_path: Path) -> None:
    content["model"].model[0].act = torch.nn.LeakyReLU(0.3)
    content["model"].model[1].act = torch.nn.GELU("tanh")
    model = load(save(content, tmp_path / "leaky.pt"))
    first, second = model.module.model[0].act, model.module.model[1].act
    assert (type(first), first.negative_slope) == (torch.nn.LeakyReLU, 0.3)
    assert (type(second), second.approximate) == (torch.nn.GELU, "tanh")


@pytest.mark.parametrize(
    ("text", "kind", "options"),
    [
        ("SiLU", "SiLU", {}),
        ("torch.nn.ReLU(inplace=True)", "ReLU", {}),
        ("nn.LeakyReLU(0.1)", "LeakyReLU", {"negative_slope": 0.1}),
        ("nn.LeakyReLU(0.1, True)", "LeakyReLU", {"negative_slope": 0.1}),
        ("nn.ELU(alpha=0.5, inplace=True)", "ELU", {"alpha": 0.5}),
        ("nn.ELU(-1)", "ELU", {"alpha": -1}),
    ],
)
def test_activation_texts(text: str, kind: str, options: dict[str, float]) -> None:
    found = parse_activation(text)
    assert type(found) is getattr(torch.nn, kind)
    assert {name: getattr(found, name) for name in options} == options


@pytest.mark.parametrize(
    "text",
    ["", "nn.Softplus()", "os.system('true')", "nn.LeakyReLU('x')", "nn.LeakyReLU(1, 2, 3)", "nn.ReLU(beta=1)",
     "-" * 100_000 + "1",
     "nn.SiLU()()", "nn.LeakyReLU(__import__('os'))", "nn.ELU(1e999)", "[nn.ReLU()]", "nn.ReLU() + 1",
     "(" * 200, "nn.Module()"],
)  # fmt: skip
def test_texts_that_are_no_activation(text: str) -> None:
    assert parse_activation(text) is None


class Normalize:
    """Pickled as torchvision's transform of that name."""

    def __init__(self, mean: Any, std: Any) -> None:
        self.mean, self.std = mean, std


class Compose:
    """Likewise."""

    def __init__(self, transforms: list[Any]) -> None:
        self.transforms = transforms


@pytest.fixture
def normalized(content: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    fake_modules(monkeypatch, "torchvision", "torchvision.transforms", "torchvision.transforms.transforms")
    for kind in (Normalize, Compose):
        monkeypatch.setattr(kind, "__module__", "torchvision.transforms.transforms")
        setattr(sys.modules["torchvision.transforms.transforms"], kind.__name__, kind)
    content["model"].transforms = Compose([Normalize(torch.tensor([0.4, 0.5, 0.6]), [0.1, 0.2, 0.3])])
    return content


def test_normalization_becomes_the_preprocessing(normalized: dict[str, Any], tmp_path: Path) -> None:
    preprocess = load(save(normalized, tmp_path / "normalized.pt")).preprocess
    assert preprocess.mean == pytest.approx((0.4, 0.5, 0.6))
    assert preprocess.std == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("kind", [dict, types.SimpleNamespace])
def test_a_live_module_has_the_settings_of_its_file(normalized: dict[str, Any], tmp_path: Path, kind: Any) -> None:
    stored = load(save(normalized, tmp_path / "normalized.pt"))
    model = normalized["model"]
    model.args = kind(**normalized["train_args"])
    live = load(model)
    assert live.imgsz == stored.imgsz == (96, 96)
    assert live.preprocess == stored.preprocess
    assert live.hash == stored.hash
    model.stride = torch.tensor([4.0, 16.0])
    with pytest.raises(CheckpointError) as error:
        load(model)
    assert error.value.code == "checkpoint-stride-mismatch"


def test_identity_normalization_is_none(normalized: dict[str, Any], tmp_path: Path) -> None:
    normalized["model"].transforms = Compose([Normalize([0.0] * 3, [1.0] * 3)])
    assert load(save(normalized, tmp_path / "identity.pt")).preprocess == Preprocess()


@pytest.mark.parametrize("std", [None, [0.0] * 3, [0.1, 0.2], ["a", "b", "c"], [float("nan")] * 3])
def test_invalid_normalization_raises(normalized: dict[str, Any], tmp_path: Path, std: Any) -> None:
    normalized["model"].transforms = Compose([Normalize([0.5] * 3, std)])
    with pytest.raises(CheckpointError) as error:
        load(save(normalized, tmp_path / "invalid.pt"))
    assert error.value.code == "checkpoint-normalization"
