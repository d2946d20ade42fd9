"""The TensorRT runner, on a fake TensorRT that computes with ONNX Runtime in CPU memory."""

from __future__ import annotations

import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fake_cuda
import fake_tensorrt
import numpy as np
import onnx
import pytest
import tiny_graphs
import torch
from planted_faults import plant_bias
from raising import raises
from task_models import untrained

import trtkit
from trtkit import backends
from trtkit.backends import BuildSettings, Passport
from trtkit.backends.devices import Gpu
from trtkit.backends.trt.execution import Execution
from trtkit.errors import CancelledError, CapabilityError, DataError, EngineError
from trtkit.graph.fp16 import has_fp16
from trtkit.models.model import RAW_MAPS
from trtkit.verification import LIMITS, Limit

ALL = ("8.6.0", "10.13.0.35", "11.4.0.106")
A10 = Gpu(index=0, name="NVIDIA A10", sm="sm86", memory=24 * 2**30)


def engine(folder: Path, precision: str = "fp32", **settings: Any) -> tuple[Path, Any]:
    """An engine file and the graph in it."""
    settings = {"imgsz": (32, 32), **settings}
    graph = tiny_graphs.detector(
        precision, batch=settings.get("batch", 1), size=settings["imgsz"], dynamic=settings.get("dynamic", False)
    )
    wanted = BuildSettings(precision=precision, **settings)
    built = backends.build(graph, wanted)
    passport = Passport.from_build(built, wanted, backend="tensorrt", model_hash="cd" * 32)
    metadata = tiny_graphs.info(settings["imgsz"]).to_metadata(
        batch=wanted.batch, imgsz=wanted.imgsz, dynamic=wanted.dynamic
    )
    return backends.write_engine(folder / f"{precision}.engine", built.plan, metadata, passport), graph


