from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_checkpoints import fake_class, ultralytics_like
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from trtkit.errors import CheckpointError, ModelError
from trtkit.models import TASKS, ModelInfo, OutputFormat, Preprocess, load
from trtkit.models.model import CLASS_SCORES, DENSE, NMS_ROWS
from trtkit.models.torch_model import parse_imgsz

ROOT = Path(__file__).parents[2]


class Boxes(nn.Module):
    """A detector of three classes with one anchor a pixel."""

    def __init__(self, values: int = 7) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, values, 1)
        self.drop = nn.Dropout()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.conv(x)).flatten(2)


@pytest.fixture
def image() -> torch.Tensor:
    return torch.zeros(1, 3, 32, 64)


def test_a_module_with_an_example(image: torch.Tensor) -> None:
    module = Boxes().train()
    model = load(module, task="detect", names=["a", "b", "c"], example=image)
    assert (model.task, model.imgsz, model.channels, model.stride) == ("detect", (32, 64), 3, 32)
    assert model.names == {0: "a", 1: "b", 2: "c"}
    assert (model.source, model.stem, model.parameters) == (None, "Boxes", 28)
    assert model.module is not module
    assert model.module is not None
    assert not model.module.training
    assert module.training, "the caller's module stays as it was"
    assert torch.equal(model.example, image)
    assert load(module, task="detect", example=image, imgsz=320).imgsz == (320, 320)


def test_hash_of_a_module_is_of_its_layers_and_weights(image: torch.Tensor) -> None:
    module = Boxes()
    found = load(module, task="detect", example=image).hash
    assert load(copy.deepcopy(module), task="detect", example=image, names=["x", "y", "z"]).hash == found
    changed = copy.deepcopy(module)
    changed.conv.bias.data[0] += 1
    assert load(changed, task="detect", example=image).hash != found
    changed = copy.deepcopy(module)
    changed.drop = nn.Dropout(0.1)
    assert load(changed, task="detect", example=image).hash != found


def test_a_half_module_becomes_fp32(image: torch.Tensor) -> None:
    model = load(Boxes().half(), task="detect", example=image.half())
    assert model.module is not None
    assert model.module(image).dtype == torch.float32


def test_a_module_needs_a_task(image: torch.Tensor) -> None:
    with pytest.raises(ModelError, match="load a Boxes: it does not say what its task is; pass task="):
        load(Boxes(), example=image)


@pytest.mark.parametrize("example", [None, torch.zeros(3, 32, 32), [1]])
def test_a_module_needs_an_example(example: Any) -> None:
    with pytest.raises(ModelError, match=r"there is no example input of shape \(B, C, H, W\)"):
        load(Boxes(), task="detect", example=example)


def test_a_module_that_fails_on_its_example() -> None:
    with pytest.raises(ModelError, match="it fails on the example"):
        load(Boxes(), task="detect", example=torch.zeros(1, 4, 32, 32))


def test_a_module_whose_outputs_do_not_fit(image: torch.Tensor) -> None:
    with pytest.raises(ModelError, match="outputs of shape 1x7x2048 do not fit classify"):
        load(Boxes(), task="classify", example=image)


def test_a_module_that_returns_a_dictionary(image: torch.Tensor) -> None:
    class Named(Boxes):
        def forward(self, x: torch.Tensor) -> Any:
            return [{"boxes": super().forward(x)}]

    with pytest.raises(ModelError, match="its outputs are not tensors"):
        load(Named(), task="detect", example=image)


def test_a_live_module_of_ultralytics_is_rebuilt(fake_ultralytics: None, checkpoint: Path) -> None:
    live = ultralytics_like(half=False).train()
    model = load(live)
    assert type(model.module).__module__ == "trtkit.models.yolo"
    assert model.names == {0: "ant", 1: "bee", 2: "cat"}
    assert model.source is None
    assert live.training
    assert hasattr(live.model[0], "bn")
    # The object around it: an attribute `model` that is the module.
    around = fake_class("ultralytics.nn.tasks", "YOLO")()
    around.model = live
    assert load(around).hash == model.hash


def test_a_model_is_handed_back(checkpoint: Path) -> None:
    model = load(checkpoint)
    assert load(model) is model


def test_names_and_size_can_be_replaced(checkpoint: Path) -> None:
    model = load(str(checkpoint), names=["x", "y", "z"], imgsz=(64, 128), task="detect")
    assert model.names == {0: "x", 1: "y", 2: "z"}
    assert model.imgsz == (64, 128)
    assert load(checkpoint, names={2: "c", 0: "a", 1: "b"}).names == {0: "a", 1: "b", 2: "c"}


