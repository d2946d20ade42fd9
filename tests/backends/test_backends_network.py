"""What TensorRT builds from; and timing cache files: saved, merged, deleted when broken; none makes a build fail."""

from __future__ import annotations

import dataclasses
import multiprocessing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_graphs
from raising import raises

from trtkit import backends
from trtkit.backends import BuildSettings, Capabilities, ImplicitCalibration
from trtkit.backends.trt.network import (
    TimingCache,
    compute_profile_shapes,
    find_image_input,
    fit_graph,
    use_strong_typing,
)
from trtkit.errors import BuildError, RecipeError
from trtkit.files import user_cache_dir
from trtkit.graph.fp16 import convert_qdq_to_fp16, has_fp16

SMALL = BuildSettings(imgsz=(32, 32))


def test_one_file_by_gpu_and_version(tensorrt: Any, tmp_path: Path) -> None:
    trt = tensorrt("8.6.0")
    file = tmp_path / "cache" / "timing" / "tensorrt-8.6.0-nvidia-h100-80gb-hbm3-sm90.cache"
    built = backends.build(tiny_graphs.detector(), SMALL)
    assert file.read_bytes().strip() == b"timed tiny"
    assert built.facts["timing_cache"] == str(file)
    assert built.facts["timing_cache_bytes"] == 0
    again = backends.build(tiny_graphs.detector(), SMALL)
    assert again.facts["timing_cache_bytes"] > 0
    assert b"timed tiny" in trt.fake.builds[-1][1].cache.data


def test_disabled_and_a_given_file(tensorrt: Any, tmp_path: Path) -> None:
    trt = tensorrt("8.6.0")
    backends.build(tiny_graphs.detector(), dataclasses.replace(SMALL, timing_cache=False))
    assert trt.fake.builds[-1][1].cache is None
    assert not (tmp_path / "cache").exists()
    backends.build(tiny_graphs.detector(), dataclasses.replace(SMALL, timing_cache=tmp_path / "mine.cache"))
    assert (tmp_path / "mine.cache").is_file()


@pytest.mark.parametrize("data", [b"broken", b"mismatch", b"no cache"])
def test_a_file_that_does_not_load_is_deleted_with_a_warning(tensorrt: Any, tmp_path: Path, data: bytes) -> None:
    tensorrt("8.6.0")
    file = tmp_path / "mine.cache"
    file.write_bytes(data)
    with pytest.warns(UserWarning, match=r"mine\.cache"):
        backends.build(tiny_graphs.detector(), dataclasses.replace(SMALL, timing_cache=file))
    assert data not in file.read_bytes()


def test_a_file_that_breaks_the_build_is_deleted_and_the_build_repeated(tensorrt: Any, tmp_path: Path) -> None:
    trt = tensorrt("8.6.0")
    trt.fake.cache_breaks = True
    file = tmp_path / "mine.cache"
    file.write_bytes(b"timed elsewhere")
    with pytest.warns(UserWarning, match=r"mine\.cache"):
        backends.build(tiny_graphs.detector(), dataclasses.replace(SMALL, timing_cache=file))
    assert len(trt.fake.builds) == 2
    assert b"elsewhere" not in file.read_bytes()


def test_a_build_without_a_cache_file_is_not_repeated(tensorrt: Any, tmp_path: Path) -> None:
    trt = tensorrt("8.6.0")
    trt.fake.break_build = "Myelin error from unknown graph"
    with raises(BuildError, "build-failed", reason=trt.fake.break_build):
        backends.build(tiny_graphs.detector(), dataclasses.replace(SMALL, timing_cache=tmp_path / "new.cache"))
    assert len(trt.fake.builds) == 1


