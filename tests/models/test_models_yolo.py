"""Modules against Ultralytics' stored outputs (make_references.py), and against Ultralytics itself if installed."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deterministic_weights import GAIN, deterministic_input, deterministic_weights
from families import FAMILIES, GAINS, NAMES, SMALL, STORED, TASKS
from raising import raises

from trtkit.errors import ModelError
from trtkit.models import Model, load
from trtkit.models.yolo import Yolo, build_model, load_weights

FOLDER = Path(__file__).parent / "references"
STRUCTURES: dict[str, Any] = json.loads((FOLDER / "structures.json").read_text())
SHARED = sorted(path.stem.removeprefix("shared-") for path in FOLDER.glob("shared-*.npz"))
# What make_references.py keeps of prototypes, and of the outputs of the newer families.
PROTOTYPES = slice(None, None, 4)
THINNED = ("yolo26", "yolov10")
ANCHORS, ROWS, PIXELS = slice(None, None, 7), slice(None, None, 5), slice(None, None, 2)


@pytest.fixture(autouse=True)
def sum_in_one_order() -> Iterator[None]:
    """Sums depend on the number of threads: coordinates that untrained weights give differ by 1e-5."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build_with_weights(name: str) -> Yolo:
    """A module with deterministic weights."""
    module = build_model(STRUCTURES[name]["yaml"])
    shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    weights = deterministic_weights(shapes, GAINS.get(name, GAIN))
    return load_weights(module, {key: torch.from_numpy(value) for key, value in weights.items()})


@functools.cache
def load_trained(path: Path) -> Model:
    return load(path)


def compare(module: Yolo, name: str) -> None:
    """Outputs within 1e-4 of the stored ones, and beyond that within eight steps of FP32.

    The machine that stored them has no difference; other instruction sets differ by 1e-6 of a coordinate.
    """
    with np.load(FOLDER / f"{name}.npz") as stored:
        expected = {key: stored[key] for key in stored.files}
    images = torch.from_numpy(deterministic_input(2, *expected.pop("shape")))
    found = {}
    if "rtdetr" in name:
        # The references hold all queries; the module's rows are selected from them.
        module.head.forward = lambda x: torch.cat(module.head.decode(x), 2)
        del expected["detr_rows"]
    with torch.no_grad():
        outputs = module(images)
        outputs = [output.numpy() for output in (outputs if isinstance(outputs, tuple) else (outputs,))]
        if "rows" in expected:
            rows = module.with_head(end2end=True)(images)
            found["rows"] = (rows[0] if isinstance(rows, tuple) else rows).numpy()[:, ROWS]
    found.update(zip(("output0", "output1"), [outputs[0], *(o[:, PROTOTYPES] for o in outputs[1:])], strict=False))
    if name.removeprefix("shared-").startswith(THINNED) and outputs[0].ndim == 3:
        found["output0"] = found["output0"][:, :, ANCHORS]
        found.update({key: found[key][:, :, PIXELS, PIXELS] for key in ("output1",) if key in found})
    if "rtdetr" in name:
        found["output0"] = order_queries(found["output0"], expected["output0"])
    if "step" in expected:
        found["output0"] = found["output0"][..., :: int(expected.pop("step"))]
    assert {key: value.shape for key, value in found.items()} == {key: v.shape for key, v in expected.items()}
    for key, theirs in expected.items():
        # The tolerance is the rounding of float32 at some hundred pixels: 2e-6 of the largest value. With weights that
        # nobody trained, an oriented box of YOLO26 lies hundreds of pixels from its cell in the direction of its angle,
        # whose rounding differs by 1e-5 between Intel's and AMD's AVX-512.
        share = 2e-5 if name.startswith("yolo26") and "obb" in name else 2e-6
        tolerance = max(1e-4, share * float(np.abs(theirs).max()))
        np.testing.assert_allclose(found[key], theirs, atol=tolerance, rtol=1e-6, err_msg=key)