def test_arguments_against_the_checkpoint(checkpoint: Path) -> None:
    with pytest.raises(ModelError, match="task='pose' was asked but it is a model for detect"):
        load(checkpoint, task="pose")
    with pytest.raises(ModelError, match="2 names were given for 3 classes"):
        load(checkpoint, names=["x", "y"])
    with pytest.raises(ModelError, match="imgsz is 0"):
        load(checkpoint, imgsz=0)


@pytest.mark.parametrize("source", [None, 3, b"x", {"model": 1}])
def test_other_objects(source: Any) -> None:
    with pytest.raises(ModelError, match=r"is no model; pass a \.pt or \.onnx file or a torch module"):
        load(source)


@pytest.mark.parametrize(
    ("name", "said"), [("x.engine", "a file .engine is no model"), ("x", "a file without a suffix")]
)
def test_other_files(name: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        load(name)


@pytest.mark.parametrize("value", [0, -1, 1.5, "640", True, (640,) * 3, (640, 0), None, ()])
def test_sizes_that_are_none(value: Any) -> None:
    with pytest.raises(ModelError, match="pass a positive number of pixels"):
        parse_imgsz(value, "x")


def test_sizes() -> None:
    assert parse_imgsz(640, "x") == (640, 640)
    assert parse_imgsz([320], "x") == (320, 320)
    assert parse_imgsz((320, 640), "x") == (320, 640)


def test_loading_imports_neither_ultralytics_nor_torchvision(checkpoint: Path) -> None:
    code = (
        f"import sys\nfrom trtkit.models import load\nload({str(checkpoint)!r})\n"
        "found = {name.partition('.')[0] for name in sys.modules} & {'ultralytics', 'torchvision', 'onnx'}\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120)


def test_the_room_itself_imports_nothing_heavy() -> None:
    code = (
        "import sys\nimport trtkit.models\n"
        "found = {'torch', 'onnx', 'numpy', 'cv2', 'polars', 'plotly'} & set(sys.modules)\nassert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60)


def test_one_error_type_catches_all(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        load(tmp_path / "absent.pt")
    assert issubclass(CheckpointError, ModelError)


PREPROCESS = st.builds(
    Preprocess,
    kind=st.sampled_from(["letterbox", "stretch", "center_crop"]),
    color=st.sampled_from(["rgb", "bgr"]),
    scale=st.floats(1e-6, 1e6),
    mean=st.just(()) | st.tuples(*[st.floats(-1e3, 1e3)] * 3),
    std=st.just(()) | st.tuples(*[st.floats(1e-3, 1e3)] * 3),
)
FORMATS = st.sampled_from([DENSE, NMS_ROWS, CLASS_SCORES, OutputFormat(name="queries")])


@given(
    task=st.sampled_from(TASKS),
    names=st.dictionaries(st.integers(0, 999), st.text(max_size=12), min_size=1, max_size=5),
    stride=st.sampled_from([1, 16, 32, 64]),
    imgsz=st.tuples(st.integers(1, 4096), st.integers(1, 4096)),
    kpt_shape=st.none() | st.tuples(st.integers(1, 133), st.integers(2, 3)),
    preprocess=PREPROCESS,
    output_format=FORMATS,
)
def test_model_info_survives_metadata_as_json_and_as_text(preprocess: Preprocess, **values: Any) -> None:
    notes = {"version": "8.4.190", "date": "2026-01-02"}
    info = ModelInfo(**values, preprocess=preprocess, architecture="yolo11n", notes=notes)
    metadata = info.to_metadata()
    assert metadata["trtkit"]["format_version"] == 2
    assert ModelInfo.from_metadata(metadata) == info
    assert ModelInfo.from_metadata({**metadata, "trtkit": json.dumps(metadata["trtkit"])}) == info
    assert ModelInfo.from_metadata({key: str(value) for key, value in metadata.items()}) == info


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("nms", [False, True])
def test_files_without_formats_get_the_defaults_of_their_task(task: str, nms: bool) -> None:
    """What trtkit 0.1.0 and Ultralytics wrote."""
    metadata = {**ModelInfo(task=task, names={0: "a"}).to_metadata(), "args": {"nms": nms}, "channels": 1}
    metadata["trtkit"] = {"precision": "int8"}
    info = ModelInfo.from_metadata(metadata)
    classify = task == "classify"
    assert info.preprocess == Preprocess(kind="center_crop" if classify else "letterbox", channels=1)
    assert info.output_format == (CLASS_SCORES if classify else NMS_ROWS if nms else DENSE)
    assert info.nms == (nms and not classify)
    assert info.channels == 1


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "crop"},
        {"color": "gray"},
        {"scale": 0.0},
        {"scale": float("nan")},
        {"mean": (0.5,)},
        {"std": (1.0, 0.0, 1.0)},
        {"channels": 0},
    ],
)
def test_preprocess_rejects_impossible_values(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        Preprocess(**values)