def test_a_file_that_did_not_break_the_build_is_kept(tensorrt: Any, tmp_path: Path) -> None:
    trt = tensorrt("8.6.0")
    trt.fake.break_build = "Myelin error from a graph it can't build"
    file = tmp_path / "mine.cache"
    file.write_bytes(b"timed elsewhere")
    with raises(BuildError, "build-failed"):
        backends.build(tiny_graphs.detector(), dataclasses.replace(SMALL, timing_cache=file))
    assert len(trt.fake.builds) == 2
    assert file.read_bytes() == b"timed elsewhere"


def test_an_error_names_the_reasons_of_both_tries(
    tensorrt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = tensorrt("8.6.0")
    reasons = iter(["Myelin error from unknown graph", "no kernel for /model.23/conv"])
    build = trt.Builder.build_serialized_network

    def failing(builder: Any, network: Any, config: Any) -> Any:
        trt.fake.break_build = next(reasons)
        return build(builder, network, config)

    monkeypatch.setattr(trt.Builder, "build_serialized_network", failing)
    file = tmp_path / "mine.cache"
    file.write_bytes(b"timed elsewhere")
    with raises(BuildError, "build-failed") as caught:
        backends.build(tiny_graphs.detector(), dataclasses.replace(SMALL, timing_cache=file))
    first, second = caught.value.fields["reason"].split("; again without the timing cache: ")
    assert (first, second) == ("Myelin error from unknown graph", "no kernel for /model.23/conv")


def _calibrated(file: Path) -> BuildSettings:
    file.write_bytes(b"timed elsewhere")
    images = iter([np.full((1, 3, 32, 32), value, np.float32) for value in (0.0, 1.0)])
    return dataclasses.replace(SMALL, precision="int8", implicit=ImplicitCalibration(batches=images), timing_cache=file)


def test_a_retry_uses_a_new_network_and_the_first_calibration(tensorrt: Any, tmp_path: Path) -> None:
    trt = tensorrt("8.6.0")
    trt.fake.cache_breaks = True
    with pytest.warns(UserWarning, match=r"mine\.cache"):
        backends.build(tiny_graphs.detector(), _calibrated(tmp_path / "mine.cache"))
    assert len(trt.fake.calibrated) == 3
    assert trt.fake.calibrated[-1] == "cache"
    (first, _), (second, _) = trt.fake.builds
    assert second is not first


def test_no_retry_after_a_failed_calibration(tensorrt: Any, tmp_path: Path) -> None:
    trt = tensorrt("8.6.0")
    trt.fake.break_build = "Myelin error from unknown graph"
    with raises(BuildError, "build-failed", reason="Myelin error from unknown graph"):
        backends.build(tiny_graphs.detector(), _calibrated(tmp_path / "mine.cache"))
    assert len(trt.fake.builds) == 1


def test_an_unwritable_folder_is_a_warning(tensorrt: Any, tmp_path: Path) -> None:
    tensorrt("8.6.0")
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match=r"mine\.cache"):
        built = backends.build(
            tiny_graphs.detector(), dataclasses.replace(SMALL, timing_cache=tmp_path / "file" / "mine.cache")
        )
    assert built.plan
    assert (tmp_path / "file").read_text() == ""


class _Cache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def combine(self, other: _Cache, ignore_mismatch: bool) -> bool:
        self.data = b"\n".join(sorted(set(self.data.split(b"\n")) | set(other.data.split(b"\n")) - {b""}))
        return True

    def serialize(self) -> bytes:
        return self.data


class _Config:
    def __init__(self, cache: _Cache) -> None:
        self.cache = cache

    def get_timing_cache(self) -> _Cache:
        return self.cache

    def create_timing_cache(self, data: bytes) -> _Cache:
        return _Cache(data)


def _builder(path: str, name: str) -> None:
    for turn in range(10):
        TimingCache(Path(path)).save(_Config(_Cache(f"{name} {turn}".encode())))


