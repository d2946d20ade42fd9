"""TensorRT on a real GPU: what engines compute, in which time and memory. Runs under pytest, or as a plain script.

    pytest tests/gpu -m gpu            python tests/gpu/test_tensorrt_gpu.py [word in a test's name ...]

Builds are small and at optimization level 0: latency is not tested. TRTKIT_GPU_FOLDER keeps engines between runs.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx

try:
    import pytest

    pytestmark = pytest.mark.gpu
except ImportError:
    pytest = None  # type: ignore[assignment]

HERE = Path(__file__).resolve().parent
# Run as a script, the package and the test helpers need not be installed.
sys.path[:0] = [str(HERE), str(HERE.parents[1]), str(HERE.parent / "support")]

import tiny_graphs
from gpu_engines import (
    BATCH,
    SCORES,
    SIZE,
    build_engine_file,
    count_matches,
    engine,
    expect_error,
    folder,
    graph,
    images,
    require_tensorrt,
    run_tests,
    tiny,
)

import trtkit
from trtkit import backends, demo
from trtkit.backends import BuildSettings
from trtkit.backends.runner import Runner
from trtkit.backends.stages import STAGES
from trtkit.data import resize_to_input, to_input
from trtkit.errors import EngineError
from trtkit.models.model import DENSE, Preprocess
from trtkit.tasks import PostprocessSettings, get_task


def test_every_precision_agrees_with_onnx_runtime() -> None:
    require_tensorrt()
    for precision, score in SCORES.items():
        with backends.open(engine(precision)) as runner, backends.open(graph(precision)) as other:
            assert runner.engine
            assert runner.precision == precision
            assert runner.batch == BATCH
            mine, theirs = (each.predict(list(images()), conf=0.25) for each in (runner, other))
            # NMS may keep either of two boxes with nearly equal scores: each is matched with all boxes of the other.
            all_mine, all_theirs = (each.predict(list(images()), conf=0.2, iou=0.999) for each in (runner, other))
        for one, two in ((mine, all_theirs), (theirs, all_mine)):
            matched, total = count_matches(one, two, score=score, pixels=5 if precision == "int8" else 1.9)
            print(f"      {precision}: {matched} of {total} agree")
            assert total >= 10
            assert matched >= (0.85 if precision == "int8" else 0.95) * total


def test_the_gpu_path_equals_the_cpu_path_on_the_same_engine() -> None:
    require_tensorrt()
    with backends.open(engine("fp32")) as runner:
        mine, theirs = runner.predict(list(images())), Runner.predict(runner, list(images()))
    matched, total = count_matches(mine, theirs, score=0.02, pixels=0.9, conf=0.3)
    print(f"      {matched} of {total} agree")
    assert matched >= 0.97 * total


def test_preprocessing_equals_opencv() -> None:
    require_tensorrt()
    import torch

    from trtkit.backends.trt.copying import Copier
    from trtkit.backends.trt.gpu_preprocess import DeviceImages, HostImages, locate_images

    random = np.random.default_rng(0)
    shapes = [(640, 640), (480, 640), (1080, 1920), (333, 77), (5, 3), (1280, 1280), (427, 640), (90, 700)]
    pixels = [random.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    for preprocess in (Preprocess(), Preprocess(kind="stretch", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))):
        host, device = HostImages(pinned=True), DeviceImages(torch.device("cuda"))
        copier = Copier()
        copies = host.reserve(pixels, locate_images(pixels, (640, 640), preprocess))
        host.write_places()
        copier.copy(copies)
        copier.free()
        device.upload(host)
        expected = to_input([resize_to_input(image, (640, 640), preprocess)[0] for image in pixels], preprocess)
        for dtype in (torch.float32, torch.float16):
            target = torch.full((len(pixels), 3, 640, 640), float("nan"), dtype=dtype, device="cuda")
            found = device.preprocess_into(target, preprocess).cpu().numpy()
            np.testing.assert_array_equal(found, expected.astype(found.dtype))


def test_batches_under_way_beside_each_other_equal_single_ones() -> None:
    """With room for the candidates, without it at a low score, and in several threads."""
    require_tensorrt()
    pixels = [*images(), *(image[::-1] for image in images()), *images()[:1]]
    with backends.open(engine("fp32")) as runner:
        for conf in (0.25, 0.001):
            single = [runner.predict([image], conf=conf)[0] for image in pixels]
            results: list[list[object]] = [[] for _ in range(3)]

            def predict(place: int, conf: float = conf, results: list[list[object]] = results) -> None:
                results[place] = runner.predict(pixels, conf=conf)

            threads = [threading.Thread(target=predict, args=(place,)) for place in range(len(results))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for found in results:
                assert len(found) == len(single)
                for one, two in zip(found, single, strict=True):
                    np.testing.assert_allclose(one.scores, two.scores, atol=1e-5)
                    np.testing.assert_allclose(one.boxes, two.boxes, atol=1e-2)


def test_work_around_the_engine_is_replayed_and_equals_single_calls() -> None:
    require_tensorrt()
    pixels = list(images()) * 6
    for precision in ("fp32", "fp16"):
        with backends.open(engine(precision)) as runner:
            single = [one for image in images() for one in runner.predict([image])]
            found = runner.predict(pixels)
            for replay in (runner._predictor._preprocess, runner._predictor._postprocess):
                assert replay.is_captured, replay.error
            for one, two in zip(found, single * 6, strict=True):
                np.testing.assert_allclose(one.scores, two.scores, atol=1e-5)
                np.testing.assert_allclose(one.boxes, two.boxes, atol=1e-2)


def test_static_runs_are_replayed_and_equal_plain_ones() -> None:
    require_tensorrt()
    feed = np.random.default_rng(0).random((BATCH, 3, *SIZE), dtype=np.float32)
    for precision in SCORES:
        with backends.open(engine(precision)) as runner:
            plain = runner.infer(feed)["output0"]
            replayed = [runner.infer(feed)["output0"] for _ in range(4)][-1]
            assert runner.cuda_graph == "replayed", runner.cuda_graph
            np.testing.assert_array_equal(plain, replayed)
            other = runner.infer(feed[::-1].copy())["output0"]
            np.testing.assert_allclose(other[::-1], plain, atol=1e-3, rtol=1e-3)
            times = runner.measure_gpu_times(feed, 50)
            print(f"      {precision}: p50 {np.median(times):.3f} ms, {runner.device_memory / 2**20:.1f} MiB, {runner}")
            assert 0 < np.median(times) < 50
            runs, seconds = runner.measure_throughput(feed, 0.5)
            print(f"      back to back: {1000 * seconds / runs:.3f} ms a run")
            assert 0.5 <= seconds < 1
            assert 1000 * seconds / runs < 1.5 * np.median(times) + 0.2


LOAD = """
import sys, torch
a = torch.rand(8192, 8192, device="cuda", dtype=torch.half)
for _ in range(3):
    a @ a