@pytest.mark.parametrize("version", ALL)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_infer_equals_onnx_runtime(tensorrt: Any, tmp_path: Path, version: str, precision: str) -> None:
    tensorrt(version)
    path, graph = engine(tmp_path, precision, batch=2)
    # The fake runs FP16 in ONNX Runtime, which rounds at fewer places: at most two FP16 steps tolerance.
    tolerance = 2**-9 if precision == "fp16" else 1e-4
    feed = np.random.default_rng(0).random((2, 3, 32, 32), dtype=np.float32)
    with backends.open(path) as runner, backends.open(graph) as other:
        assert runner.engine
        assert not other.engine
        assert runner.name == f"TensorRT {version} NVIDIA H100 80GB HBM3"
        assert (runner.precision, runner.batch, runner.imgsz, runner.dynamic) == (precision, 2, (32, 32), False)
        assert runner.profile_batches == (2,)
        assert runner.hash == "cd" * 32
        expected = other.infer(feed)
        for _ in range(4):
            actual = runner.infer(feed)
            assert actual.keys() == expected.keys()
            np.testing.assert_allclose(actual["output0"], expected["output0"], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("version", ALL)
def test_export_verifies_and_a_second_build_names_layers(
    tensorrt: Any, tmp_path: Path, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensorrt(version)
    source = tmp_path / "tiny.onnx"
    graph = tiny_graphs.detector(dynamic=True)
    onnx.save(graph, source)
    artifact = trtkit.export(source, backend="tensorrt", batch=4, output=tmp_path / "tiny.engine")
    assert artifact.verification is not None
    assert artifact.verification.verdict == "agrees"
    with backends.open(artifact) as runner:
        assert runner.profile_batches == (1, 4)
    assert trtkit.verify(artifact, eval_images=4).verdict == "agrees"
    # The engine's bias is off; the second build, of the graph itself, is right.
    healthy = tiny_graphs.detector(batch=4)
    faulty = tiny_graphs.detector(batch=4)
    plant_bias(faulty)
    onnx.save(faulty, source)
    broken = trtkit.export(source, backend="tensorrt", batch=4, output=tmp_path / "broken.engine", verify=False)
    assert broken.verification is None
    monkeypatch.setattr("trtkit.verification._check_pair", lambda *_: None)
    result = trtkit.verify(broken, eval_images=4, onnx=healthy, layers=True)
    assert result.verdict == "differs"
    assert result.layers is not None
    assert result.layers["tensor"].to_list() == ["silu_out", "output0"]
    assert not result.layers["differs"].any()


def test_a_second_build_is_fitted_as_the_first_and_runs_where_the_engine_does(
    tensorrt: Any, tmp_path: Path, with_gpus: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (Gpu(index=index, name="NVIDIA H100", sm="sm90", memory=2**36) for index in range(2))
    trt = tensorrt("11.4.0.106", first, second)
    graph = tiny_graphs.detector("int8", batch=2)
    source = tmp_path / "tiny.onnx"
    onnx.save(graph, source)
    artifact = trtkit.export(
        source, backend="tensorrt", int8=True, batch=2, device=1, output=tmp_path / "m.engine", verify=False
    )
    # It moves to a machine with one GPU.
    with_gpus(first)
    monkeypatch.setitem(LIMITS, "int8", dict.fromkeys(LIMITS["int8"], Limit(-1.0, -1.0)))
    result = trtkit.verify(artifact, eval_images=2, onnx=graph, layers=True)
    assert result.layers is not None
    (network, _), (again, _) = trt.fake.builds
    assert has_fp16(network.proto)
    assert has_fp16(again.proto)
    assert len(again.proto.graph.output) > len(network.proto.graph.output)
    # A second build takes minutes on a real GPU: it reports, and can be cancelled.
    cancel, stages = threading.Event(), []

    def listen(event: Any) -> None:
        stages.append(event.stage)
        if event.stage == "build int8 engine":
            cancel.set()

    with raises(CancelledError, "cancelled"):
        trtkit.verify(artifact, eval_images=2, onnx=graph, layers=True, progress=listen, cancel=cancel)
    assert stages[-1] == "build int8 engine"


def test_static_shapes_are_replayed_from_a_cuda_graph(tensorrt: Any, tmp_path: Path) -> None:
    tensorrt("8.6.0")
    path, _ = engine(tmp_path)
    one, two = np.random.default_rng(0).random((2, 1, 3, 32, 32), dtype=np.float32)
    with backends.open(path) as runner:
        first = runner.infer(one)["output0"]
        assert runner.cuda_graph == "not yet"
        second = runner.infer(two)["output0"]
        assert runner.cuda_graph == "replayed"
        assert np.array_equal(runner.infer(one)["output0"], first)
        assert np.array_equal(runner.infer(two)["output0"], second)
        assert runner._execution.graph.replays == 2


def test_runs_continue_where_the_capture_fails(tensorrt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensorrt("8.6.0", refuse_capture=True)
    path, _ = engine(tmp_path, imgsz=(64, 64), dynamic=True)
    captures, begin = [], fake_cuda.CUDAGraph.capture_begin
    monkeypatch.setattr(
        fake_cuda.CUDAGraph, "capture_begin", lambda self, **settings: captures.append(begin(self, **settings))
    )
    feed = np.zeros((1, 3, 32, 32), np.float32)
    with backends.open(path) as runner:
        results = [runner.infer(feed)["output0"] for _ in range(4)]
        assert runner.cuda_graph == "operation not permitted when stream is capturing"
        assert all(np.array_equal(result, results[0]) for result in results)
        # It is tried once for a shape.
        assert len(captures) == 1
        runner.infer(np.zeros((1, 3, 64, 64), np.float32))
        assert runner.cuda_graph == "not yet"


def test_outputs_whose_size_the_run_decides(tensorrt: Any, tmp_path: Path) -> None:
    trt = tensorrt("8.6.0")
    path, graph = engine(tmp_path, batch=2, imgsz=(64, 64), dynamic=True)
    trt.fake.sized_by_run = {"output0"}
    random = np.random.default_rng(0)
    with backends.open(path) as runner, backends.open(graph) as other:
        for shape in [(1, 3, 32, 32), (2, 3, 64, 64), (1, 3, 32, 32), (1, 3, 32, 32), (1, 3, 32, 32)]:
            feed = random.random(shape, dtype=np.float32)
            np.testing.assert_allclose(runner.infer(feed)["output0"], other.infer(feed)["output0"], rtol=1e-5)
        # A CUDA graph would write to the memory of the run that was captured.
        assert runner.cuda_graph == "not yet"
        # A new context has the allocator too.
        runner.layers(runs=1)
        feed = random.random((2, 3, 64, 32), dtype=np.float32)
        np.testing.assert_allclose(runner.infer(feed)["output0"], other.infer(feed)["output0"], rtol=1e-5)


def test_smaller_batches_are_padded_and_larger_ones_raise(tensorrt: Any, tmp_path: Path) -> None:
    tensorrt("8.6.0")
    path, graph = engine(tmp_path, batch=4)
    feed = np.random.default_rng(0).random((3, 3, 32, 32), dtype=np.float32)
    with backends.open(path) as runner, backends.open(graph) as other:
        assert runner.infer(feed)["output0"].shape == (3, 7, 256)
        np.testing.assert_allclose(runner.infer(feed)["output0"], other.infer(feed)["output0"], rtol=1e-5)
        with raises(EngineError, "run-batch-too-large", value=5, limit=4):
            runner.infer(np.zeros((5, 3, 32, 32), np.float32))
        with raises(EngineError, "run-shape", accepted="3 x 32 x 32"):
            runner.infer(np.zeros((1, 3, 64, 64), np.float32))
        with raises(EngineError, "run-shape", shape=(3, 32, 32)):
            runner.infer(np.zeros((3, 32, 32), np.float32))


def test_dynamic_shapes_reuse_their_memory(tensorrt: Any, tmp_path: Path) -> None:
    tensorrt("8.6.0")
    path, graph = engine(tmp_path, batch=4, imgsz=(64, 64), dynamic=True)
    random = np.random.default_rng(0)
    with backends.open(path) as runner, backends.open(graph) as other:
        assert runner.dynamic
        addresses = {name: buffer.data_ptr() for name, buffer in runner._execution.buffers.items()}
        for shape in [(1, 3, 32, 32), (4, 3, 64, 64), (2, 3, 32, 64), (2, 3, 32, 64), (2, 3, 32, 64)]:
            feed = random.random(shape, dtype=np.float32)
            np.testing.assert_allclose(runner.infer(feed)["output0"], other.infer(feed)["output0"], rtol=1e-5)
        # A repeated shape is captured too, and a new one not in its first run.
        assert runner.cuda_graph == "replayed"
        runner.infer(random.random((1, 3, 64, 64), dtype=np.float32))
        assert runner.cuda_graph == "not yet"
        assert {name: buffer.data_ptr() for name, buffer in runner._execution.buffers.items()} == addresses
        with raises(EngineError, "run-shape", accepted="3 x 32-64 x 32-64"):
            runner.infer(np.zeros((1, 3, 96, 96), np.float32))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_predict_equals_the_cpu_path(tensorrt: Any, tmp_path: Path, precision: str) -> None:
    tensorrt("8.6.0")
    path, graph = engine(tmp_path, precision, batch=4)
    images = tiny_graphs.images(7)
    with backends.open(path) as runner, backends.open(graph) as other:
        actual, expected = (each.predict(images, conf=0.5, iou=0.5, max_det=20) for each in (runner, other))
    assert len(actual) == len(expected) == 7
    assert sum(len(one) for one in expected) > 20
    for one, two in zip(actual, expected, strict=True):
        assert one.shape == two.shape
        # One gray level of a resized pixel changes scores slightly, so only the highest must agree.
        np.testing.assert_allclose(np.sort(one.scores)[-5:], np.sort(two.scores)[-5:], atol=0.02)


def test_raw_maps_are_fp16_and_decoded_on_the_gpu(tensorrt: Any, tmp_path: Path) -> None:
    tensorrt("8.6.0")
    images = tiny_graphs.images(3)
    settings = {"int8": True, "decode": False, "data": tiny_graphs.write_images(tmp_path / "images", len(images))}
    model = untrained("detect")
    path = trtkit.export(model, output=tmp_path / "raw.engine", backend="tensorrt", dynamic=False, **settings)
    reference = trtkit.export(model, output=tmp_path / "raw.onnx", format="onnx", **settings)
    assert path.verification is not None
    assert path.verification.verdict == "agrees"
    with backends.open(path) as runner, backends.open(reference) as other:
        assert runner.info.output_format == other.info.output_format == RAW_MAPS
        assert {str(value.dtype) for value in runner._execution.outputs().values()} == {"torch.float16"}
        ours, theirs = (each.predict(images[:1], conf=0.3, iou=0.5, max_det=20) for each in (runner, other))
    assert len(theirs[0]) > 3
    np.testing.assert_allclose(ours[0].scores[:3], theirs[0].scores[:3], atol=0.02)


def test_predict_takes_one_image_or_paths(tensorrt: Any, tmp_path: Path) -> None:
    import cv2

    tensorrt("8.6.0")
    path, _ = engine(tmp_path)
    (image,) = tiny_graphs.images(1)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    with backends.open(path) as runner:
        one, two = runner.predict(image, conf=0.3)[0], runner.predict([tmp_path / "a.png"], conf=0.3)[0]
        assert np.array_equal(one.boxes, two.boxes)
        assert len(runner.predict(str(tmp_path / "a.png"))) == 1
        with raises(DataError, "predict-image-array", dtype="float32", shape=(4, 4, 3)):
            runner.predict(np.zeros((4, 4, 3), np.float32))


def test_threads_and_runners_are_independent(tensorrt: Any, tmp_path: Path) -> None:
    tensorrt("8.6.0")
    path, graph = engine(tmp_path)
    feeds = np.random.default_rng(0).random((4, 1, 3, 32, 32), dtype=np.float32)
    with backends.open(graph) as other:
        expected = [other.infer(feed)["output0"] for feed in feeds]
    mismatches: list[int] = []
    with backends.open(path) as shared, backends.open(path) as second:

        def infer_often(place: int) -> None:
            for turn in range(20):
                runner = shared if turn % 2 else second
                if not np.allclose(runner.infer(feeds[place])["output0"], expected[place], rtol=1e-5):
                    mismatches.append(place)

        threads = [threading.Thread(target=infer_often, args=(place,)) for place in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not mismatches


def test_calls_of_one_runner_are_serialized(tensorrt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory holds one batch."""
    tensorrt("8.6.0")
    path, _ = engine(tmp_path)
    inside, overlaps, run = threading.Lock(), [], Execution.run

    def run_slowly(self: Execution, shapes: Any) -> None:
        overlaps.append(not inside.acquire(blocking=False))
        time.sleep(0.01)
        run(self, shapes)
        inside.release()

    monkeypatch.setattr(Execution, "run", run_slowly)
    feed, image = np.zeros((1, 3, 32, 32), np.float32), tiny_graphs.images(1)
    with backends.open(path) as runner, ThreadPoolExecutor(4) as pool:
        works = (
            lambda: runner.infer(feed),
            lambda: runner.infer_device(runner.input_tensor(1)),
            lambda: runner.predict(image),
            lambda: runner.measure_gpu_times(feed, 1),
        )
        for result in [pool.submit(work) for work in works * 3]:
            result.result()
    assert not any(overlaps)


def test_close_frees_everything(tensorrt: Any, tmp_path: Path) -> None:
    trt = tensorrt("8.6.0")
    path, _ = engine(tmp_path)
    before = trt.fake.live
    for _ in range(20):
        runner = backends.open(path)
        runner.infer(np.zeros((1, 3, 32, 32), np.float32))
        runner.predict(tiny_graphs.images(1))
        runner.close()
        runner.close()
        assert trt.fake.live == before
    assert trt.torch.emptied == 20
    feed = np.zeros((1, 3, 32, 32), np.float32)
    for use in (
        lambda: runner.infer(feed),
        lambda: runner.infer_device(torch.from_numpy(feed)),
        lambda: runner.input_tensor(1),
        lambda: runner.predict(tiny_graphs.images(1)),
        lambda: runner.measure_gpu_times(feed, 1),
        lambda: runner.measure_throughput(feed, 0.01),
        lambda: runner.layers(),
        lambda: runner.device_memory,
    ):
        with raises(EngineError, "runner-closed"):
            use()


def test_an_engine_that_does_not_open_leaves_nothing_on_the_gpu(
    tensorrt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though its error is at hand, which keeps the frames alive that it came through."""
    trt = tensorrt("8.6.0")
    path, _ = engine(tmp_path)
    bare = backends.strip_engine(path, tmp_path / "model.plan")
    before = trt.fake.live

    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as patch:
        # Its file says no precision, so that its layers are read.
        patch.setattr("trtkit.backends.trt.runner.parse_inspector_json", fail)
        with raises(EngineError, "run-cuda-failed") as unread:
            backends.open(bare, task="detect")
    assert trt.fake.live == before
    with monkeypatch.context() as patch:
        patch.setattr(trt.torch, "zeros", fail, raising=False)
        with raises(EngineError, "run-out-of-memory") as full:
            backends.open(path)
    assert trt.fake.live == before
    assert unread.tb is not full.tb


def test_a_runner_without_a_context_is_closed_and_frees_everything(tensorrt: Any, tmp_path: Path) -> None:
    trt = tensorrt("8.6.0")
    path, _ = engine(tmp_path)
    before = trt.fake.live
    runner = backends.open(path)
    runner._execution.engine.create_execution_context = lambda: None
    with raises(EngineError, "run-out-of-memory"):
        runner.layers(runs=1)
    with raises(EngineError, "runner-closed"):
        runner.infer(np.zeros((1, 3, 32, 32), np.float32))
    runner.close()
    assert trt.fake.live == before
    assert not runner._execution.buffers


def test_arrays_of_any_memory_layout(tensorrt: Any, tmp_path: Path) -> None:
    tensorrt("8.6.0")
    path, _ = engine(tmp_path)
    feed = np.random.default_rng(0).random((1, 3, 32, 32), dtype=np.float32)
    locked = feed.copy()
    locked.flags.writeable = False
    with backends.open(path) as runner, warnings.catch_warnings():
        warnings.simplefilter("error")
        # Staged memory of one type is none for another.
        runner.infer(np.zeros(feed.shape, np.uint8))
        expected = runner.infer(feed)["output0"]
        assert len(np.unique(expected)) > 100
        for other in (locked, np.asfortranarray(feed), feed[:, ::-1][:, ::-1], feed.astype(np.float64)):
            assert np.array_equal(runner.infer(other)["output0"], expected)


def test_gpu_tensors_are_not_copied(tensorrt: Any, tmp_path: Path) -> None:
    tensorrt("8.6.0")
    path, _ = engine(tmp_path, batch=2)
    feed = np.random.default_rng(0).random((2, 3, 32, 32), dtype=np.float32)
    with backends.open(path) as runner:
        expected = runner.infer(feed)["output0"]
        there = runner.input_tensor(2)
        there.copy_(torch.from_numpy(feed))
        actual = runner.infer_device(there)["output0"]
        assert actual.data_ptr() == runner._execution.buffers["output0"].data_ptr()
        assert np.array_equal(actual.numpy(), expected)
        times = runner.measure_gpu_times(feed, 5)
        assert len(times) == 5
        assert all(ms > 0 for ms in times)
        runs, seconds = runner.measure_throughput(feed, 0.01)
        assert seconds >= 0.01
        assert runs >= 20
        # Two images of 3 x 32 x 32 and 7 x 256 floats, and the context's 4096 bytes.
        assert runner.device_memory == 4 * (2 * 3 * 32 * 32 + 2 * 7 * 256) + 4096


def test_streams_wait_for_each_other(tensorrt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the caller enqueued before comes before the run, and what it enqueues then after it."""
    trt = tensorrt("8.6.0")
    path, _ = engine(tmp_path)
    mine = fake_cuda.Stream()
    monkeypatch.setattr(trt.torch.cuda, "current_stream", lambda device=None: mine)
    with backends.open(path) as runner:
        runner.infer_device(runner.input_tensor(1))
        own = runner._execution.stream
        assert (own.waits, mine.waits) == ([mine], [own])


def test_a_run_waits_for_those_who_read_the_outputs(tensorrt: Any, tmp_path: Path) -> None:
    tensorrt("8.6.0")
    path, _ = engine(tmp_path)
    with backends.open(path) as runner:
        execution = runner._execution
        images = tiny_graphs.images(1, ((32, 32),))
        runner.predict(images)
        execution.stream.waits.clear()
        for expected in ([execution.objects_stream], []):
            runner.infer_device(runner.input_tensor(1))
            assert [one for one in execution.stream.waits if one is execution.objects_stream] == expected
            execution.stream.waits.clear()


def test_an_output_without_a_batch_is_given_whole(tensorrt: Any, tmp_path: Path) -> None:
    tensorrt("8.6.0")
    graph = tiny_graphs.detector(batch=2)
    graph.graph.node.append(onnx.helper.make_node("ReduceMax", ["output0"], ["highest"], axes=[0], keepdims=0))
    graph.graph.output.append(onnx.helper.make_tensor_value_info("highest", 1, [7, 256]))
    settings = BuildSettings(imgsz=(32, 32), batch=2)
    plan = backends.build(graph, settings).plan
    path = backends.write_engine(tmp_path / "m.engine", plan, tiny_graphs.info((32, 32)), None)
    with backends.open(path) as runner:
        outputs = runner.infer(np.zeros((1, 3, 32, 32), np.float32))
    assert (outputs["output0"].shape, outputs["highest"].shape) == ((1, 7, 256), (7, 256))


@pytest.mark.parametrize(("dynamic", "size"), [(True, (32, 32)), (False, (64, 64))])
def test_the_size_is_that_of_the_file_where_the_engine_leaves_it_open(
    tensorrt: Any, tmp_path: Path, dynamic: bool, size: tuple[int, int]
) -> None:
    tensorrt("8.6.0")
    path, _ = engine(tmp_path, imgsz=(64, 64), dynamic=dynamic)
    other = backends.wrap_engine(path, tmp_path / "other.engine", tiny_graphs.info((32, 32)))
    with backends.open(other) as runner:
        assert runner.imgsz == size


def test_the_precision_of_a_plan_is_the_lowest_of_its_layers(
    tensorrt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensorrt("8.6.0")
    path, _ = engine(tmp_path)
    bare = backends.strip_engine(path, tmp_path / "model.plan")
    for found, precision in ((("fp32", "int8", "fp16"), "int8"), (("fp32", "fp16", None), "fp16"), ((), "fp32")):
        rows = tuple({"precision": one} for one in found)
        monkeypatch.setattr("trtkit.backends.trt.runner.parse_inspector_json", lambda text, rows=rows: rows)
        with backends.open(bare, task="detect") as runner:
            assert runner.precision == precision


@pytest.mark.parametrize("version", ALL)
def test_layers_with_times(tensorrt: Any, tmp_path: Path, version: str) -> None:
    tensorrt(version)
    path, _ = engine(tmp_path, "fp16")
    with backends.open(path) as runner:
        plain, timed = runner.layers(), runner.layers(runs=3)
    assert plain["ms"].null_count() == len(plain)
    assert timed["ms"].to_list() == [0.25] * len(timed)
    assert "stem" in plain["name"].to_list()


def test_a_failed_run_is_an_engine_error(tensorrt: Any, tmp_path: Path) -> None:
    trt = tensorrt("8.6.0")
    path, _ = engine(tmp_path)
    with backends.open(path) as runner:
        trt.fake.break_build = "execute"
        with raises(EngineError, "run-failed", reason="an illegal memory access was encountered"):
            runner.infer(np.zeros((1, 3, 32, 32), np.float32))


def test_the_passport_is_checked_before_tensorrt_loads_the_plan(
    tensorrt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensorrt("8.6.0")
    path, _ = engine(tmp_path)
    trt = tensorrt("8.6.0", A10)
    monkeypatch.setattr(trt, "Runtime", None)
    with raises(EngineError, "engine-gpu-mismatch", path=path):
        backends.open(path)
    trt = tensorrt("10.13.0.35")
    monkeypatch.setattr(trt, "Runtime", None)
    with raises(EngineError, "engine-version-mismatch", path=path):
        backends.open(path)


def test_no_driver(tensorrt: Any, tmp_path: Path, with_gpus: Any) -> None:
    tensorrt("8.6.0")
    path, _ = engine(tmp_path)
    with_gpus()
    with raises(CapabilityError, "gpu-missing"):
        backends.open(path)


def test_a_plan_that_tensorrt_rejects(tensorrt: Any, tmp_path: Path) -> None:
    trt = tensorrt("8.6.0")
    path, _ = engine(tmp_path)
    reason = "expecting library version 8.6.0.12 got 8.6.1.6"
    trt.fake.refuse_plan = reason
    with raises(EngineError, "engine-plan-rejected", reason=reason):
        backends.open(path)


def test_a_bare_plan_needs_its_task(tensorrt: Any, tmp_path: Path) -> None:
    tensorrt("8.6.0")
    path, _ = engine(tmp_path, "fp16", batch=2)
    bare = backends.strip_engine(path, tmp_path / "model.plan")
    with raises(EngineError, "engine-task-missing", path=bare):
        backends.open(bare)
    with backends.open(bare, task="detect") as runner:
        assert (runner.batch, runner.imgsz, len(runner.info.names), runner.precision) == (2, (32, 32), 3, "fp16")
        assert runner.passport is None


@pytest.mark.parametrize(("core", "index"), [("0", 0), (1, 1)])
def test_an_engine_of_ultralytics_runs_on_its_dla_core(tensorrt: Any, tmp_path: Path, core: Any, index: int) -> None:
    tensorrt("8.6.0")
    path, _ = engine(tmp_path)
    file = backends.read_engine(path)
    theirs = backends.write_engine(
        tmp_path / "theirs.engine", file.plan, file.info().to_metadata() | {"dla": core}, None
    )
    with backends.open(theirs) as runner:
        assert f"DLA {index} of" in runner.name
        assert runner._execution.runtime.DLA_core == index
    with backends.open(theirs, device=0) as runner:
        assert runner._execution.runtime.DLA_core == -1


def test_a_dla_core_that_is_no_number(tensorrt: Any, tmp_path: Path) -> None:
    tensorrt("8.6.0")
    path, _ = engine(tmp_path)
    file = backends.read_engine(path)
    write = backends.write_engine
    theirs = write(tmp_path / "theirs.engine", file.plan, file.info().to_metadata() | {"dla": "first"}, None)
    with raises(EngineError, "engine-metadata-invalid", path=theirs):
        backends.open(theirs)


def test_a_tensor_of_a_type_that_torch_lacks(tensorrt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The fake takes the first name of a width for its type.
    monkeypatch.setattr(fake_tensorrt, "SIZES", {"FP8": np.float32, **fake_tensorrt.SIZES})
    trt = tensorrt("10.13.0.35")
    path, _ = engine(tmp_path)
    before = trt.fake.live
    with raises(EngineError, "engine-tensor-type", name="images", value="FP8"):
        backends.open(path)
    assert trt.fake.live == before


def test_ultralytics_engines_open(tensorrt: Any, tmp_path: Path) -> None:
    tensorrt("8.6.0")
    path, _ = engine(tmp_path)
    plan = backends.read_engine(path).plan
    metadata = {**tiny_graphs.info().to_metadata(batch=1, half=True), "version": "8.4.190"}
    theirs = backends.write_engine(tmp_path / "theirs.engine", plan, metadata, None)
    with backends.open(theirs) as runner:
        assert runner.info.names == tiny_graphs.NAMES
        assert runner.precision == "fp16"
