"""Batches under way beside each other, with ONNX Runtime in an engine's place and memory of the host."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import tiny_graphs
import torch
from raising import raises

from trtkit.backends.trt import copying, gpu_objects, gpu_postprocess
from trtkit.backends.trt.batch_predictor import BatchPredictor
from trtkit.backends.trt.copying import Copier
from trtkit.backends.trt.gpu_preprocess import DeviceImages
from trtkit.backends.trt.pixel_blocks import PixelBlocks
from trtkit.data import resize_to_input, to_input
from trtkit.errors import ModelError
from trtkit.models.model import END2END_ROWS, NMS_ROWS, RAW_MAPS, RAW_ONE_TO_ONE, ModelInfo, OutputFormat
from trtkit.tasks import PostprocessSettings, base, get_task
from trtkit.tasks.detect import decode_dense

BATCH, SIDE = 4, 32
COPIER = Copier()


@pytest.fixture(autouse=True, scope="module")
def end_threads() -> Iterator[None]:
    yield
    COPIER.free()


class Graph:
    """Enqueues again what was captured."""

    def __init__(self, enqueue: Callable[[], Result]) -> None:
        self.enqueue, self.result, self.replays = enqueue, enqueue(), 0
        self.reset()

    def replay(self) -> None:
        self.replays += 1
        for target, source in zip(tensors(self.result), tensors(self.enqueue()), strict=True):
            target.copy_(source)

    def reset(self) -> None:
        for target in tensors(self.result):
            target.fill_(float("nan"))


Result = torch.Tensor | Mapping[str, torch.Tensor]


def tensors(result: Result) -> list[torch.Tensor]:
    return [result] if isinstance(result, torch.Tensor) else list(result.values())


class Stream:
    """Knows what is done before anything that it is given next."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def wait_stream(self, other: Stream) -> None:
        self.done += other.done

    def wait_event(self, event: Event) -> None:
        self.done += event.done

    def synchronize(self) -> None:
        pass


