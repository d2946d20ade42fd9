"""Preprocessing on the GPU, run by torch on the CPU, against OpenCV and numpy."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_graphs
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from trtkit.backends.trt import copying, gpu_preprocess
from trtkit.backends.trt.gpu_preprocess import GPU_KINDS, DeviceImages, HostImages, locate_images
from trtkit.data import letterbox, resize_to_input, to_input
from trtkit.models.model import Preprocess

CPU = torch.device("cpu")


def copy(host: HostImages, images: list[np.ndarray], size: tuple[int, int], preprocess: Preprocess) -> None:
    copier = copying.Copier()
    copies = host.reserve(images, locate_images(images, size, preprocess))
    host.write_places()
    copier.copy(copies)
    copier.free()


def run(images: list[np.ndarray], target: torch.Tensor, preprocess: Preprocess) -> list[object]:
    host, device = HostImages(pinned=False), DeviceImages(CPU)
    copy(host, images, (target.shape[2], target.shape[3]), preprocess)
    device.upload(host)
    assert device.preprocess_into(target, preprocess) is target
    return list(host.transforms)


def draw_images(shapes: list[tuple[int, int]], channels: int = 3) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (*shape, channels), dtype=np.uint8) for shape in shapes]


LENGTHS = st.one_of(st.integers(1, 90), st.sampled_from([16, 32, 64, 128, 192, 256, 512, 700]))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(LENGTHS, LENGTHS), min_size=1, max_size=4),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.booleans(),
)
def test_resizing_equals_opencv(shapes: list[tuple[int, int]], size: tuple[int, int], stretches: bool) -> None:
    target_size = (size[0] * 32, size[1] * 32)
    preprocess = Preprocess(kind="stretch" if stretches else "letterbox")
    images = draw_images(shapes)
    arrays, transforms = zip(*(resize_to_input(image, target_size, preprocess) for image in images), strict=True)
    target = torch.full((len(images), 3, *target_size), float("nan"))
    assert run(images, target, preprocess) == list(transforms)
    assert np.array_equal(target.numpy(), to_input(list(arrays)))


@st.composite
def descriptions(draw: st.DrawFn, channels: tuple[int, ...] = (1, 2, 3, 4, 10)) -> Preprocess:
    """Any preprocessing that the GPU does."""
    count = draw(st.sampled_from(channels))
    values = st.tuples(*[st.floats(0.125, 2, width=32)] * count)
    return Preprocess(
        kind=draw(st.sampled_from(GPU_KINDS)),
        channels=count,
        color=draw(st.sampled_from(["rgb", "bgr"])),
        scale=draw(st.sampled_from([1 / 255, 1.0, 0.5])),
        mean=draw(st.just(()) | values),
        std=draw(st.just(()) | values),
    )


@settings(max_examples=40, deadline=None)
@given(descriptions())
def test_every_description_equals_the_cpu(preprocess: Preprocess) -> None:
    channels = preprocess.channels
    images = draw_images([(40, 64) if preprocess.kind == "letterbox" else (64, 64), (30, 90)], channels)
    arrays, transforms = zip(*(resize_to_input(image, (64, 64), preprocess) for image in images), strict=True)
    target = torch.full((2, channels, 64, 64), float("nan"))
    assert run(images, target, preprocess) == list(transforms)
    assert np.array_equal(target.numpy(), to_input(list(arrays), preprocess))


def test_half_precision_rounds_once() -> None:
    images = draw_images([(64, 64), (50, 90)])
    target = torch.full((2, 3, 64, 64), float("nan"), dtype=torch.float16)
    run(images, target, Preprocess())
    expected = to_input([letterbox(image, (64, 64))[0] for image in images])
    assert np.array_equal(target.numpy(), expected.astype(np.float16))


class CountLaunches(TorchFunctionMode):
    """Counts what is called of torch."""

    count = 0

    def __torch_function__(self, function, types, arguments=(), settings=None):  # type: ignore[no-untyped-def]
        self.count += 1
        return function(*arguments, **(settings or {}))


def test_operations_depend_neither_on_the_number_of_images_nor_on_their_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    for shapes in ([(64, 64)], [(50, 90), (200, 64), (64, 64), (3, 5)]):
        images = draw_images(shapes)
        target = torch.empty(len(images), 3, 64, 64)
        host, device = HostImages(pinned=False), DeviceImages(CPU)
        copy(host, images, (64, 64), Preprocess())
        device.upload(host)
        with CountLaunches() as mode:
            device.preprocess_into(target, Preprocess())
        counts.append(mode.count)
    assert counts[0] == counts[1] > 10
    # Many pixels take turns, for their memory.
    monkeypatch.setattr(gpu_preprocess, "MAX_RUN_PIXELS", 3 * 64 * 64)
    parts = torch.full_like(target, float("nan"))
    with CountLaunches() as mode:
        device.preprocess_into(parts, Preprocess())
    assert mode.count > 1.5 * counts[0]
    assert torch.equal(parts, target)


def test_what_operations_depend_on() -> None:
    device, host = DeviceImages(CPU), HostImages(pinned=False)

    def upload(images: list[np.ndarray]) -> tuple[int, ...]:
        copy(host, images, (64, 64), Preprocess())
        device.upload(host)
        return device.key

    first = upload(draw_images([(64, 64), (10, 90)]))
    assert upload(draw_images([(20, 30), (70, 50)])) == first
    assert upload(draw_images([(20, 30)])) != first
    large = upload(draw_images([(600, 600), (10, 90)]))
    assert large != first
    assert upload(draw_images([(64, 64), (10, 90)])) == large
    device.free()
    assert upload(draw_images([(64, 64), (10, 90)]))[1] == first[1]


def test_batches_of_the_same_sizes_differ_in_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    images = draw_images([(64, 64), (30, 90)])
    host, device = HostImages(pinned=False), DeviceImages(CPU)
    writes, write_lines = [], gpu_preprocess._write_lines
    monkeypatch.setattr(
        gpu_preprocess, "_write_lines", lambda *arguments: (writes.append(1), write_lines(*arguments))[1]
    )
    large = draw_images([(400, 500)])
    for batch, count in ((images, 1), (images[::-1], 2), ([image[::-1] for image in images[::-1]], 2), (large, 3)):
        copy(host, batch, (64, 64), Preprocess())
        device.upload(host)
        target = device.preprocess_into(torch.empty(len(batch), 3, 64, 64), Preprocess())
        assert np.array_equal(target.numpy(), to_input([letterbox(image, (64, 64))[0] for image in batch]))
        assert len(writes) == count
    # The same sizes with other channels lie elsewhere.
    preprocess = Preprocess(channels=1)
    gray = draw_images([(400, 500)], channels=1)
    copy(host, gray, (64, 64), preprocess)
    device.upload(host)
    target = device.preprocess_into(torch.empty(1, 1, 64, 64), preprocess)
    assert np.array_equal(target.numpy(), to_input([letterbox(gray[0], (64, 64))[0]], preprocess))


def test_more_pixels_than_int32_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    images = draw_images([(40, 64), (30, 90)])
    plain, wide = torch.empty(2, 2, 3, 64, 64)
    run(images, plain, Preprocess())
    monkeypatch.setattr(gpu_preprocess, "MAX_INT32", 1000)
    host = HostImages(pinned=False)
    copy(host, images, (64, 64), Preprocess())
    assert host.dtype == torch.int64
    run(images, wide, Preprocess())
    assert torch.equal(wide, plain)


def test_strided_images_reuse_memory() -> None:
    (large,) = tiny_graphs.images(1, ((40, 60),))
    host, views = HostImages(pinned=False), [large[::2, ::-1], large[:, 5:20]]
    copy(host, [large, large], (64, 64), Preprocess())
    there = host.values.data_ptr()
    copy(host, views, (64, 64), Preprocess())
    assert host.values.data_ptr() == there
    pixels = np.concatenate([view.reshape(-1) for view in views])
    assert np.array_equal(host.values.numpy()[-len(pixels) :], pixels)


@pytest.mark.parametrize("cores", [1, 4, 32])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_copies_by_any_number_of_threads(monkeypatch: pytest.MonkeyPatch, cores: int, count: int) -> None:
    monkeypatch.setattr(copying, "available_cores", lambda: cores)
    monkeypatch.setattr(copying, "LEAST_SHARED_COPY", 1000)
    images = tiny_graphs.images(count, ((40, 60), (7, 5), (64, 64)))
    host = HostImages(pinned=False)
    copy(host, images, (64, 64), Preprocess())
    pixels = np.concatenate([image.reshape(-1) for image in images])
    assert np.array_equal(host.values.numpy()[-len(pixels) :], pixels)
