"""Engines that read pixels in blocks, on a fake TensorRT that takes its memory apart as the real one does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_graphs
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from raising import raises
from task_models import untrained
from test_backends_gpu_preprocess import CPU, copy, descriptions, draw_images

import trtkit as tk
from trtkit import backends
from trtkit.backends.devices import Gpu
from trtkit.backends.trt.gpu_preprocess import DeviceImages, HostImages
from trtkit.backends.trt.network import fit_graph
from trtkit.backends.trt.pixel_blocks import PixelBlocks
from trtkit.data import resize_to_input, to_input
from trtkit.errors import EngineError, RecipeError
from trtkit.graph.fp16 import has_fp16
from trtkit.graph.space_to_depth import read_pixel_input
from trtkit.models.model import PixelInput, Preprocess

SIDES = (2, 4)


def read_memory(memory: torch.Tensor, blocks: PixelBlocks, shape: tuple[int, ...]) -> np.ndarray:
    """The images in a memory of kCHW32 or kHWC8: NCHW."""
    side = blocks.pixels.side
    count, channels, rows, columns = blocks.engine_shape(shape)
    together = channels if blocks.pixels.scale is None else 32
    groups = memory.numpy().reshape(count, -1, rows, columns, together).transpose(0, 1, 4, 2, 3)
    lanes = groups.reshape(count, -1, rows, columns)[:, :channels].reshape(count, side, side, 4, rows, columns)
    return lanes.transpose(0, 3, 4, 1, 5, 2).reshape(count, 4, rows * side, columns * side)[:, : blocks.channels]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("scale", [0.5, None])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_each_pixel_has_its_place(side: int, channels: int, scale: float | None) -> None:
    blocks = PixelBlocks(pixels=PixelInput(side=side, scale=scale), channels=channels)
    shape = (2, channels, 8, 12)
    assert blocks.image_shape(blocks.engine_shape(shape)) == shape
    # Blocks of 2 x 2 fill half of what kCHW32 stores together.
    assert blocks.count(shape) == 2 * 8 * 12 * (8 if side == 2 and scale else 4)
    memory = torch.zeros(blocks.count(shape) + 5, dtype=torch.int8 if scale else torch.float16)
    values = torch.from_numpy(np.random.default_rng(0).integers(-128, 128, shape).astype(np.int8))
    view = blocks.view(memory, shape)
    view.copy_(values.view(view.shape))
    assert not memory[-5:].any()
    assert np.array_equal(read_memory(memory[:-5], blocks, shape), values.numpy())


def test_values_are_rounded_half_to_even_and_clipped() -> None:
    blocks = PixelBlocks(pixels=PixelInput(side=2, scale=0.5), channels=1)
    values = torch.tensor([0.25, 0.75, -0.25, 63.5, 64.0, 1e9, -64.0, -1e9], dtype=torch.float64)
    assert blocks.convert(values).tolist() == [0, 2, 0, 127, 127, 127, -128, -128]
    half = PixelBlocks(pixels=PixelInput(side=2, scale=None), channels=1)
    assert half.convert(values).tolist() == [0.25, 0.75, -0.25, 63.5, 64.0, float("inf"), -64.0, float("-inf")]


@settings(max_examples=60, deadline=None)
@given(
    descriptions((1, 2, 3, 4)),
    st.sampled_from(SIDES),
    st.sampled_from([1 / 127, 0.02, 1.5, None]) | st.floats(2**-10, 3, width=32),
)
def test_preprocessing_gives_the_converted_input(preprocess: Preprocess, side: int, scale: float | None) -> None:
    channels = preprocess.channels
    blocks = PixelBlocks(pixels=PixelInput(side=side, scale=scale), channels=channels)
    images = draw_images([(40, 64), (64, 64), (30, 90)], channels)
    arrays, _ = zip(*(resize_to_input(image, (64, 96), preprocess) for image in images), strict=True)
    shape = (3, channels, 64, 96)
    table = blocks.tabulate(preprocess)
    memory = torch.zeros(blocks.count(shape), dtype=table.dtype)
    host, device = HostImages(pinned=False), DeviceImages(CPU)
    copy(host, images, (64, 96), preprocess)
    device.upload(host)
    target = blocks.view(memory, shape)
    assert device.look_up_into(target, table, preprocess) is target
    expected = to_input(list(arrays), preprocess)
    if scale is None:
        expected = expected.astype(np.float16)
    else:
        expected = np.clip(np.rint(expected / np.float32(scale)), -128, 127)
    assert np.array_equal(read_memory(memory, blocks, shape), expected)


@pytest.mark.parametrize(
    ("precision", "scale", "form"), [("int8", float(np.float32(1 / 127)), "CHW32"), ("fp16", None, "HWC8")]
)
@pytest.mark.parametrize("version", ["8.6.0", "10.13.0.35", "11.4.0.106"])
def test_the_graph_that_each_tensorrt_builds(
    tensorrt: Any, version: str, precision: str, scale: float | None, form: str
) -> None:
    trt = tensorrt(version)
    fitted = fit_graph(
        tiny_graphs.detector(precision, batch=2), backends.probe("tensorrt"), precision=precision, space_to_depth=True
    )
    assert read_pixel_input(fitted) == PixelInput(side=2, scale=scale)
    assert has_fp16(fitted) == (version[:2] == "11" or precision == "fp16")
    built = backends.build(fitted, backends.BuildSettings(precision=precision, batch=2, imgsz=(32, 32)))
    network, _ = trt.fake.builds[-1]
    assert network.inputs[0].allowed_formats == 1 << getattr(trt.TensorFormat, form)
    assert built.facts["pixel_input"] == {"side": 2, "scale": scale}


@pytest.mark.parametrize("version", ["8.6.0", "11.4.0.106"])
@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("precision", ["half", "int8"])
def test_an_engine_answers_as_its_graph(
    tensorrt: Any, tmp_path: Path, version: str, decode: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensorrt(version)
    # Of tensors on a GPU.
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)
    images = tiny_graphs.images(5)
    settings: Mapping[str, Any] = {
        precision: True,
        "decode": decode,
        "batch": 2,
        "data": tiny_graphs.write_images(tmp_path / "images", len(images)),
    }
    model = untrained("detect")
    reference = tk.export(model, format="onnx", dynamic=False, output=tmp_path / "a.onnx", **settings)
    engine = tk.export(model, backend="tensorrt", space_to_depth=True, output=tmp_path / "a.engine", **settings)
    assert engine.verification is not None
    assert engine.verification.verdict == "agrees"
    assert engine.passport is not None
    assert engine.passport.pixel_input is not None
    assert engine.passport.pixel_input.side == 4
    assert (engine.passport.pixel_input.scale is None) == (precision == "half")
    assert backends.read_engine(engine.path).passport == engine.passport
    size = engine.info.imgsz
    feed = np.random.default_rng(0).random((2, 3, *size), np.float32)
    with tk.open(engine) as runner, tk.open(reference) as other:
        assert (runner.batch, runner.imgsz, runner.dynamic) == (2, size, False)
        expected = other.infer(feed)
        there = runner.input_tensor(2)
        assert (tuple(there.shape), there.dtype) == ((2, 3, *size), torch.float32)
        there.copy_(torch.from_numpy(feed))
        for ours in (runner.infer(feed), runner.infer(feed.astype(np.float64)), runner.infer_device(there)):
            for name, values in expected.items():
                scale = np.abs(values).max()
                np.testing.assert_allclose(np.asarray(ours[name]), values, atol=0.04 * scale)
        # A smaller batch is padded.
        one = runner.infer(feed[1:])
        assert all(value.shape[0] == 1 for value in one.values())
        assert np.array_equal(next(iter(one.values()))[0], next(iter(runner.infer(feed).values()))[1])
        with raises(EngineError, "run-shape"):
            runner.infer(feed[..., :-32])
        ours, theirs = (each.predict(images, conf=0.3, iou=0.5, max_det=20) for each in (runner, other))
        assert len(runner.layers(runs=1)) > 10
        assert len(runner.measure_gpu_times(feed, 3)) == 3
    assert sum(map(len, theirs)) > 5
    for mine, its in zip(ours, theirs, strict=True):
        assert len(mine) == len(its)
        np.testing.assert_allclose(mine.scores, its.scores, atol=0.02)
    with raises(RecipeError, "deploy-pixel-input" if decode else "deploy-raw-maps"):
        tk.deploy(engine, "python", output=tmp_path / "bundle")


def test_weights_of_the_same_graph_are_put_in(tensorrt: Any, tmp_path: Path) -> None:
    tensorrt("8.6.0")
    onnx.save(tiny_graphs.detector("int8", batch=2), tmp_path / "tiny.onnx")
    onnx.save(tiny_graphs.detector("int8", batch=2, seed=1), tmp_path / "other.onnx")
    engine = tk.export(
        tmp_path / "tiny.onnx", backend="tensorrt", int8=True, batch=2, space_to_depth=True, weights="refittable",
        output=tmp_path / "tiny.engine",
    )  # fmt: skip
    backends.refit_engine(engine.path, tmp_path / "other.onnx", tmp_path / "other.engine")
    feed = np.random.default_rng(0).random((2, 3, 32, 32), np.float32)
    with tk.open(tmp_path / "other.engine") as runner, tk.open(tmp_path / "other.onnx") as other:
        expected = other.infer(feed)["output0"]
        np.testing.assert_allclose(runner.infer(feed)["output0"], expected, rtol=1e-3, atol=1e-3)
    # Which layers differ is found by a build of the graph itself.
    result = tk.verify(engine, eval_images=2, onnx=tmp_path / "tiny.onnx", layers=True)
    assert result.verdict == "agrees"


EXPORT = {"backend": "tensorrt", "int8": True, "space_to_depth": True}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"format": "onnx"}, "recipe-needs-engine"),
        ({"int8": False}, "recipe-space-to-depth-precision"),
        ({"implicit": True}, "recipe-space-to-depth-precision"),
        ({"dynamic": True}, "recipe-space-to-depth-needs-fixed-shapes"),
        ({"device": "dla:0"}, "space-to-depth-backend"),
        ({"keep": ("stem",), "data": "absent/*.png"}, "space-to-depth-not-applicable"),
    ],
)
def test_exports_that_are_refused_before_any_work(
    changes: Mapping[str, Any], code: str, tensorrt: Callable[..., Any], tmp_path: Path
) -> None:
    tensorrt("10.13.0.35", Gpu(index=0, name="Orin", sm="sm87", memory=2**36), dla_cores=2)
    source, output = tmp_path / "tiny.onnx", tmp_path / "tiny.engine"
    onnx.save(tiny_graphs.detector(), source)
    with raises(RecipeError, code):
        tk.export(source, output=output, **{**EXPORT, **changes})
    assert not output.exists()


def test_fixed_shapes(tensorrt: Any, tmp_path: Path) -> None:
    tensorrt("8.6.0")
    onnx.save(tiny_graphs.detector(dynamic=True), tmp_path / "tiny.onnx")
    with raises(RecipeError, "recipe-space-to-depth-needs-fixed-shapes"):
        tk.export(tmp_path / "tiny.onnx", output=tmp_path / "tiny.engine", **EXPORT)
    assert tk.Recipe(model="yolo11n.pt", int8=True).is_dynamic
    assert not tk.Recipe(model="yolo11n.pt", int8=True, space_to_depth=True).is_dynamic
