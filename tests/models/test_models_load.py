from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_checkpoints import fake_class, ultralytics_like
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from trtkit.errors import CheckpointError, ModelError
from trtkit.models import TASKS, ModelInfo, OutputFormat, Preprocess, load
from trtkit.models.model import CLASS_SCORES, DENSE, DETR_QUERIES, DETR_ROWS, END2END_ROWS, NMS_ROWS
from trtkit.models.model_arguments import parse_imgsz, register_task_name
from trtkit.models.torch_model import hash_weights

ROOT = Path(__file__).parents[2]


class Boxes(nn.Module):
    """A detector of three classes with one anchor per pixel."""

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


def test_hash_of_a_module_covers_layers_and_weights(image: torch.Tensor) -> None:
    module = Boxes()
    expected = load(module, task="detect", example=image).hash
    assert load(copy.deepcopy(module), task="detect", example=image, names=["x", "y", "z"]).hash == expected
    changed = copy.deepcopy(module)
    changed.conv.bias.data[0] += 1
    assert load(changed, task="detect", example=image).hash != expected
    changed = copy.deepcopy(module)
    changed.drop = nn.Dropout(0.1)
    assert load(changed, task="detect", example=image).hash != expected


def test_an_fp16_module_becomes_fp32(image: torch.Tensor) -> None:
    model = load(Boxes().half(), task="detect", example=image.half())
    assert model.module is not None
    assert model.module(image).dtype == torch.float32


def test_a_module_without_a_task_raises(image: torch.Tensor) -> None:
    with pytest.raises(ModelError) as error:
        load(Boxes(), example=image)
    assert error.value.code == "model-task-missing"


@pytest.mark.parametrize("example", [None, torch.zeros(3, 32, 32), [1]])
def test_a_module_without_an_example_raises(example: Any) -> None:
    with pytest.raises(ModelError) as error:
        load(Boxes(), task="detect", example=example)
    assert error.value.code == "model-example-missing"


def test_a_module_that_fails_on_its_example() -> None:
    with pytest.raises(ModelError) as error:
        load(Boxes(), task="detect", example=torch.zeros(1, 4, 32, 32))
    assert error.value.code == "model-example-fails"


@pytest.mark.parametrize("failure", [AssertionError("odd"), AttributeError("odd"), OSError("odd")])
def test_a_module_may_fail_in_any_way(image: torch.Tensor, failure: Exception) -> None:
    class Failing(Boxes):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise failure

    with pytest.raises(ModelError) as error:
        load(Failing(), task="detect", example=image)
    assert error.value.code == "model-example-fails"


def test_a_module_that_can_not_be_copied(image: torch.Tensor) -> None:
    for value in (threading.Lock(), torch.ones(1, requires_grad=True) * 2):
        module = Boxes()
        module.kept = value
        with pytest.raises(ModelError) as error:
            load(module, task="detect", example=image)
        assert error.value.code == "model-copy-fails"


def test_a_module_whose_outputs_do_not_fit(image: torch.Tensor) -> None:
    with pytest.raises(ModelError) as error:
        load(Boxes(), task="classify", example=image)
    assert error.value.code == "model-outputs-mismatch"
    assert error.value.fields["task"] == "classify"
    assert error.value.fields["shapes"] == [[1, 7, 2048]]


def test_a_module_that_returns_a_dictionary(image: torch.Tensor) -> None:
    class Named(Boxes):
        def forward(self, x: torch.Tensor) -> Any:
            return [{"boxes": super().forward(x)}]

    with pytest.raises(ModelError) as error:
        load(Named(), task="detect", example=image)
    assert error.value.code == "model-outputs-not-tensors"


def test_a_live_module_of_ultralytics_is_rebuilt(fake_ultralytics: None, checkpoint: Path) -> None:
    live = ultralytics_like(half=False).train()
    model = load(live)
    assert type(model.module).__module__ == "trtkit.models.yolo"
    assert model.names == {0: "ant", 1: "bee", 2: "cat"}
    assert model.source is None
    assert live.training
    assert hasattr(live.model[0], "bn")
    # Ultralytics' YOLO object holds the module as `model`.
    wrapper = fake_class("ultralytics.nn.tasks", "YOLO")()
    wrapper.model = live
    assert load(wrapper).hash == model.hash