torch.cuda.synchronize()
print("ready", flush=True)
while True:
    for _ in range(20):
        a @ a
    torch.cuda.synchronize()
"""


def test_a_second_process_on_the_gpu_is_flagged() -> None:
    """Multiplies matrices from a third of the measurement on: the other process is counted, or the drift is seen."""
    require_tensorrt()
    settings = {"batch": BATCH, "runs": 2000, "max_noise": 0, "offline_seconds": 0, "stage_runs": 0}
    with backends.open(engine("fp16")) as runner:
        calm = trtkit.benchmark({"calm": runner}, seconds=2, **settings)
        begun: list[subprocess.Popen[str]] = []

        def start(event: trtkit.Event) -> None:
            if not begun and event.total and event.done > event.total / 3:
                begun.append(subprocess.Popen([sys.executable, "-c", LOAD], stdout=subprocess.PIPE, text=True))
                assert begun[0].stdout is not None
                assert begun[0].stdout.readline() == "ready\n"

        try:
            loaded = trtkit.benchmark({"loaded": runner}, seconds=60, progress=start, **settings)
        finally:
            for process in begun:
                process.kill()
                process.wait()
    words = calm.frame()["flags"][0], loaded.frame()["flags"][0]
    print(f"      calm: {words[0] or 'nothing'}; loaded: {words[1]}")
    print(f"      p50 {calm.frame()['p50_ms'][0]:.3f} and {loaded.frame()['p50_ms'][0]:.3f} ms")
    assert begun
    assert "other processes used the GPU" in words[1] or "more time than the first" in words[1]


def test_stages_on_the_gpu_make_up_the_call() -> None:
    require_tensorrt()
    paths = sorted((demo.data_path().parent / "images" / "val").iterdir())[: 4 * BATCH]
    with backends.open(engine("fp16")) as runner:
        timing = trtkit.benchmark(
            {"fp16": runner}, batch=BATCH, images=paths, runs=50, stage_runs=50, offline_seconds=0
        )
    frame = timing.stage_frame()
    print("\n".join(f"      {stage}: {ms:.3f} ms" for stage, ms in frame.select("stage", "p50_ms").iter_rows()))
    assert frame["stage"].to_list() == [*STAGES, "predict"]
    assert (frame["p50_ms"] > 0).all()
    # A stage begins where the one before ends; what comes before the first one is Python alone.
    assert 0.9 < frame.filter(frame["stage"] != "predict")["share"].sum() <= 1.0001


def test_engines_agree_with_their_graphs() -> None:
    require_tensorrt()
    for precision in SCORES:
        result = trtkit.verify(engine(precision), demo.data_path(), onnx=graph(precision))
        print(f"      {result}")
        assert result.verdict == "agrees"
    path = folder() / "verified.engine"
    artifact = trtkit.export(
        demo.model_path("classify"), batch=4, half=True, dynamic=True, opt_level=0, output=path, overwrite=True
    )
    print(f"      {artifact.verification}")
    assert artifact.verification is not None
    assert artifact.verification.verdict == "agrees"


def test_a_fault_is_found_and_its_layer_named() -> None:
    """The engine is built from a graph with a fault and compared with the healthy one, which a second build names."""
    from planted_faults import plant_batch_leak

    require_tensorrt()
    proto = tiny_graphs.detector(batch=4, size=(64, 64), dynamic=True)
    broken = onnx.ModelProto()
    broken.CopyFrom(proto)
    plant_batch_leak(broken)
    settings = BuildSettings(batch=4, imgsz=(64, 64), dynamic=True, opt_level=0)
    path, _ = build_engine_file(broken, settings, folder() / "broken.engine")
    result = trtkit.verify(path, demo.data_path(), onnx=proto, layers=True)
    print(f"      {result}")
    assert result.verdict == "differs"
    assert set(result.frame().filter("differs")["batch"]) == {4}
    # The second build is of the healthy graph, so that no layer of it differs.
    assert result.layers is not None
    assert not result.layers["differs"].any()


def test_batches_below_and_above_the_engine_s() -> None:
    require_tensorrt()
    path, proto = tiny()
    feed = np.random.default_rng(0).random((4, 3, 64, 64), dtype=np.float32)
    with backends.open(path) as runner, backends.open(proto) as other:
        for count in (1, 3, 4):
            np.testing.assert_allclose(
                runner.infer(feed[:count])["output0"], other.infer(feed[:count])["output0"], atol=0.1
            )
        with expect_error(EngineError, "run-batch-too-large", value=5, limit=4):
            runner.infer(np.zeros((5, 3, 64, 64), np.float32))
        with expect_error(EngineError, "run-shape", accepted="3 x 64 x 64"):
            runner.infer(np.zeros((1, 3, 32, 32), np.float32))
        assert len(runner.predict(list(images()))) == len(images())


def test_dynamic_shapes_reuse_their_memory() -> None:
    require_tensorrt()
    path, proto = tiny(dynamic=True)
    random = np.random.default_rng(0)
    with backends.open(path) as runner, backends.open(proto) as other:
        assert runner.dynamic
        assert runner.batch == 4
        address = runner._execution.buffers["output0"].data_ptr()
        for shape in [(1, 3, 32, 32), (4, 3, 64, 64), (2, 3, 32, 64), *[(3, 3, 64, 32)] * 4, (1, 3, 32, 32)]:
            feed = random.random(shape, dtype=np.float32)
            np.testing.assert_allclose(runner.infer(feed)["output0"], other.infer(feed)["output0"], atol=0.1)
        assert runner._execution.buffers["output0"].data_ptr() == address
        with expect_error(EngineError, "run-shape", accepted="3 x 32-64 x 32-64"):
            runner.infer(np.zeros((1, 3, 96, 96), np.float32))


def test_inference_of_gpu_tensors() -> None:
    import torch

    require_tensorrt()
    path, _ = tiny()
    feed = np.random.default_rng(0).random((4, 3, 64, 64), dtype=np.float32)
    with backends.open(path) as runner:
        expected = runner.infer(feed)["output0"]
        given = torch.from_numpy(feed).cuda()
        for _ in range(4):
            np.testing.assert_array_equal(runner.infer_device(given)["output0"].cpu().numpy(), expected)
        runner.input_tensor(4).copy_(given)
        np.testing.assert_array_equal(runner.infer_device(runner.input_tensor(4))["output0"].cpu().numpy(), expected)


def test_threads_and_runners() -> None:
    require_tensorrt()
    path, _ = tiny()
    feeds = np.random.default_rng(0).random((4, 4, 3, 64, 64), dtype=np.float32)
    wrong: list[str] = []
    with backends.open(path) as one, backends.open(path) as two, backends.open(engine("fp16")) as three:
        expected = [one.infer(feed)["output0"] for feed in feeds]

        def infer_often(place: int) -> None:
            try:
                for turn in range(100):
                    if not np.array_equal((one, two)[turn % 2].infer(feeds[place])["output0"], expected[place]):
                        wrong.append(f"thread {place}, turn {turn}")
                    if turn % 25 == 0:
                        three.predict(list(images()[:3]))
            except Exception as error:
                wrong.append(repr(error))
                raise

        threads = [threading.Thread(target=infer_often, args=(place,)) for place in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong, wrong[:3]


def test_opening_two_hundred_times_leaks_no_memory() -> None:
    import torch

    require_tensorrt()
    path, _ = tiny()
    feed = np.zeros((4, 3, 64, 64), np.float32)

    def one_round(file: Path, value: np.ndarray) -> None:
        with backends.open(file) as runner:
            for _ in range(3):
                runner.infer(value)
            runner.predict(list(images()[:2]))

    large = np.zeros((BATCH, 3, *SIZE), np.float32)
    for _ in range(5):
        one_round(path, feed)
        one_round(engine("fp16"), large)
    torch.cuda.synchronize()
    before = torch.cuda.mem_get_info()[0]
    began = time.perf_counter()
    for _ in range(190):
        one_round(path, feed)
    for _ in range(10):
        one_round(engine("fp16"), large)
    torch.cuda.synchronize()
    leaked = (before - torch.cuda.mem_get_info()[0]) / 2**20
    reserved = torch.cuda.memory_reserved() / 2**20
    seconds = time.perf_counter() - began
    print(f"      {leaked:.1f} MiB leaked in 200 rounds, {seconds:.1f} s; torch reserves {reserved:.1f} MiB")
    assert leaked <= 8


def test_nms_in_the_graph_equals_nms_after_it() -> None:
    require_tensorrt()
    for precision in SCORES:
        # One engine with both outputs, raw boxes and NMS's: two engines would also differ by rounding.
        both = onnx.ModelProto()
        both.CopyFrom(graph(precision, nms=True))
        raw = onnx.ValueInfoProto()
        raw.CopyFrom(graph(precision).graph.output[0])
        raw.name = "trtkit_nms_input"
        both.graph.output.append(raw)
        settings = BuildSettings(precision=precision, batch=BATCH, imgsz=SIZE, opt_level=0)
        path, _ = build_engine_file(both, settings, folder() / f"nms-both-{precision}.engine", nms=True)
        detect, compared = get_task("detect"), 0
        thresholds = PostprocessSettings(conf=0.25, iou=0.7, max_det=300)
        with backends.open(path) as runner:
            info = dataclasses.replace(runner.info, output_format=DENSE)
            for start in range(0, 12, BATCH):
                batch = images()[start : start + BATCH]
                arrays, transforms = zip(
                    *(resize_to_input(image, SIZE, runner.info.preprocess) for image in batch), strict=True
                )
                outputs = runner.infer(to_input(list(arrays), runner.info.preprocess))
                inside, outside = (
                    detect.postprocess({"output0": outputs[name]}, one, list(transforms), thresholds)
                    for name, one in (("output0", runner.info), (raw.name, info))
                )
                for mine, theirs in zip(inside, outside, strict=True):
                    assert len(mine) == len(theirs)
                    np.testing.assert_allclose(mine.scores, theirs.scores, atol=1e-3)
                    np.testing.assert_allclose(mine.boxes, theirs.boxes, atol=1e-3)
                    np.testing.assert_array_equal(mine.classes, theirs.classes)
                    compared += len(mine)
        print(f"      {precision}: {compared} detections agree within 1e-3")
        assert compared >= 10


def export_verified(path: Path, model: Any = None, **settings: Any) -> None:
    """Export a fixed engine, in a quick build; raises an error if it differs from ONNX Runtime."""
    fixed = {"imgsz": SIZE, "batch": BATCH, "dynamic": False, "opt_level": 0, "overwrite": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trtkit.export(demo.model_path() if model is None else model, output=path, **fixed, **settings)


def test_raw_maps_are_decoded_on_the_gpu_as_on_the_cpu() -> None:
    require_tensorrt()
    for precision in SCORES:
        path = folder() / f"raw-{precision}.engine"
        settings: dict[str, Any] = {"fp16": {"half": True}, "int8": {"int8": True, "data": demo.data_path()}}
        export_verified(path, decode=False, fraction=0.25, **settings.get(precision, {}))
        with backends.open(path) as runner:
            mine, theirs = runner.predict(list(images())), Runner.predict(runner, list(images()))
            types = {str(value.dtype) for value in runner._execution.outputs().values()}
        assert types == {"torch.float32" if precision == "fp32" else "torch.float16"}, types
        matched, total = count_matches(mine, theirs, score=0.02, pixels=0.9, conf=0.3)
        print(f"      {precision}: {matched} of {total} agree")
        assert total >= 10
        assert matched >= 0.97 * total


def test_pixels_in_blocks_give_what_images_give() -> None:
    require_tensorrt()
    kinds = {
        "INT8, dense": {"int8": True, "data": demo.data_path(), "fraction": 0.25},
        "INT8, raw maps": {"int8": True, "data": demo.data_path(), "fraction": 0.25, "decode": False, "aux_streams": 4},
        "FP16, raw maps": {"half": True, "decode": False},
    }
    for kind, settings in kinds.items():
        paths = {
            blocks: folder() / f"blocks-{kind.replace(', ', '-').replace(' ', '-')}-{blocks}.engine"
            for blocks in (True, False)
        }
        for blocks, path in paths.items():
            export_verified(path, space_to_depth=blocks, **settings)
        with backends.open(paths[True]) as runner, backends.open(paths[False]) as plain:
            formats = {
                str(one._execution.engine.get_tensor_format(one.input_name)).partition(".")[2]: one.passport.pixel_input
                for one in (runner, plain)
            }
            form = "HWC8" if "half" in settings else "CHW32"
            assert set(formats) == {form, "LINEAR"}, formats
            assert formats[form].side == 4
            # Against the CPU's preprocessing, whose result the GPU quantizes, and against float images.
            many = list(images())
            mine, same, theirs = runner.predict(many), Runner.predict(runner, many), plain.predict(many)
            assert runner._predictor._preprocess.is_captured, runner._predictor._preprocess.error
            for one, two in zip(mine, same, strict=True):
                np.testing.assert_array_equal(one.classes, two.classes)
                np.testing.assert_allclose(one.boxes, two.boxes, atol=1e-2)
        matched, total = count_matches(mine, theirs, score=SCORES["int8"], pixels=3.0)
        print(f"      {kind}: {matched} of {total} agree")
        assert total >= 10
        assert matched >= 0.9 * total


def test_every_output_format_is_read_beside_the_next_batch_as_on_the_cpu() -> None:
    require_tensorrt()
    one_to_one = trtkit.load(demo.model_path(family="yolo26"), end2end=True)
    kinds = {
        "rows of NMS": (demo.model_path(), "detect", {"nms": True}),
        "rows of a head": (one_to_one, "detect", {}),
        "maps of a head": (one_to_one, "detect", {"decode": False}),
        "masks": (demo.model_path("segment"), "segment", {}),
        "keypoints": (demo.model_path("pose"), "pose", {}),
        "oriented boxes": (demo.model_path("obb"), "obb", {}),
    }
    for kind, (model, task, settings) in kinds.items():
        path = folder() / f"read-{kind.replace(' ', '-')}.engine"
        export_verified(path, model, **settings)
        files = sorted((Path(demo.data_path(task)).parent / "images" / "val").iterdir())[: 4 * BATCH + 1]
        with backends.open(path) as runner:
            runner.predict(files[:-1])
            reader, replay = runner._predictor._reader, runner._predictor._postprocess
            assert replay.is_captured == reader.computes, replay.error
            # The last one is a batch of its own, of another shape.
            mine, theirs = runner.predict(files), Runner.predict(runner, files)
        found = sum(map(len, theirs))
        print(f"      {kind}: {found} objects")
        assert found >= 5
        for one, two in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(one.classes, two.classes)
            for name in ("scores", "boxes", "keypoints", "xywhr"):
                if hasattr(two, name):
                    np.testing.assert_allclose(getattr(one, name), getattr(two, name), rtol=1e-5, atol=1e-2)
            if task == "segment":
                np.testing.assert_allclose(one.masks.coefficients, two.masks.coefficients, rtol=1e-4, atol=1e-4)
                np.testing.assert_allclose(one.masks.prototypes, two.masks.prototypes, rtol=1e-4, atol=1e-4)


if __name__ == "__main__":
    sys.exit(run_tests(globals(), sys.argv[1:]))
