"""The levers of `benchmarks/levers.py`: their graph passes change no result, and runs go on where they stopped."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from fake_checkpoints import TINY
from networks import load_network
from task_models import untrained
from two_heads import make_model

from trtkit.backends.trt import builder
from trtkit.graph.analysis import GraphIndex
from trtkit.graph.fp16 import convert_to_fp16, has_fp16
from trtkit.graph.qdq import expand_int8_weights, insert_qdq
from trtkit.graph.raw_maps import cut_before_decoding, find_raw_maps
from trtkit.graph.torch_export import trace

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
FORMATS = SimpleNamespace(LINEAR=0, CHW2=1, HWC8=2, CHW4=3, CHW16=4)
PIXELS = np.random.default_rng(0).integers(0, 256, (1, 3, 64, 64), np.uint8)


@pytest.fixture
def levers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import levers

    return levers


def run(proto: onnx.ModelProto, feed: np.ndarray) -> dict[str, np.ndarray]:
    import onnxruntime as ort

    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: feed}), strict=True))


def expect_equal(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], **tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name].astype(np.float32), value.astype(np.float32), **tolerance)


def count(proto: onnx.ModelProto, kind: str) -> int:
    return sum(node.op_type == kind for node in proto.graph.node)


def test_joined_branches_compute_the_same(levers: Any) -> None:
    graph = trace(untrained("segment"))
    joined, parts = levers.join_branches(graph)
    onnx.checker.check_model(joined, full_check=True)
    # Boxes and mask coefficients of each of the three levels, at the first with the prototypes; classes are depthwise.
    assert [len(names) for names in parts.values()] == [3, 2, 2]
    assert count(graph, "Conv") - count(joined, "Conv") == 4
    feed = PIXELS.astype(np.float32) / 255
    expect_equal(run(joined, feed), run(graph, feed), rtol=1e-5, atol=1e-4)
    ranges = dict.fromkeys(GraphIndex(joined).producer, (-4.0, 4.0)) | {"images": (0.0, 1.0)}
    assert set(parts) <= set(GraphIndex(joined).producer)
    assert insert_qdq(joined, ranges, ()).graph.node


def test_pixels_repeated_by_a_convolution_are_the_same(levers: Any) -> None:
    graph = trace(load_network("yolo11n", 64), imgsz=(64, 64))
    ranges = dict.fromkeys(GraphIndex(graph).producer, (-6.0, 6.0)) | {"images": (0.0, 1.0)}
    quantized = insert_qdq(graph, ranges, ())
    changed = levers.upsample_by_convolution(quantized)
    onnx.checker.check_model(changed, full_check=True)
    counts = [[count(one, kind) for kind in ("Resize", "ConvTranspose")] for one in (quantized, changed)]
    assert counts == [[2, 0], [0, 2]]
    feed = np.random.default_rng(0).random((1, 3, 64, 64), np.float32)
    expect_equal(run(expand_int8_weights(changed), feed), run(quantized, feed), rtol=1e-4, atol=1e-3)
    # A scale of its own would round again.
    node = next(one for one in quantized.graph.node if one.op_type == "Resize")
    quantize = GraphIndex(quantized).consumers[node.output[0]][0]
    quantized.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0.3, np.float32), "other"))
    quantize.input[1] = "other"
    assert count(levers.upsample_by_convolution(quantized), "Resize") == 1


@pytest.mark.parametrize(("name", "sums"), [("yolo11n", 3), ("yolo11m", 8), ("yolov8n", 0)])
def test_expanded_sums_compute_the_same(levers: Any, name: str, sums: int) -> None:
    graph = trace(load_network(name, 64), imgsz=(64, 64))
    changed = levers.REWRITINGS["expanded"][1](onnx.ModelProto.FromString(graph.SerializeToString()))
    onnx.checker.check_model(changed, full_check=True)
    assert count(graph, "Add") - count(changed, "Add") == sums
    feed = np.random.default_rng(0).random((1, 3, 64, 64), np.float32)
    expect_equal(run(changed, feed), run(graph, feed), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("nhwc", [False, True])
def test_uint8_pixels_give_what_scaled_ones_give(levers: Any, nhwc: bool, half: bool) -> None:
    graph = trace(make_model(TINY))
    graph = convert_to_fp16(graph) if half else graph
    expected = run(graph, PIXELS.astype(np.float32) / 255)
    changed = levers.INPUTS["uint8-nhwc" if nhwc else "uint8-nchw"](
        onnx.ModelProto.FromString(graph.SerializeToString())
    )
    onnx.checker.check_model(changed, full_check=True)
    assert changed.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    tolerance = 2e-2 if half else 1e-4
    feed = np.ascontiguousarray(PIXELS.transpose(0, 2, 3, 1)) if nhwc else PIXELS
    expect_equal(run(changed, feed), expected, rtol=tolerance, atol=tolerance)


def test_an_int8_input_is_pixels_less_128_with_their_padding(levers: Any) -> None:
    graph = trace(make_model(TINY))
    index = GraphIndex(graph)
    ranges = dict.fromkeys(index.producer, (-6.0, 6.0)) | {"images": (0.0, 1.0)}
    quantized = insert_qdq(graph, ranges, ())
    changed = levers.INPUTS["int8"](onnx.ModelProto.FromString(quantized.SerializeToString()))
    onnx.checker.check_model(changed, full_check=True)
    feed = np.pad(PIXELS.astype(np.int16) - 128, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-128).astype(np.int8)
    assert [side.dim_value for side in changed.graph.input[0].type.tensor_type.shape.dim] == list(feed.shape)
    # The input's own step is 1/127: with the exact pixels, the graph before has a rounding that this one has not.
    float_input = expand_int8_weights(quantized)
    conv = next(node for node in float_input.graph.node if node.op_type == "Conv")
    conv.input[0] = float_input.graph.input[0].name
    expect_equal(run(changed, feed), run(float_input, PIXELS.astype(np.float32) / 255), rtol=1e-4, atol=1e-3)


def test_a_quantized_input_computes_what_the_graph_did(levers: Any) -> None:
    graph = trace(untrained("detect"))
    # Other tensors' ranges are no matter here.
    ranges = dict.fromkeys(GraphIndex(graph).producer, (-6.0, 6.0)) | {"images": (0.0, 1.0)}
    quantized = insert_qdq(graph, ranges, ())
    feed = PIXELS.astype(np.float32) / 255
    expected = run(quantized, feed)
    changed = levers.INPUTS["quantized"](quantized)
    onnx.checker.check_model(changed, full_check=True)
    expect_equal(run(changed, np.rint(feed * 127).astype(np.int8)), expected, rtol=1e-6, atol=1e-6)


def test_runs_go_on_with_what_is_missing(levers: Any, tmp_path: Path) -> None:
    (tmp_path / "graphs").mkdir()
    for stem in ("yolo11n-int8-b8-today", "yolo11n-int8-b8-raw", "yolo-x-fp16-b1-plain", "yolo-x-fp16-b1-end2end-raw"):
        (tmp_path / "graphs" / f"{stem}.onnx").touch()
    jobs = list(levers.list_jobs(tmp_path, 2))
    assert jobs[0].name == "yolo-x-fp16-b1-plain-0"
    assert (jobs[0].model, jobs[0].batch, jobs[0].precision) == ("yolo-x", 1, "fp16")
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names)
    # Every variant once before any is built again.
    assert [job.number for job in jobs] == sorted(job.number for job in jobs)
    assert {"yolo11n-int8-b8-int8-input-0", "yolo11n-int8-b8-raw-any-out-1", "yolo-x-fp16-b1-end2end-raw-0"} <= set(
        names
    )
    assert not any("plain" in name and "int8" in name for name in names)
    (tmp_path / f"{names[0]}.json").touch()
    assert [job.name for job in levers.list_jobs(tmp_path, 2)] == names[1:]
    some = levers.list_jobs(tmp_path, 2, ["*-b8-today-1", "*-b8-raw-?"])
    assert [job.name for job in some] == [
        "yolo11n-int8-b8-raw-0", "yolo11n-int8-b8-today-1", "yolo11n-int8-b8-raw-1"
    ]  # fmt: skip
    # Another build of a model goes to the next GPU, and its variants share their timings there.
    assert [levers.choose_gpu(job, some, 2) for job in some] == [0, 1, 1]
    assert [job.series for job in some] == ["yolo11n-int8-b8-0", "yolo11n-int8-b8-1", "yolo11n-int8-b8-1"]
    (own,) = (job for job in levers.list_jobs(tmp_path, 1) if job.variant == "streams-level-3")
    assert own.series == "yolo11n-int8-b8-0-streams-level-3"


def test_the_table_compares_with_today_and_with_plain_fp16(levers: Any) -> None:
    row = {"model": "m", "batch": 8, "layers": 100, "reformats": 20}
    memory = {"memory": 3 * 2**20}
    rows = [
        row | {"precision": "fp16", "variant": "plain", "p50_ms": 2.0},
        row | {"precision": "int8", "variant": "today", "p50_ms": 1.0, "predict_ms": 5.0, "one_call_ms": 2.0},
        *(row | memory | {"precision": "int8", "variant": "raw", "p50_ms": time} for time in (0.7, 0.8, 0.9)),
    ]
    cells = {(line[2], line[3]): line[4:] for line in levers.levers_record.summarize(rows, list(levers.VARIANTS))}
    assert cells["int8", "raw"] == ["3", "0.800", "0.700 to 0.900", "0.800", "0.400", "", "", "3", "100", "20"]
    assert cells["int8", "today"][3:7] == ["1.000", "0.500", "5.00", "2.00"]
    assert cells["fp16", "plain"][3:5] == ["", "1.000"]
    assert len(levers.levers_record.HEADS) == len(levers.levers_record.summarize(rows, list(levers.VARIANTS))[0])


def test_the_table_of_engines_timed_by_turns(levers: Any) -> None:
    engines = [{"label": name, "p50_ms": ms, "flags": "throttled"} for name, ms in (("fp16", 1.0), ("int8", 0.8))]
    ratio = {"ratio": 0.8, "low": 0.79, "high": 0.81}
    row = {"gpu": {"gpus": [{"uuid": "GPU-1"}]}, "engines": engines, "ratios": [ratio], "loaded": True}
    head, _, line = levers.levers_record.summarize_ratios([row])
    assert [cell.strip() for cell in head.split("|")][3:5] == ["fp16, p50 ms", "int8, p50 ms"]
    assert [cell.strip() for cell in line.split("|")][1:-1] == [
        "GPU-1", "other work", "1.000", "0.800", "0.800 [0.790, 0.810]", "throttled"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("variant", "precision", "formats"),
    [
        ("today", "int8", 0), ("raw-any-out", "int8", 0), ("int8-input", "int8", 0), ("half-in", "int8", 0),
        ("raw-vector-in-streams", "int8", 1 << 3), ("blocks-raw-streams", "int8", 1 << 5),
        ("blocks-raw-linear-streams", "int8", 1 << 0), ("blocks-raw-folded-streams", "int8", 1 << 5),
        ("blocks-raw-streams", "fp16", 1 << 2), ("flags", "fp16", 0), ("blocks-raw-flags-streams", "fp16", 1 << 2),
    ],
)  # fmt: skip
def test_one_build_of_a_variant(
    levers: Any,
    tensorrt: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variant: str,
    precision: str,
    formats: int,
) -> None:
    """On a fake TensorRT; the process that times the engine is left out."""
    trt = tensorrt("8.6.0")
    # `build` changes the builder of its own process: put back afterwards.
    monkeypatch.setattr(builder, "compute_profile_shapes", builder.compute_profile_shapes)
    monkeypatch.setattr(builder._EngineBuild, "_configure", builder._EngineBuild._configure)
    monkeypatch.setenv("TRTKIT_CACHE", str(tmp_path / "cache"))
    model = make_model(TINY)
    maps = levers.VARIANTS[variant].base == "raw"
    graph = trace(model)
    ranges = dict.fromkeys(GraphIndex(graph).producer, (-6.0, 6.0)) | {"images": (0.0, 1.0)}
    converted = insert_qdq(graph, ranges, ()) if precision == "int8" else graph
    if maps:
        converted = cut_before_decoding(converted, find_raw_maps(graph, model.info), model.info)
    if precision == "fp16":
        converted = convert_to_fp16(converted)
    (tmp_path / "graphs").mkdir()
    base = levers.VARIANTS[variant].base
    onnx.save(converted, tmp_path / "graphs" / f"tiny-{precision}-b1-{base}.onnx")
    (job,) = (one for one in levers.list_jobs(tmp_path, 1) if one.variant == variant)
    commands: list[list[str]] = []

    def time_engine(words: list[str], *, check: bool) -> None:
        commands.append(words)
        Path(words[3]).with_suffix(".time").write_text(json.dumps({"p50_ms": 0.5}))

    monkeypatch.setattr(levers.subprocess, "run", time_engine)
    levers.build(
        SimpleNamespace(
            out=str(tmp_path), graph=str(job.graph), name=job.name, variant=variant, precision=precision, batch=1,
            series=job.series, level=2, images=None, keep_engines=variant == "today", lanes=1,
        )
    )  # fmt: skip
    row = json.loads((tmp_path / f"{job.name}.json").read_text())
    assert (row["model"], row["variant"], row["p50_ms"], row["level"]) == ("tiny", variant, 0.5, 2)
    assert row["passport"]["gpu"] == "NVIDIA H100 80GB HBM3"
    assert (tmp_path / f"{job.name}.engine").is_file() == (variant == "today")
    assert len(commands) == 1
    network, _ = trt.fake.builds[-1]
    assert network.get_input(0).allowed_formats == formats
    assert has_fp16(network.proto) == (precision == "fp16" and "flags" not in variant)
    if variant == "blocks-raw-flags-streams":
        assert {tensor.dtype for tensor in (network.get_input(0), *network.outputs.values())} == {trt.float16}
    assert (row["passport"]["pixel_input"] is not None) == variant.startswith("blocks")
    assert variant not in {one.variant for one in levers.list_jobs(tmp_path, 1)}
    assert len(levers.levers_record.summarize([row], list(levers.VARIANTS))) == 1


def test_formats_reach_tensorrt(levers: Any) -> None:
    ends = [SimpleNamespace(dtype=None, allowed_formats=0) for _ in range(3)]
    network = SimpleNamespace(num_outputs=2, get_input=lambda _: ends[0], get_output=lambda place: ends[1 + place])
    trt = SimpleNamespace(float16="half", TensorFormat=FORMATS)
    levers.set_formats(trt, network, ("half-in", "any-out"))
    assert (ends[0].dtype, ends[1].dtype) == ("half", None)
    assert [end.allowed_formats for end in ends] == [0, 31, 31]
    levers.set_formats(trt, network, ("vector-in",))
    assert ends[0].allowed_formats == 1 << FORMATS.CHW4


def test_every_variant_has_its_base_and_its_input(levers: Any) -> None:
    for name, variant in levers.VARIANTS.items():
        assert variant.base in levers.BASES
        assert variant.input in levers.INPUTS
        assert set(variant.precisions) <= set(levers.PRECISIONS), name


def test_kernels_are_summed_by_kind(levers: Any) -> None:
    names = {
        "/model.0/conv/Conv_weight_dq/float + /model.0/conv/Conv_weight_QuantizeLinear + /model.0/conv/Conv": 30,
        "/model.1/conv/Conv_weight_dq/float + /model.1/conv/Conv_weight_QuantizeLinear + /model.1/conv/Conv": 10,
        "images_QuantizeLinear": 20, "/model.2/Concat_/model.2/cv1/act/Mul_output_0_dq_clone_1 copy": 15,
        "/model.23/Reshape": 0,
    }  # fmt: skip
    # The profiler waits 5 us after each layer, also after one without a kernel.
    slowest = [(1e-3 * (us + 5), name) for name, us in names.items()]
    row = {"slowest": slowest, "layers": len(names), "p50_ms": 0.075, "profiled_ms": 0.1}
    table = {line[0]: line[1:] for line in levers.levers_record.summarize_kinds(row)}
    assert table == {
        "convolutions in INT8, with their activation": ["2", "40", "53%", "10.0 to 30.0"],
        "quantization of the input": ["1", "20", "27%", "20.0 to 20.0"],
        "copies for concatenations": ["1", "15", "20%", "15.0 to 15.0"],
    }
