"""The builder and its errors, on fakes of three TensorRT versions."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_graphs
from detector_graph import run
from onnx import TensorProto, helper, numpy_helper
from raising import raises

from trtkit import backends
from trtkit.backends import BuildSettings, ImplicitCalibration, capabilities
from trtkit.backends.devices import Gpu
from trtkit.backends.trt.callbacks import BuildProgress, Messages
from trtkit.errors import BuildError, CalibrationError, CancelledError, CapabilityError, RecipeError
from trtkit.graph.nms import add_nms
from trtkit.graph.onnx_file import update_metadata
from trtkit.progress import Reporter

SMALL = BuildSettings(imgsz=(32, 32))
ALL = ("8.6.0", "10.13.0.35", "11.4.0.106")


def build(trt: Any, settings: BuildSettings, precision: str = "fp32", **graph: Any) -> tuple[Any, Any, Any]:
    settings = dataclasses.replace(settings, precision=precision)
    built = backends.build(tiny_graphs.detector(precision, batch=settings.batch, **graph), settings)
    network, config = trt.fake.builds[-1]
    return built, network, config


@pytest.mark.parametrize(
    ("version", "precision", "typed", "flags"),
    [
        ("8.6.0", "fp32", False, set()),
        ("8.6.0", "fp16", False, {"FP16", "PREFER_PRECISION_CONSTRAINTS"}),
        ("8.6.0", "int8", False, {"FP16", "INT8"}),
        ("10.13.0.35", "fp32", True, set()),
        ("10.13.0.35", "fp16", True, set()),
        ("10.13.0.35", "int8", False, {"FP16", "INT8"}),
        ("11.4.0.106", "fp32", True, set()),
        ("11.4.0.106", "fp16", True, set()),
        ("11.4.0.106", "int8", True, set()),
    ],
)
def test_precision_comes_from_the_graph_or_from_flags(
    tensorrt: Any, version: str, precision: str, typed: bool, flags: set[str]
) -> None:
    trt = tensorrt(version)
    built, network, config = build(trt, SMALL, precision)
    assert config.flags == flags
    creation = trt.NetworkDefinitionCreationFlag
    expected = (1 << creation.EXPLICIT_BATCH if hasattr(creation, "EXPLICIT_BATCH") else 0) | (
        1 << creation.STRONGLY_TYPED if typed else 0
    )
    assert network.flags == expected
    assert built.facts["tensorrt"] == version
    assert built.facts["sm"] == "sm90"
    assert built.facts["gpu"] == "NVIDIA H100 80GB HBM3"
    assert built.facts["warnings"] == ["a warning of the builder"]
    assert built.layers[-1]["name"] == "scale"


@pytest.mark.parametrize(
    ("version", "external"), [("8.6.0", False), ("8.6.0", True), ("10.13.0.35", False), ("11.4.0.106", False)]
)
def test_int8_weights_are_expanded_where_tensorrt_reads_none(
    tensorrt: Any, tmp_path: Path, version: str, external: bool
) -> None:
    trt = tensorrt(version)
    graph = tiny_graphs.detector("int8")
    source: Any = graph
    if external:
        stored, source = tiny_graphs.detector("int8"), tmp_path / "tiny.onnx"
        onnx.save_model(stored, source, save_as_external_data=True, size_threshold=0, location="tiny.data")
    backends.build(source, dataclasses.replace(SMALL, precision="int8"))
    parsed = trt.fake.builds[-1][0].proto
    added = [node.op_type for node in parsed.graph.node if node.name not in {one.name for one in graph.graph.node}]
    assert added == (["QuantizeLinear", "QuantizeLinear"] if version == "8.6.0" else [])
    image = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)
    assert np.array_equal(run(parsed, image)[0], run(graph, image)[0])


def test_fp32_nodes_of_an_fp16_graph_are_constrained_with_flags(tensorrt: Any) -> None:
    trt = tensorrt("8.6.0")
    _, network, _ = build(trt, SMALL, "fp16")
    constrained = {layer.name: layer.types for layer in network.layers if layer.precision is not None}
    # Casts are not constrained: only the last multiplication computes in FP32.
    assert constrained == {"scale": {0: trt.float32}}


def test_nodes_listed_for_fp32_are_constrained_where_outputs_are_float(tensorrt: Any) -> None:
    trt = tensorrt("8.6.0")
    graph = tiny_graphs.detector()
    info = backends.open(graph, backend="onnxruntime").info
    graph = add_nms(graph, info)
    listed = {node.name for node in graph.graph.node if node.op_type != "Conv"}
    update_metadata(graph, {}, {"fp32": sorted(listed)})
    settings = dataclasses.replace(SMALL, precision="int8", implicit=ImplicitCalibration(batches=batches(1, 2)))
    backends.build(graph, settings)
    network, config = trt.fake.builds[-1]
    assert "PREFER_PRECISION_CONSTRAINTS" in config.flags
    constrained = {layer.name: layer.types for layer in network.layers if layer.precision is not None}
    assert "scale" in constrained
    assert constrained.keys() < listed
    operators = {node.op_type for node in graph.graph.node if node.name in constrained}
    assert {"Mul", "Transpose"} <= operators
    # TensorRT rejects a float type for integer and boolean outputs.
    assert operators.isdisjoint({"ArgMax", "Equal", "Greater", "TopK"})
    assert {"ArgMax", "Equal", "Greater", "TopK"} <= {node.op_type for node in graph.graph.node}


@pytest.mark.parametrize("calibrated", [True, False])
def test_transposed_convolutions_stay_in_fp16_with_a_calibrator(tensorrt: Any, calibrated: bool) -> None:
    trt = tensorrt("8.6.0")
    weights = numpy_helper.from_array(np.ones((3, 4, 2, 2), np.float32), "weights")
    up = helper.make_node("ConvTranspose", ["images", "weights"], ["output0"], "up", strides=[2, 2])
    shapes = {"images": (1, 3, 32, 32), "output0": (1, 4, 64, 64)}
    images, output = (helper.make_tensor_value_info(name, 1, shape) for name, shape in shapes.items())
    graph = helper.make_model(helper.make_graph([up], "up", [images], [output], [weights]))
    implicit = ImplicitCalibration(batches=batches(1, 2)) if calibrated else None
    backends.build(graph, dataclasses.replace(SMALL, precision="int8", implicit=implicit))
    network, config = trt.fake.builds[-1]
    assert network.layers[0].precision == (trt.float16 if calibrated else None)
    assert network.layers[0].types == {}
    assert ("PREFER_PRECISION_CONSTRAINTS" in config.flags) == calibrated


@pytest.mark.parametrize("version", ALL)
def test_dynamic_profile(tensorrt: Any, version: str) -> None:
    trt = tensorrt(version)
    settings = BuildSettings(batch=4, imgsz=(64, 96), dynamic=True, max_imgsz=(128, 128))
    _, _, config = build(trt, settings, dynamic=True)
    assert [profile.shapes for profile in config.profiles] == [((1, 3, 32, 32), (4, 3, 64, 96), (4, 3, 128, 128))]
    _, _, config = build(trt, dataclasses.replace(settings, max_imgsz=None), dynamic=True)
    assert config.profiles[0].shapes[2] == (4, 3, 64, 96)


def test_a_dynamic_graph_builds_a_static_engine_on_request(tensorrt: Any) -> None:
    _, _, config = build(tensorrt("8.6.0"), BuildSettings(batch=2, imgsz=(64, 64)), dynamic=True)
    assert config.profiles[0].shapes == ((2, 3, 64, 64),) * 3


def test_a_static_graph_raises_for_other_shapes(tensorrt: Any) -> None:
    tensorrt("8.6.0")
    with raises(RecipeError, "build-shape-fixed", axis="batch", value=2, fixed=1):
        backends.build(tiny_graphs.detector(), dataclasses.replace(SMALL, batch=2))
    with raises(RecipeError, "build-graph-static"):
        backends.build(tiny_graphs.detector(), dataclasses.replace(SMALL, dynamic=True))


@pytest.mark.parametrize("version", ALL)
def test_workspace_opt_level_streams_and_verbosity_reach_tensorrt(tensorrt: Any, version: str) -> None:
    trt = tensorrt(version)
    _, _, config = build(trt, dataclasses.replace(SMALL, workspace=1.5, opt_level=0, aux_streams=4))
    assert config.max_aux_streams == 4
    assert config.limits == {"WORKSPACE": 3 * 2**29}
    assert config.builder_optimization_level == 0
    assert config.avg_timing_iterations == 8
    assert config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED
    _, _, config = build(trt, SMALL)
    assert config.limits == {}
    assert config.max_aux_streams is None


def test_workspace_beyond_the_gpu_memory(tensorrt: Any) -> None:
    tensorrt("8.6.0")
    with raises(RecipeError, "build-workspace-gpu", value=100, available=80.0):
        build(tensorrt("8.6.0"), dataclasses.replace(SMALL, workspace=100))


@pytest.mark.parametrize(
    "words", ["[defaultAllocator.cpp] Cuda Runtime (out of memory)", "UNSUPPORTED_STATE in allocation"]
)
def test_out_of_memory(tensorrt: Any, words: str) -> None:
    trt = tensorrt("8.6.0")
    trt.fake.break_build = words
    with raises(BuildError, "build-out-of-memory", memory=80 * 2**30, reason=words):
        build(trt, SMALL)


@pytest.mark.parametrize("version", ALL)
def test_an_unsupported_operator_is_reported_with_its_node(tensorrt: Any, version: str) -> None:
    tensorrt(version)
    with raises(BuildError, "build-unsupported-node", nodes=["/odd/Sharpen"], operators=["Sharpen"]):
        backends.build(tiny_graphs.unsupported_op(), SMALL)


def test_tactics_of_missing_libraries_are_disabled(tensorrt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = tensorrt("8.6.0")
    _, _, config = build(trt, SMALL)
    assert config.tactics is None
    trt = tensorrt("8.6.0")
    monkeypatch.setattr(capabilities, "_cuda_libraries_load", lambda: False)
    capabilities.probe.cache_clear()
    _, _, config = build(trt, SMALL)
    # CUBLAS, CUBLAS_LT and CUDNN are 0, 1 and 2 here.
    assert config.tactics == 0b11000


def test_dla_core_with_fallback(tensorrt: Any) -> None:
    trt = tensorrt("10.13.0.35", dla_cores=2)
    _, network, config = build(trt, dataclasses.replace(SMALL, device="dla:1"), "fp16")
    assert config.DLA_core == 1
    assert config.default_device_type == trt.DeviceType.DLA
    assert {"FP16", "GPU_FALLBACK"} <= config.flags
    assert not network.flags & (1 << trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    with raises(RecipeError, "dla-precision"):
        build(trt, dataclasses.replace(SMALL, device="dla:1"))


def test_dla_raises_where_there_is_none(tensorrt: Any) -> None:
    with raises(CapabilityError, "dla-core", value=0, count=0):
        build(tensorrt("8.6.0"), dataclasses.replace(SMALL, device="dla:0"), "fp16")
    with raises(CapabilityError, "dla-unsupported", version="11.4.0.106"):
        build(tensorrt("11.4.0.106"), dataclasses.replace(SMALL, device="dla:0"), "fp16")


def test_progress_is_monotonic(tensorrt: Any) -> None:
    tensorrt("10.13.0.35")
    events: list[tuple[str, int]] = []
    reporter = Reporter(lambda event: events.append((event.stage, event.done)))
    backends.build(tiny_graphs.detector(), SMALL, reporter=reporter)
    # Four inner steps are the first of two outer ones: 12.5, 25, 37.5, 50 %, then 50 and 100.
    assert events == [("build fp32 engine", done) for done in (0, 12, 25, 37, 50, 100, 100)]


@pytest.mark.parametrize("version", ["10.13.0.35", "11.4.0.106"])
def test_cancelling_stops_the_build(tensorrt: Any, version: str) -> None:
    tensorrt(version)
    stop = threading.Event()

    def listen(event: Any) -> None:
        if event.done > 10:
            stop.set()

    with pytest.raises(CancelledError):
        backends.build(tiny_graphs.detector(), SMALL, reporter=Reporter(listen, stop))


def test_an_exception_of_the_callback_is_raised_after_the_build(tensorrt: Any) -> None:
    tensorrt("10.13.0.35")

    def listen(event: Any) -> None:
        if event.done > 10:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        backends.build(tiny_graphs.detector(), SMALL, reporter=Reporter(listen))


def batches(count: int, size: int, side: int = 32) -> list[np.ndarray]:
    return [np.full((size, 3, side, side), index, np.float32) for index in range(count)]


def test_implicit_calibration_reads_batches_and_writes_a_cache(tensorrt: Any, tmp_path: Any) -> None:
    trt = tensorrt("8.6.0")
    cache = tmp_path / "scales.cache"
    settings = BuildSettings(
        precision="int8",
        batch=2,
        imgsz=(32, 32),
        dynamic=True,
        implicit=ImplicitCalibration(batches=[*batches(3, 4), *batches(1, 3)], cache=cache),
    )
    graph = tiny_graphs.detector(dynamic=True)
    backends.build(graph, settings)
    # Twice the engine's batch, as passed; the shorter last batch is dropped.
    assert [value.shape for value in trt.fake.calibrated] == [(4, 3, 32, 32)] * 3
    assert [float(value.mean()) for value in trt.fake.calibrated] == [0.0, 1.0, 2.0]
    _, config = trt.fake.builds[-1]
    assert {"INT8", "FP16"} <= config.flags
    assert cache.read_bytes() == b"TRT-8600-MinMaxCalibration"
    trt.fake.calibrated.clear()
    backends.build(graph, dataclasses.replace(settings, implicit=ImplicitCalibration(cache=cache)))
    assert trt.fake.calibrated == ["cache"]


def test_implicit_calibration_of_a_static_graph_uses_its_batch(tensorrt: Any) -> None:
    trt = tensorrt("8.6.0")
    settings = dataclasses.replace(SMALL, precision="int8", implicit=ImplicitCalibration(batches=batches(2, 2)))
    backends.build(tiny_graphs.detector(), settings)
    assert [value.shape[0] for value in trt.fake.calibrated] == [1, 1, 1, 1]


def test_implicit_calibration_raises_where_it_was_removed(tensorrt: Any) -> None:
    tensorrt("11.4.0.106")
    settings = dataclasses.replace(SMALL, precision="int8", implicit=ImplicitCalibration(batches=batches(1, 2)))
    with raises(CapabilityError, "calibrator-unsupported", version="11.4.0.106"):
        backends.build(tiny_graphs.detector(), settings)
    tensorrt("8.6.0")
    with raises(CalibrationError, "calibrator-no-images"):
        backends.build(tiny_graphs.detector(), dataclasses.replace(settings, implicit=ImplicitCalibration()))


def test_exceptions_of_the_image_iterator_are_raised_unchanged(tensorrt: Any) -> None:
    tensorrt("8.6.0")

    def broken() -> Any:
        yield batches(1, 1)[0]
        raise ZeroDivisionError

    settings = dataclasses.replace(SMALL, precision="int8", implicit=ImplicitCalibration(batches=broken()))
    with pytest.raises(ZeroDivisionError):
        backends.build(tiny_graphs.detector(), settings)


def test_the_fp16_test_graph_has_fp16_weights() -> None:
    kinds = {tensor.data_type for tensor in tiny_graphs.detector("fp16").graph.initializer}
    assert TensorProto.FLOAT16 in kinds


@pytest.mark.parametrize(
    ("version", "compatibility", "flags", "level"),
    [
        ("8.6.0", None, set(), "NONE"),
        ("8.6.0", "ampere_plus", set(), "AMPERE_PLUS"),
        ("8.6.0", "version", {"VERSION_COMPATIBLE"}, "NONE"),
        ("10.13.0.35", "same_compute_capability", set(), "SAME_COMPUTE_CAPABILITY"),
        ("11.4.0.106", "version", {"VERSION_COMPATIBLE"}, "NONE"),
    ],
)
def test_compatibility_reaches_tensorrt(
    tensorrt: Any, version: str, compatibility: str | None, flags: set[str], level: str
) -> None:
    _, _, config = build(tensorrt(version), dataclasses.replace(SMALL, compatibility=compatibility))
    assert (config.flags, config.hardware_compatibility_level.name) == (flags, level)


@pytest.mark.parametrize(
    ("version", "weights", "flags"),
    [
        ("8.6.0", "refittable", {"REFIT"}),
        ("10.13.0.35", "refittable", {"REFIT"}),
        ("10.13.0.35", "stripped", {"STRIP_PLAN", "REFIT_IDENTICAL"}),
    ],
)
def test_weights_reach_tensorrt(tensorrt: Any, version: str, weights: str, flags: set[str]) -> None:
    _, _, config = build(tensorrt(version), dataclasses.replace(SMALL, weights=weights))
    assert config.flags == flags


@pytest.mark.parametrize(
    ("settings", "code", "supported"),
    [
        (
            {"compatibility": "same_compute_capability"},
            "build-compatibility-unsupported",
            ("ampere_plus", "version"),
        ),
        ({"weights": "stripped"}, "build-weights-unsupported", ("refittable",)),
    ],
)
def test_what_this_tensorrt_lacks_is_refused(
    tensorrt: Any, settings: dict[str, str], code: str, supported: tuple[str, ...]
) -> None:
    trt = tensorrt("8.6.0")
    with raises(CapabilityError, code, supported=supported):
        build(trt, dataclasses.replace(SMALL, **settings))
    assert trt.fake.builds == []


@pytest.mark.parametrize(("version", "release"), [("8.6.0", "8.6.0"), ("10.13.0.35", "10.13.0")])
def test_version_compatibility_needs_the_lean_runtime(
    tensorrt: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, release: str
) -> None:
    finds = capabilities._finds_lean_runtime
    trt = tensorrt(version)
    monkeypatch.setattr(capabilities, "_finds_lean_runtime", finds)
    trt.__file__ = str(tmp_path / "__init__.py")
    # Another release's is of no use.
    (tmp_path / "libnvinfer_lean.so.8.6.1").touch()
    with raises(CapabilityError, "build-compatibility-unsupported", value="version") as caught:
        build(trt, dataclasses.replace(SMALL, compatibility="version"))
    assert "version" not in caught.value.fields["supported"]
    (tmp_path / f"libnvinfer_lean.so.{release}").touch()
    capabilities.probe.cache_clear()
    build(trt, dataclasses.replace(SMALL, compatibility="version"))


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"weights": "refittable", "dynamic": True}, "weights='refittable'"),
        ({"precision": "int8", "dynamic": True}, "dynamic=False"),
        ({"precision": "int8", "opt_level": 0}, "keep=['/model.2/Split_15']"),
        ({"precision": "fp16"}, "opt_level"),
    ],
)
def test_an_operator_without_kernel_is_named(tensorrt: Any, settings: dict[str, Any], advice: str) -> None:
    trt = tensorrt("8.6.0")
    trt.fake.break_build = "10: Could not find any implementation for node /model.2/Split_15."
    with raises(BuildError, "build-no-kernel", node="/model.2/Split_15") as caught:
        build(
            trt,
            dataclasses.replace(SMALL, **settings),
            settings.get("precision", "fp32"),
            dynamic=settings.get("dynamic", False),
        )
    assert advice in caught.value.do


@pytest.mark.parametrize(("started", "selected"), [(False, []), (True, [0])])
def test_the_first_gpu_is_selected_where_the_caller_may_work_on_another(
    tensorrt: Any, monkeypatch: pytest.MonkeyPatch, started: bool, selected: list[int]
) -> None:
    trt = tensorrt("8.6.0")
    chosen: list[int] = []

    def select(index: int) -> Any:
        chosen.append(index)
        return contextlib.nullcontext()

    monkeypatch.setattr(trt.torch.cuda, "device", select)
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: started)
    build(trt, SMALL)
    assert chosen == selected


def test_messages_of_a_build(tensorrt: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    trt = tensorrt("8.6.0")
    build_network = trt.Builder.build_serialized_network

    def warn_often(self: Any, network: Any, config: Any) -> Any:
        for number in range(30):
            for _ in range(2):
                trt.fake.logger.log(trt.Severity.WARNING, f"warning {number}")
        trt.fake.logger.log(trt.Severity.VERBOSE, "one of a million")
        return build_network(self, network, config)

    monkeypatch.setattr(trt.Builder, "build_serialized_network", warn_often)
    with caplog.at_level("DEBUG", "trtkit.tensorrt"):
        built, _, _ = build(trt, SMALL)
    # Each once, and not without end: a passport holds them.
    assert built.facts["warnings"] == [f"warning {number}" for number in range(20)]
    assert "WARNING: warning 29" in caplog.messages
    assert "one of a million" not in caplog.text


def test_the_reason_of_a_failure_is_its_first_errors() -> None:
    messages = Messages()
    assert messages.summary("the driver is old") == "the driver is old"
    for text in ("one  failed\n", "one failed", "two failed", "three failed", "four failed"):
        messages.add("ERROR", text)
    assert messages.summary() == "one failed | two failed | three failed"


def test_progress_of_several_threads_never_goes_back() -> None:
    events: list[int] = []
    progress = BuildProgress(Reporter(lambda event: events.append(event.done)), "build")
    assert all(progress.report(done) for done in (0, 6, 5, 6, 7))
    assert events == [0, 6, 7]


def test_an_isolated_build_is_refused_before_its_images_are_read(tensorrt: Any) -> None:
    def read() -> Any:
        raise AssertionError
        yield

    tensorrt("11.4.0.106")
    settings = dataclasses.replace(SMALL, precision="int8", isolate=True)
    for changes, code in (
        ({"implicit": ImplicitCalibration(batches=read())}, "calibrator-unsupported"),
        ({"compatibility": "version"}, "build-compatibility-unsupported"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(capabilities, "_finds_lean_runtime", lambda trt: False)
            capabilities.probe.cache_clear()
            with raises(CapabilityError, code):
                backends.build(tiny_graphs.detector(), dataclasses.replace(settings, **changes))


def test_hardware_compatibility_needs_an_ampere_gpu(tensorrt: Any) -> None:
    trt = tensorrt("8.6.0", Gpu(index=0, name="Tesla T4", sm="sm75", memory=2**34))
    with raises(CapabilityError, "build-compatibility-gpu", value="sm75"):
        build(trt, dataclasses.replace(SMALL, compatibility="ampere_plus"))
    # A Jetson is of Ampere too, and has no hardware compatibility.
    trt = tensorrt("10.13.0.35", Gpu(index=0, name="Orin", sm="sm87", memory=2**34))
    with raises(CapabilityError, "build-compatibility-gpu", value="sm87"):
        build(trt, dataclasses.replace(SMALL, compatibility="ampere_plus"))
    assert trt.fake.builds == []