def test_a_model_is_returned_unchanged(checkpoint: Path) -> None:
    model = load(checkpoint)
    assert load(model) is model


@pytest.mark.parametrize(
    "arguments",
    [{"names": ["x", "y", "z"]}, {"imgsz": 64}, {"preprocess": Preprocess()}, {"output_format": DENSE}],
)
def test_a_model_takes_no_arguments_that_would_change_nothing(checkpoint: Path, arguments: dict[str, Any]) -> None:
    model = load(checkpoint)
    assert load(model, task="detect") is model
    with pytest.raises(ModelError) as error:
        load(model, **arguments)
    assert error.value.code == "model-arguments-unused"
    assert error.value.fields["names"] == list(arguments)
    with pytest.raises(ModelError) as error:
        load(model, task="pose")
    assert error.value.code == "model-task-mismatch"


@pytest.mark.parametrize("names", ["abc", 3, {"x": "ant"}, 3.5])
def test_names_of_another_kind(checkpoint: Path, image: torch.Tensor, names: Any) -> None:
    for source, arguments in ((checkpoint, {}), (Boxes(), {"task": "detect", "example": image})):
        with pytest.raises(ModelError) as error:
            load(source, names=names, **arguments)
        assert error.value.code == "model-names-invalid"
        assert error.value.fields["value"] == names


def test_names_and_size_can_be_replaced(checkpoint: Path) -> None:
    model = load(str(checkpoint), names=["x", "y", "z"], imgsz=(64, 128), task="detect")
    assert model.names == {0: "x", 1: "y", 2: "z"}
    assert model.imgsz == (64, 128)
    assert load(checkpoint, names={2: "c", 0: "a", 1: "b"}).names == {0: "a", 1: "b", 2: "c"}


def test_arguments_that_contradict_the_checkpoint(checkpoint: Path) -> None:
    with pytest.raises(ModelError) as error:
        load(checkpoint, task="pose")
    assert error.value.code == "model-task-mismatch"
    assert error.value.fields["value"] == "pose"
    assert error.value.fields["expected"] == "detect"
    with pytest.raises(ModelError) as error:
        load(checkpoint, names=["x", "y"])
    assert error.value.code == "model-names-mismatch"
    assert error.value.fields["names"] == 2
    assert error.value.fields["classes"] == 3
    with pytest.raises(ModelError) as error:
        load(checkpoint, imgsz=0)
    assert error.value.code == "model-imgsz-invalid"
    assert error.value.fields["value"] == 0


@pytest.mark.parametrize("source", [None, 3, b"x", {"model": 1}])
def test_other_objects(source: Any) -> None:
    with pytest.raises(ModelError) as error:
        load(source)
    assert error.value.code == "model-type-unknown"
    assert error.value.fields["type"] == type(source).__name__


@pytest.mark.parametrize(("name", "suffix"), [("x.engine", ".engine"), ("x", "")])
def test_other_files(name: str, suffix: str) -> None:
    with pytest.raises(ModelError) as error:
        load(name)
    assert error.value.code == "model-suffix-unknown"
    assert error.value.fields == {"suffix": suffix, "path": Path(name)}


@pytest.mark.parametrize("value", [0, -1, 1.5, "640", True, (640,) * 3, (640, 0), None, (), 10**9, [[640]]])
def test_invalid_sizes(value: Any) -> None:
    with pytest.raises(ModelError) as error:
        parse_imgsz(value, "x", ModelError)
    assert error.value.code == "model-imgsz-invalid"


def test_sizes() -> None:
    assert parse_imgsz(640, "x", ModelError) == (640, 640)
    assert parse_imgsz([320], "x", ModelError) == (320, 320)
    assert parse_imgsz(np.array([320, 640]), "x", ModelError) == (320, 640)
    assert parse_imgsz((320, 640), "x", ModelError) == (320, 640)