def test_concurrent_builders_lose_no_timings(tmp_path: Path) -> None:
    path = tmp_path / "shared.cache"
    spawn = multiprocessing.get_context("fork")
    workers = [spawn.Process(target=_builder, args=(str(path), name)) for name in ("one", "two", "three")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    expected = {f"{name} {turn}" for name in ("one", "two", "three") for turn in range(10)}
    assert set(path.read_text().split("\n")) == expected


def test_cache_dir_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRTKIT_CACHE", str(tmp_path / "a"))
    assert user_cache_dir() == tmp_path / "a"
    monkeypatch.delenv("TRTKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert user_cache_dir() == tmp_path / "b" / "trtkit"


# What TensorRT builds from


TYPED = Capabilities(backend="tensorrt", strongly_typed=True, strongly_typed_only=True)
FLAGGED = Capabilities(backend="tensorrt", strongly_typed=True)


def split_in_halves(reader: str = "Relu") -> onnx.ModelProto:
    """A convolution of 48 channels, in halves of 24, where INT8 kernels of TensorRT store 32 together.

    Args:
        reader: The operator that reads the left half; a convolution reads the right one.
    """
    node, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    sizes = {"first.weight": (48, 3, 1, 1), "left.weight": (8, 24, 1, 1), "right.weight": (8, 24, 1, 1)}
    weights = [onnx.numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in sizes.items()]
    weights.append(onnx.numpy_helper.from_array(np.array([24, 24]), "sizes"))
    nodes = [
        node("Conv", ["images", "first.weight"], ["first"], "first"),
        node("Split", ["first", "sizes"], ["l", "r"], "split", axis=1),
        node("Conv", ["l" if reader == "Conv" else "half", "left.weight"], ["left"], "left"),
        node("Conv", ["r", "right.weight"], ["right"], "right"),
        node("Add", ["left", "right"], ["output0"], "sum"),
    ]
    if reader != "Conv":
        nodes.insert(2, node(reader, ["l"], ["half"], "half"))
    graph = onnx.helper.make_graph(
        nodes, "halves", [value("images", 1, [1, 3, 8, 8])], [value("output0", 1, [1, 8, 8, 8])], weights
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)


def test_a_graph_is_fitted_to_its_tensorrt() -> None:
    def channels(proto: onnx.ModelProto) -> int:
        return int(next(tensor.dims[0] for tensor in proto.graph.initializer if tensor.name.startswith("first")))

    graph, rtx = split_in_halves(), dataclasses.replace(TYPED, backend="tensorrt_rtx")
    fitted = {one: fit_graph(graph, one, precision="int8") for one in (FLAGGED, TYPED, rtx)}
    assert {one: (channels(proto), has_fp16(proto)) for one, proto in fitted.items()} == {
        FLAGGED: (64, False), TYPED: (64, True), rtx: (48, True),
    }  # fmt: skip
    # What is FP16 already stays as it is, and so does every other precision.
    assert fit_graph(fitted[rtx], rtx, precision="int8") == fitted[rtx]
    assert fit_graph(graph, TYPED, precision="fp32") is graph


def repeated_pixels() -> onnx.ModelProto:
    """A map whose pixels are repeated, beside one of their size."""
    node, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    weight = onnx.numpy_helper.from_array(np.ones((8, 6, 1, 1), np.float32), "weight")
    scales = onnx.numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
    nodes = [
        node("MaxPool", ["images"], ["small"], "small", kernel_shape=[2, 2], strides=[2, 2]),
        node("Resize", ["small", "", "scales"], ["up"], "up", mode="nearest"),
        node("Concat", ["up", "images"], ["joined"], "joined", axis=1),
        node("Conv", ["joined", "weight"], ["output0"], "last"),
    ]
    graph = onnx.helper.make_graph(
        nodes, "pyramid", [value("images", 1, [1, 3, 8, 8])], [value("output0", 1, [1, 8, 8, 8])], [weight, scales]
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt_rtx"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_copies_into_concatenations_are_avoided_where_that_wins(backend: str, precision: str) -> None:
    capabilities = dataclasses.replace(FLAGGED, backend=backend)
    fitted = [
        fit_graph(graph, capabilities, precision=precision) for graph in (split_in_halves("Conv"), repeated_pixels())
    ]
    operators = {node.op_type for graph in fitted for node in graph.graph.node}
    assert ("Split" not in operators) == (backend == "tensorrt" and precision == "int8")
    assert ("Concat" not in operators) == (backend == "tensorrt" and precision == "fp16")


@pytest.mark.parametrize(
    ("capabilities", "settings", "typed"),
    [
        (FLAGGED, {"precision": "fp32"}, True),
        (FLAGGED, {"precision": "int8"}, False),
        (FLAGGED, {"precision": "fp16", "device": "dla:0"}, False),
        (FLAGGED, {"precision": "int8", "implicit": ImplicitCalibration()}, False),
        (TYPED, {"precision": "int8"}, True),
        (Capabilities(backend="tensorrt"), {"precision": "fp32"}, False),
    ],
)
def test_types_come_from_the_graph_where_they_can(
    capabilities: Capabilities, settings: dict[str, Any], typed: bool
) -> None:
    graph = tiny_graphs.detector("int8" if settings["precision"] == "int8" else "fp32")
    assert use_strong_typing(capabilities, BuildSettings(**settings), graph) is typed


def test_a_q_dq_graph_on_fp16_says_every_type() -> None:
    graph = convert_qdq_to_fp16(tiny_graphs.detector("int8"))
    assert use_strong_typing(FLAGGED, BuildSettings(precision="int8"), graph)


@pytest.mark.parametrize(
    ("shape", "settings", "expected"),
    [
        ((1, 3, 64, 64), {}, None),
        ((-1, 3, -1, -1), {}, ((1, 3, 64, 64),) * 3),
        ((-1, -1, -1, -1), {"dynamic": True, "batch": 4}, ((1, 3, 32, 32), (4, 3, 64, 64), (4, 3, 64, 64))),
        ((-1, 1, -1, -1), {"dynamic": True, "max_imgsz": (96, 64)}, ((1, 1, 32, 32), (1, 1, 64, 64), (1, 1, 96, 64))),
        # The batch alone is open.
        ((-1, 3, 64, 64), {"dynamic": True, "batch": 4}, ((1, 3, 64, 64), (4, 3, 64, 64), (4, 3, 64, 64))),
    ],
)
def test_profile_shapes(shape: tuple[int, ...], settings: dict[str, Any], expected: Any) -> None:
    assert compute_profile_shapes(BuildSettings(imgsz=(64, 64), **settings), shape) == expected


@pytest.mark.parametrize(
    ("shape", "settings", "code"),
    [
        ((2, 3, 64, 64), {}, "build-shape-fixed"),
        ((1, 3, 64, 32), {}, "build-shape-fixed"),
        ((1, 3, 64, 64), {"dynamic": True}, "build-graph-static"),
    ],
)
def test_profiles_that_the_graph_excludes(shape: tuple[int, ...], settings: dict[str, Any], code: str) -> None:
    with raises(RecipeError, code):
        compute_profile_shapes(BuildSettings(imgsz=(64, 64), **settings), shape)


@pytest.mark.parametrize(("ranks", "found"), [((4,), 0), ((1, 4), 1), ((5, 4), 1), ((2,), None), ((4, 4), None)])
def test_the_image_input_has_four_dimensions(ranks: tuple[int, ...], found: int | None) -> None:
    inputs = [SimpleNamespace(shape=(1,) * rank) for rank in ranks]
    network = SimpleNamespace(num_inputs=len(inputs), get_input=inputs.__getitem__)
    if found is not None:
        assert find_image_input(network) is inputs[found]
        return
    with raises(BuildError, "build-image-inputs", count=ranks.count(4)):
        find_image_input(network)