class Event:
    """What a stream has been given is done when it has happened."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.recorded = False

    def record(self, stream: Stream) -> None:
        self.recorded, self.done = True, list(stream.done)

    def synchronize(self) -> None:
        assert self.recorded


class Execution:
    """Runs a graph where an engine would: at once, into memory that the next run overwrites."""

    device = torch.device("cpu")
    blocks: PixelBlocks | None = None
    torch = SimpleNamespace(cuda=SimpleNamespace(Event=Event))

    def __init__(self) -> None:
        self.stream, self.upload_stream, self.objects_stream = Stream(), Stream(), Stream()
        self.current, self.is_held = [self.stream], False
        graph = tiny_graphs.detector(batch=BATCH, size=(SIDE, SIDE), seed=3)
        self.session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
        self.memory = torch.full((BATCH, 3, SIDE, SIDE), float("nan"))
        self.found = torch.empty(BATCH, tiny_graphs.ROWS, (SIDE // 2) ** 2)
        self.runs: list[tuple[int, ...]] = []
        self.graphs: list[Graph] = []

    @contextlib.contextmanager
    def use_stream(self, stream: Stream | None = None) -> Iterator[None]:
        self.current.append(stream or self.stream)
        yield
        self.current.pop()

    def hold_outputs(self) -> None:
        self.is_held = True

    def input(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        return self.memory[: shape[0]]

    def run(self, shapes: dict[str, tuple[int, ...]]) -> None:
        if self.is_held:
            self.stream.wait_stream(self.objects_stream)
        self.runs.append(shapes["images"])
        (found,) = self.session.run(None, {"images": self.memory.numpy()})
        self.found.copy_(torch.from_numpy(found))

    def capture(self, enqueue: Callable[[], Result]) -> tuple[Graph, Result]:
        self.graphs.append(Graph(enqueue))
        return self.graphs[-1], self.graphs[-1].result

    def outputs(self) -> dict[str, torch.Tensor]:
        return {"output0": self.found}


class RowsExecution(Execution):
    """Gives final boxes, as a graph with NMS or a one-to-one head."""

    def outputs(self) -> dict[str, torch.Tensor]:
        scores, classes = self.found[:, 4:].max(1)
        rows = torch.cat((self.found[:, :4], scores[:, None], classes[:, None].float()), 1).transpose(1, 2)
        # Unused rows are zero.
        return {"output0": torch.where(scores[:, :, None] > 0.6, rows, 0)[:, ::5]}


class MapsExecution(Execution):
    """Gives the maps of a head."""

    def outputs(self) -> dict[str, torch.Tensor]:
        boxes, scores = self.found[:, :4] / SIDE, self.found[:, 4:].logit()
        return {name: one.unflatten(2, (SIDE // 2, -1)) for name, one in (("boxes_s2", boxes), ("scores_s2", scores))}


class ExtraExecution(Execution):
    """Gives dense boxes with further values, and a map that belongs to all objects."""

    def outputs(self) -> dict[str, torch.Tensor]:
        values = self.found[:, :1] / SIDE
        extra = torch.cat([values * (place + 1) / 8 for place in range(self.extra)], 1)
        maps = torch.stack([self.memory.mean(1), self.memory.amax(1)], 1)
        return {"output0": torch.cat((self.found, extra), 1), **({"output1": maps} if self.extra == 2 else {})}


class MaskExecution(ExtraExecution):
    extra = 2


class PoseExecution(ExtraExecution):
    extra = 6


class OrientedExecution(ExtraExecution):
    extra = 1


def make_info(**changes: object) -> ModelInfo:
    return dataclasses.replace(tiny_graphs.info((SIDE, SIDE)), **changes)


def make_predictor(execution: Execution, **changes: object) -> BatchPredictor:
    return BatchPredictor(
        execution,  # type: ignore[arg-type]
        make_info(**changes),
        input_name="images",
        lock=threading.RLock(),
        copier=COPIER,
        shapes=lambda count: ((count, 3, SIDE, SIDE), (BATCH, 3, SIDE, SIDE)),
    )


def predict_by_numpy(
    images: list[np.ndarray],
    thresholds: PostprocessSettings,
    kind: type[Execution] = Execution,
    **changes: object,
) -> list[object]:
    execution, info, found = kind(), make_info(**changes), []
    for image in images:
        resized, transform = resize_to_input(image, (SIDE, SIDE), info.preprocess)
        execution.memory[:1] = torch.from_numpy(to_input([resized], info.preprocess))
        execution.memory[1:] = 0
        execution.run({"images": (1,)})
        outputs = {name: value[:1].numpy() for name, value in execution.outputs().items()}
        found += get_task(info.task).postprocess(outputs, info, [transform], thresholds)
    return found


def split(images: list[np.ndarray], sizes: tuple[int, ...]) -> list[list[np.ndarray]]:
    ends = np.cumsum(sizes)
    return [images[end - size : end] for size, end in zip(sizes, ends, strict=True)]


IMAGES = tiny_graphs.images(11, ((SIDE, SIDE), (SIDE, 20), (12, 50)))
SIZES = (4, 1, 4, 2)


@pytest.mark.parametrize("conf", [0.3, 0.65])
@pytest.mark.parametrize("room", [2, 512])
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (Execution, {}),
        (MapsExecution, {"output_format": RAW_MAPS}),
        (MapsExecution, {"output_format": RAW_ONE_TO_ONE}),
        (RowsExecution, {"output_format": END2END_ROWS}),
        (RowsExecution, {"output_format": NMS_ROWS}),
        (MaskExecution, {"task": "segment"}),
        (PoseExecution, {"task": "pose", "kpt_shape": (2, 3)}),
        (OrientedExecution, {"task": "obb"}),
    ],
)
def test_predictions_are_those_of_each_image(
    kind: type[Execution], changes: dict[str, object], conf: float, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_objects, "FIXED_CANDIDATES", room)
    thresholds = PostprocessSettings(conf=conf, iou=0.5, max_det=20)
    execution = kind()
    predictor = make_predictor(execution, **changes)
    expected = predict_by_numpy(IMAGES, thresholds, kind, **changes)
    assert all(map(len, expected))
    for _ in range(2):
        found = list(predictor.predict(split(IMAGES, SIZES), thresholds))
        assert len(found) == len(expected)
        for one, two in zip(found, expected, strict=True):
            assert type(one) is type(two)
            assert one.shape == two.shape
            np.testing.assert_allclose(one.boxes, two.boxes, atol=1e-3)
            np.testing.assert_allclose(one.scores, two.scores, atol=1e-5)
            assert np.array_equal(one.classes, two.classes)
            for name in ("keypoints", "xywhr"):
                if hasattr(two, name):
                    np.testing.assert_allclose(getattr(one, name), getattr(two, name), atol=1e-3)
            if hasattr(two, "masks"):
                np.testing.assert_allclose(one.masks.coefficients, two.masks.coefficients, atol=1e-4)
                np.testing.assert_allclose(one.masks.prototypes, two.masks.prototypes, atol=1e-5)
    # Without room the first batch runs again; one more is under way by then. Rows have no candidates.
    repeats = 2 if room == 2 and kind is not RowsExecution else 0
    assert len(execution.runs) == 2 * (len(SIZES) + repeats)


def test_the_next_batch_is_enqueued_before_the_last_is_read() -> None:
    execution, order = Execution(), []
    predictor = make_predictor(execution)

    def read():
        for batch in split(IMAGES, SIZES):
            order.append("read")
            yield batch

    thresholds = PostprocessSettings(conf=0.65, iou=0.5, max_det=20)
    order.extend("predicted" for _ in predictor.predict(read(), thresholds))
    # A third one is copied meanwhile.
    assert order == [*["read"] * 3, *["predicted"] * 4, "read", *["predicted"] * 7]
    # Two batches are under way at most and a third is copied: their memory serves all others.
    assert len(predictor._free) == 3
    predictor.free()
    assert not predictor._free


def test_work_around_the_engine_is_replayed() -> None:
    execution, thresholds = Execution(), PostprocessSettings(conf=0.65, iou=0.5, max_det=20)
    predictor = make_predictor(execution)
    images = [*IMAGES, *IMAGES[:5]]
    expected = predict_by_numpy(images, thresholds)

    def predict(sizes: tuple[int, ...]) -> None:
        found = list(predictor.predict(split(images, sizes), thresholds))
        for one, two in zip(found, expected, strict=True):
            np.testing.assert_allclose(one.boxes, two.boxes, atol=1e-3)

    predict((4, 4, 4, 4))
    # Preprocessing and postprocessing, whatever the images' sizes.
    assert [graph.replays for graph in execution.graphs] == [2, 2]
    predict((4, 4, 4, 4))
    assert [graph.replays for graph in execution.graphs] == [6, 6]
    # Other batches and other thresholds need other graphs.
    predict((2, 2, 4, 4, 4))
    assert [graph.replays for graph in execution.graphs] == [6, 6, 1, 1]
    list(predictor.predict([images[:4]], PostprocessSettings(conf=0.3, iou=0.5, max_det=20)))
    assert not predictor._postprocess.is_captured
    assert [graph.replays for graph in execution.graphs] == [6, 6, 2, 1]
    predictor.free()
    predict((4, 4, 4, 4))


def test_batches_share_memory_and_wait_for_no_more_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    execution, numbers, log = Execution(), dict.fromkeys(("upload", "preprocess", "run", "objects"), 0), []

    def follow(owner: object, name: str, step: str) -> None:
        own = getattr(owner, name)

        def call(*values: object, **named: object) -> object:
            result = own(*values, **named)
            stream = execution.current[-1]
            log.append((step, numbers[step], set(stream.done)))
            stream.done.append(f"{step} {numbers[step]}")
            numbers[step] += 1
            return result

        monkeypatch.setattr(owner, name, call)

    follow(DeviceImages, "upload", "upload")
    follow(DeviceImages, "preprocess_into", "preprocess")
    follow(execution, "run", "run")
    follow(gpu_postprocess, "enqueue_postprocess", "objects")
    monkeypatch.setattr(execution, "capture", refuse_capture)
    thresholds = PostprocessSettings(conf=0.65, iou=0.5, max_det=20)
    assert len(list(make_predictor(execution).predict(split(IMAGES, SIZES), thresholds))) == len(IMAGES)
    assert numbers == dict.fromkeys(numbers, len(SIZES))
    for step, number, done in log:
        before = number - 1
        # What reads or writes the same memory is done.
        needed = {
            "upload": {f"preprocess {before}"},
            "preprocess": {f"upload {number}", f"run {before}"},
            "run": {f"preprocess {number}", f"objects {before}"},
            "objects": {f"run {number}"},
        }
        assert {one for one in needed[step] if not one.endswith("-1")} <= done
        # Transfers go on beside the engine, preprocessing beside NMS.
        beside = {"upload": f"run {before}", "preprocess": f"objects {before}"}
        assert beside.get(step) not in done


def refuse_capture(enqueue: Callable[[], Result]) -> tuple[Graph, Result]:
    raise RuntimeError("operation not permitted when stream is capturing")


def test_work_that_no_graph_holds_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    execution, thresholds = Execution(), PostprocessSettings(conf=0.65, iou=0.5, max_det=20)
    calls = []

    def refuse(enqueue: Callable[[], Result]) -> tuple[Graph, Result]:
        calls.append(1)
        return refuse_capture(enqueue)

    monkeypatch.setattr(execution, "capture", refuse)
    predictor = make_predictor(execution)
    expected = predict_by_numpy(IMAGES[:4], thresholds)
    for _ in range(5):
        found = list(predictor.predict([IMAGES[:4]], thresholds))
        assert [len(one) for one in found] == [len(one) for one in expected]
    assert len(calls) == 2
    assert (
        predictor._preprocess.error
        == predictor._postprocess.error
        == "operation not permitted when stream is capturing"
    )


def test_a_batch_that_is_never_read_leaves_its_memory_alone() -> None:
    predictor = make_predictor(Execution())
    thresholds = PostprocessSettings(conf=0.65, iou=0.5, max_det=20)
    first, second = split(IMAGES, SIZES)[:2]
    interrupted = predictor.predict(iter([first, second]), thresholds)
    next(interrupted)
    interrupted.close()
    expected = predict_by_numpy(IMAGES, thresholds)
    assert [len(one) for one in predictor.predict(split(IMAGES, SIZES), thresholds)] == [len(one) for one in expected]


def test_other_formats_are_decoded_by_the_host_while_the_next_batch_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(base._DECODERS, "users_own", decode_dense)
    execution, thresholds = Execution(), PostprocessSettings(conf=0.65, iou=0.5, max_det=20)
    predictor = make_predictor(execution, output_format=OutputFormat(name="users_own"))
    expected = predict_by_numpy(IMAGES, thresholds)
    runs = []
    for one, two in zip(predictor.predict(split(IMAGES, SIZES), thresholds), expected, strict=True):
        np.testing.assert_allclose(one.boxes, two.boxes, atol=1e-3)
        runs.append(len(execution.runs))
    assert runs == [2] * 4 + [3] + [4] * 6
    # Nothing is computed on the GPU, so there is no graph of it.
    assert not predictor._postprocess.is_captured


@pytest.mark.parametrize(
    "changes", [{"names": {0: "one"}}, {"task": "obb", "names": {number: str(number) for number in range(9)}}]
)
def test_an_output_of_other_classes_is_refused(changes: dict[str, object]) -> None:
    predictor = make_predictor(Execution(), **changes)
    with raises(ModelError, "task-output-shape"):
        list(predictor.predict([IMAGES[:1]], PostprocessSettings()))


def test_threads_that_copy_end_when_they_are_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "LEAST_SHARED_COPY", 0)
    monkeypatch.setattr(copying, "available_cores", lambda: 8)
    copier, before = Copier(), set(threading.enumerate())
    source = np.arange(12)
    targets = [np.zeros(12, int) for _ in range(8)]
    copying_threads = copier.start([(target, source) for target in targets])
    assert len(copying_threads) == copying.COPY_THREADS
    for future in copying_threads:
        future.result()
    assert set(threading.enumerate()) - before
    copier.free()
    assert not set(threading.enumerate()) - before
    assert all(np.array_equal(target, source) for target in targets)
    # Another thread that did not know still copies.
    copier.copy([(target, source + 1) for target in targets])
    assert all(target[0] == 1 for target in targets)
    copier.free()