def test_loading_imports_neither_ultralytics_nor_torchvision(checkpoint: Path) -> None:
    code = (
        f"import sys\nfrom trtkit.models import load\nload({str(checkpoint)!r})\n"
        "found = {name.partition('.')[0] for name in sys.modules} & {'ultralytics', 'torchvision', 'onnx'}\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120)


def test_importing_the_package_imports_no_large_library() -> None:
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
FORMATS = st.sampled_from(
    [DENSE, NMS_ROWS, END2END_ROWS, DETR_QUERIES, DETR_ROWS, CLASS_SCORES, OutputFormat(name="queries")]
)


@given(
    task=st.sampled_from(TASKS),
    names=st.lists(st.text(max_size=12), min_size=1, max_size=5).map(lambda names: dict(enumerate(names))),
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
@pytest.mark.parametrize(("nms", "end2end"), [(False, False), (True, False), (False, True)])
def test_files_without_formats_get_the_defaults_of_their_task(task: str, nms: bool, end2end: bool) -> None:
    """What trtkit 0.1.0 and Ultralytics wrote."""
    metadata = {**ModelInfo(task=task, names={0: "a"}).to_metadata(), "args": {"nms": nms}, "channels": 1}
    metadata["end2end"] = end2end
    metadata["trtkit"] = {"precision": "int8"}
    info = ModelInfo.from_metadata(metadata)
    classify = task == "classify"
    assert info.preprocess == Preprocess(kind="center_crop" if classify else "letterbox", channels=1)
    assert info.output_format == (CLASS_SCORES if classify else END2END_ROWS if end2end else NMS_ROWS if nms else DENSE)
    assert info.end2end == (end2end and not classify)
    assert info.nms == (nms and not classify)
    assert info.channels == 1


@pytest.mark.parametrize("names", [{1: "a", 2: "b"}, {0: "a", 2: "b"}, {-1: "a", 0: "b"}])
def test_classes_of_a_file_are_numbered_from_0_on(names: dict[int, str]) -> None:
    with pytest.raises(ValueError, match="not from 0 on"):
        ModelInfo.from_metadata({**ModelInfo(task="detect", names={0: "a"}).to_metadata(), "names": names})


def test_names_of_a_file_come_in_the_order_of_their_classes() -> None:
    metadata = {**ModelInfo(task="detect", names={0: "a"}).to_metadata(), "names": {"1": "b", "0": "a"}}
    assert list(ModelInfo.from_metadata(metadata).names.items()) == [(0, "a"), (1, "b")]


def test_names_that_utf8_does_not_hold_are_escaped() -> None:
    info = ModelInfo.from_metadata({"task": "detect", "names": "{0: '\\ud800', 1: 'caf\\u00e9'}"})
    assert info.names == {0: "\\ud800", 1: "café"}


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


def test_a_registered_task_loads_with_names(image: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trtkit.models.model_arguments._REGISTERED_TASKS", [])
    register_task_name("count")
    register_task_name("count")
    model = load(Boxes(), task="count", names=["a", "b"], example=image)
    assert (model.task, model.output_format, model.preprocess.kind) == ("count", DENSE, "letterbox")
    with pytest.raises(ModelError) as error:
        load(Boxes(), task="count", example=image)
    assert error.value.code == "model-names-missing"
    with pytest.raises(ModelError) as error:
        load(Boxes(), task="depth", example=image)
    assert (error.value.code, error.value.fields["names"]) == ("model-task-unknown", (*TASKS, "count"))


def test_counters_of_training_steps_are_not_hashed() -> None:
    weights = {"bn.weight": torch.ones(2), "bn.num_batches_tracked": torch.tensor(1)}
    expected = hash_weights("x", weights)
    assert hash_weights("x", {**weights, "bn.num_batches_tracked": torch.tensor(9)}) == expected
    assert hash_weights("x", {**weights, "bn.weight": torch.zeros(2)}) != expected
    assert hash_weights("y", weights) != expected