def order_queries(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Queries (B, Q, values) in the order of the stored ones: scores that differ by rounding may swap two of them."""
    distances = np.abs(found[:, None] - expected[:, :, None]).max(-1)
    nearest = distances.argmin(2)
    assert all(len(set(order)) == len(order) for order in nearest), "two stored queries match one found"
    return np.take_along_axis(found, nearest[:, :, None], 1)


@pytest.mark.parametrize("name", [name for name in STORED if "rtdetr" in name])
def test_rtdetr_rows_equal_those_of_ultralytics(name: str) -> None:
    """The highest scores of all queries and classes: a query may have rows of several classes."""
    with np.load(FOLDER / f"{name}.npz") as stored:
        images, expected = torch.from_numpy(deterministic_input(2, *stored["shape"])), stored["detr_rows"]
    with torch.no_grad():
        rows = build_with_weights(name)(images).numpy()
    assert rows.shape == expected.shape
    np.testing.assert_allclose(rows[:, :, 4], expected[:, :, 4], atol=1e-4)
    # Rounding may swap rows of nearly equal score, and exchange the last ones.
    count = expected.shape[1] - 2
    distances = np.abs(rows[:, None] - expected[:, :count, None]).max(-1)
    assert distances.min(2).max() < 1e-4
    assert len({tuple(box) for box in expected[0, :, :4].tolist()}) < expected.shape[1]


def test_references_cover_every_family_size_and_task() -> None:
    assert {path.stem for path in FOLDER.glob("*.npz") if not path.stem.startswith("shared-")} == set(STORED)
    assert set(STRUCTURES) == {*NAMES, *SMALL}
    assert all(set(family.stored) <= {name for name, _ in family.names()} for family in FAMILIES)
    trained = {f"yolo11n{suffix}" for suffix in TASKS} | {f"yolo26n{suffix}" for suffix in TASKS if suffix != "-cls"}
    assert set(SHARED) >= {*trained, "yolov10n"}


@pytest.mark.parametrize("name", STORED)
def test_outputs_equal_those_of_ultralytics(name: str) -> None:
    compare(build_with_weights(name), name)


@pytest.mark.parametrize("name", sorted(STRUCTURES))
def test_weights_have_the_names_and_shapes_of_ultralytics(name: str) -> None:
    lines = sorted(
        f"{key} {tuple(value.shape)}" for key, value in build_model(STRUCTURES[name]["yaml"]).state_dict().items()
    )
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == STRUCTURES[name]["digest"]


@pytest.mark.parametrize("name", SHARED)
def test_trained_checkpoints_equal_ultralytics(shared: Path, name: str) -> None:
    model = load_trained(shared / "models" / f"{name}.pt")
    assert model.module is not None
    compare(model.module, f"shared-{name}")


@pytest.mark.parametrize(
    ("name", "task", "imgsz", "stride", "kpt_shape"),
    [
        ("yolo11n", "detect", 640, 32, None),
        ("yolo11n-seg", "segment", 320, 32, None),
        ("yolo11n-cls", "classify", 64, 1, None),
        ("yolo11n-pose", "pose", 320, 32, (4, 3)),
        ("yolo11n-obb", "obb", 320, 32, None),
        ("yolo26n", "detect", 640, 32, None),
        ("yolo26n-seg", "segment", 320, 32, None),
        ("yolo26n-pose", "pose", 320, 32, (4, 3)),
        ("yolo26n-obb", "obb", 320, 32, None),
        ("yolov10n", "detect", 640, 32, None),
    ],
)
def test_trained_checkpoints_have_their_metadata(
    shared: Path, name: str, task: str, imgsz: int, stride: int, kpt_shape: tuple[int, int] | None
) -> None:
    model = load_trained(shared / "models" / f"{name}.pt")
    assert (model.task, model.imgsz, model.stride, model.kpt_shape) == (task, (imgsz, imgsz), stride, kpt_shape)
    assert model.names == {index: str(index) for index in range(10)}
    assert model.architecture == name
    assert model.notes["version"] == "8.4.190"
    assert repr(model).startswith(f"Model({name}: {task}, 10 classes")


@pytest.mark.parametrize("name", ["yolo11n", "yolov8n-seg", "yolo11n-obb", "yolo26n-seg", "yolov10n"])
def test_fusing_does_not_change_outputs(name: str) -> None:
    plain = build_model(STRUCTURES[name]["yaml"])
    shapes = {key: tuple(value.shape) for key, value in plain.state_dict().items()}
    weights = {key: torch.from_numpy(value) for key, value in deterministic_weights(shapes).items()}
    plain.load_state_dict(weights, assign=True)
    plain.eval()
    image = torch.from_numpy(deterministic_input(1, 64, 96))
    with torch.no_grad():
        before, after = plain(image), build_with_weights(name)(image)
    for a, b in zip(
        [before] if torch.is_tensor(before) else before, [after] if torch.is_tensor(after) else after, strict=True
    ):
        # FP32 resolves 1e-5 at 150 pixels; folding rounds every weight once more.
        assert torch.allclose(a, b, rtol=1e-5, atol=2e-3)
    assert not any("bn" in key for key in build_with_weights(name).state_dict())


@pytest.mark.parametrize(
    ("name", "weights"),
    [("yolov8x", 68_229_648), ("yolo11m", 20_114_688), ("yolo11x", 56_966_176), ("yolo26x", 58_993_368)],
)
def test_large_models_have_the_published_number_of_weights(name: str, weights: int) -> None:
    # The numbers that Ultralytics' architecture files state for 80 classes.
    parameters = build_model(STRUCTURES[name]["yaml"]).parameters()
    assert sum(parameter.numel() for parameter in parameters) == weights


@pytest.mark.ultralytics
@pytest.mark.parametrize(
    "name",
    [
        "yolo11n", "yolov8n", "yolo11n-seg", "yolo11n-cls", "yolo11n-pose", "yolo11n-obb", "yolo11m",
        "yolo26n", "yolo26n-seg", "yolo26n-cls", "yolo26n-pose", "yolo26n-obb", "yolov10n",
    ],
)  # fmt: skip
@pytest.mark.parametrize("end2end", [False, True])
def test_a_live_ultralytics_model_is_rebuilt(name: str, end2end: bool) -> None:
    tasks = pytest.importorskip("ultralytics.nn.tasks")
    kinds = {"seg": "SegmentationModel", "cls": "ClassificationModel", "pose": "PoseModel", "obb": "OBBModel"}
    kind = getattr(tasks, kinds.get(name.partition("-")[2], "DetectionModel"))
    theirs = kind(f"{name}.yaml", verbose=False)
    shapes = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    theirs.load_state_dict({key: torch.from_numpy(value) for key, value in deterministic_weights(shapes).items()})
    if end2end and getattr(theirs.model[-1], "one2one_cv2", None) is None:
        with raises(ModelError, "model-without-one-to-one-head"):
            load(theirs.eval(), end2end=True)
        return
    ours = load(theirs.eval(), end2end=end2end)
    assert ours.module is not None
    if hasattr(theirs, "end2end"):
        theirs.end2end = end2end
    theirs.fuse(verbose=False)
    for module in theirs.modules():
        if hasattr(module, "export"):
            module.export = True
    image = torch.from_numpy(deterministic_input(1, 64, 96))
    with torch.no_grad():
        expected, found = theirs(image), ours.module(image)
    for a, b in zip(
        [expected] if torch.is_tensor(expected) else expected, [found] if torch.is_tensor(found) else found, strict=True
    ):
        assert torch.allclose(a, b, rtol=0, atol=1e-4)
