from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from detector_graph import CLASSES, detector, run
from onnx import TensorProto, helper, numpy_helper

from trtkit import demo
from trtkit.calibration import Calibration, calibrate
from trtkit.calibration.range_refinement import FACTORS, FURTHER, choose_ranges_by_noise
from trtkit.errors import CalibrationError, CancelledError
from trtkit.graph.qdq import insert_qdq, plan_qdq
from trtkit.models import load
from trtkit.models.model import CLASS_SCORES, DENSE, END2END_ROWS
from trtkit.progress import Reporter

Ranges = dict[str, tuple[float, float]]


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(1).random((2, 3, 32, 32), np.float32)


def classifier(outlier: float) -> onnx.ModelProto:
    """Two channels of an activation: the first decides the class, the second holds outliers that no weight reads."""
    first = np.zeros((2, 1, 1, 1), np.float32)
    first[0, 0, 0, 0], first[1, 0, 0, 0] = 1, outlier
    second = np.zeros((2, 2, 1, 1), np.float32)
    second[0, 0, 0, 0], second[1, 0, 0, 0] = 1, -1
    nodes = [
        helper.make_node("Conv", ["images", "w1"], ["a"], "one", kernel_shape=[1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "w2"], ["c"], "two", kernel_shape=[1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"], "pool"),
        helper.make_node("Flatten", ["d"], ["e"], "flatten"),
        helper.make_node("Softmax", ["e"], ["scores"], "softmax", axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 1, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 2])],
        [numpy_helper.from_array(first, "w1"), numpy_helper.from_array(second, "w2")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def refine(proto: onnx.ModelProto, ranges: Ranges, images: list[np.ndarray], classes: int = 2) -> Ranges:
    refined = choose_ranges_by_noise(proto, ranges, CLASS_SCORES, classes, images, stage="", reporter=Reporter())
    assert refined.is_better
    assert refined.images == len(images) // 2
    return refined.ranges


def test_outliers_that_no_weight_reads_are_clipped() -> None:
    proto = classifier(outlier=3)
    images = [np.random.default_rng(seed).random((1, 1, 8, 8), np.float32) for seed in range(6)]
    ranges = {"images": (0.0, 1.0), "b": (0.0, 3.0)}
    refined = refine(proto, ranges, images)
    # Values of the first channel reach 1, a third of the range; a clipped one would cost more than rounding.
    assert refined["b"][0] == 0
    assert 1 <= refined["b"][1] <= 1.5
    exact = [run(proto, image)[0] for image in images]
    before, after = (
        np.mean(
            [np.square(run(insert_qdq(proto, one), image)[0] - ours) for image, ours in zip(images, exact, strict=True)]
        )
        for one in (ranges, refined)
    )
    assert after < before
    assert ranges == {"images": (0.0, 1.0), "b": (0.0, 3.0)}


def test_a_range_that_clips_what_is_read_is_widened() -> None:
    proto = classifier(outlier=0.5)
    images = [np.random.default_rng(seed).random((1, 1, 8, 8), np.float32) for seed in range(6)]
    refined = refine(proto, {"images": (0.0, 1.0), "b": (0.0, 0.5)}, images)
    assert refined["b"] == (0.0, pytest.approx(1.0))
    assert refined["images"] == (0.0, 1.0)


def test_ranges_that_fit_no_other_image_are_dropped() -> None:
    """On dark images a third of the range is better; bright ones are clipped by it."""
    proto, ranges = classifier(outlier=0.01), {"images": (0.0, 1.0), "b": (0.0, 1.0)}
    dark = [np.random.default_rng(seed).random((1, 1, 8, 8), np.float32) / 4 for seed in range(4)]
    bright = [4 * image for image in dark]
    chosen, refused = (
        choose_ranges_by_noise(proto, ranges, CLASS_SCORES, 2, dark + others, stage="", reporter=Reporter())
        for others in (dark, bright)
    )
    assert chosen.is_better
    assert chosen.ranges["b"][1] == 0.5
    assert not refused.is_better
    assert refused.ranges == ranges
    assert chosen.noise < 1 < refused.noise
    assert chosen.describe() != refused.describe()


def test_one_image_is_refused_before_it_is_read(tmp_path: Path) -> None:
    model = load(detector(), task="detect", names=["a", "b", "c"], imgsz=32)
    (tmp_path / "only.jpg").write_bytes(b"no image")
    with pytest.raises(CalibrationError) as error:
        calibrate(model, tmp_path, refine="ranges")
    assert error.value.code == "calibration-refine-images"


def test_scales_keep_the_range_of_a_group(images: np.ndarray) -> None:
    """Tensors of one scale get one factor, all tensors keep a range, and factors are those that are tried."""
    from trtkit.calibration.collector import MinMaxCollector

    proto = detector()
    collector = MinMaxCollector(proto, device="cpu")
    collector.add(images)
    ranges = collector.ranges()
    steps: list[tuple[int, int]] = []
    refined = choose_ranges_by_noise(
        proto,
        ranges,
        DENSE,
        CLASSES,
        [image[None] for image in images],
        stage="refine",
        reporter=Reporter(lambda event: steps.append((event.done, event.total))),
    ).ranges
    assert set(refined) == set(ranges)
    groups = set(plan_qdq(proto).scale_groups.values())
    assert steps[-1] == (len(groups), len(groups))
    allowed = {1.0, *FACTORS, *(factor for further in FURTHER.values() for factor in further)}
    for group in groups:
        before, after = (max(max(map(abs, one[name])) for name in group) for one in (ranges, refined))
        assert min(abs(after / before - factor) for factor in allowed) < 1e-6
    insert_qdq(proto, refined)


def test_rows_in_the_order_of_scores_are_refused_before_images_are_read(tmp_path: Path) -> None:
    model = load(detector(), task="detect", names=["a", "b", "c"], imgsz=32)
    rows = dataclasses.replace(model, output_format=END2END_ROWS)
    with pytest.raises(CalibrationError) as error:
        calibrate(rows, tmp_path / "nothing.yaml", refine="ranges")
    assert error.value.code == "calibration-refine-format"


def test_calibrate_refines_saves_and_can_be_cancelled(tmp_path: Path) -> None:
    model = load(detector(), task="detect", names=["a", "b", "c"], imgsz=32)
    stages: list[str] = []
    settings = {"calibration_images": 6, "device": "cpu", "algorithm": "minmax"}
    plain = calibrate(model, demo.data_path(), **settings)  # type: ignore[arg-type]
    refined = calibrate(
        model, demo.data_path(), refine="ranges", progress=lambda event: stages.append(event.stage), **settings
    )  # type: ignore[arg-type]
    assert "refine ranges" in stages
    assert refined.provenance.settings["refine"] == "ranges"
    assert "refine" not in plain.provenance.settings
    assert refined.stats == plain.stats
    assert [note for note in refined.notes if note not in plain.notes]
    assert refined.with_algorithm("minmax").ranges == plain.ranges
    assert "refine" not in refined.with_algorithm("minmax").provenance.settings
    loaded = Calibration.load(refined.save(tmp_path / "calibration"))
    assert loaded.ranges == refined.ranges
    assert loaded.hash == refined.hash

    class Token:
        def is_set(self) -> bool:
            return stages.count("refine ranges") > 2

    stages.clear()
    with pytest.raises(CancelledError):
        calibrate(
            model,
            demo.data_path(),
            refine="ranges",
            progress=lambda event: stages.append(event.stage),
            cancel=Token(),
            **settings,
        )  # type: ignore[arg-type]
