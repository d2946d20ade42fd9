"""Tracing from several threads at once, as a widget and a notebook cell do."""

import resource
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor

import onnx
import pytest
import torch
import trace_store
from deterministic_weights import deterministic_weights
from fake_checkpoints import TINY
from onnx import numpy_helper
from raising import raises

import trtkit
from trtkit.errors import ModelError, OutputError
from trtkit.graph import torch_export
from trtkit.graph.torch_export import trace
from trtkit.models import Model, load
from trtkit.models.checkpoint import Checkpoint
from trtkit.models.torch_model import from_checkpoint
from trtkit.models.yolo import build_model


@pytest.fixture(autouse=True)
def trace_anew(monkeypatch):
    """No trace of another test."""
    monkeypatch.setattr(torch_export, "_trace", trace_store.trace_anew)
    torch_export._TRACES.clear()


@pytest.fixture(scope="module")
def tiny_two_heads() -> Model:
    """A small network with a one-to-many and a one-to-one head."""
    yaml = {**TINY, "end2end": True, "reg_max": 1, "yaml_file": "yolo26n.yaml"}
    shapes = {name: tuple(value.shape) for name, value in build_model(yaml).state_dict().items()}
    weights = {name: torch.from_numpy(value) for name, value in deterministic_weights(shapes).items()}
    return from_checkpoint(Checkpoint(yaml=yaml, weights=weights), None)


@pytest.fixture
def count_exports(monkeypatch):
    """How often torch's exporter ran."""
    calls = []
    export = torch.onnx.export
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **options: (calls.append(1), export(*args, **options))[1])
    return lambda: len(calls)


def test_a_trace_is_kept_for_the_same_model_and_settings(count_exports) -> None:
    path = trtkit.demo.model_path("classify")
    first = trace(trtkit.load(path), imgsz=(32, 32))
    serialized = first.SerializeToString(deterministic=True)
    first.graph.node[0].name = "changed by the caller"
    renamed = trtkit.load(path, names=[f"class {index}" for index in range(10)])
    second = trace(renamed, imgsz=(32, 32))
    assert count_exports() == 1
    assert any("class 9" in entry.value for entry in second.metadata_props if entry.key == "names")
    del second.metadata_props[:]
    expected = onnx.ModelProto.FromString(serialized)
    del expected.metadata_props[:]
    assert second == expected
    trace(trtkit.load(path), imgsz=(64, 64))
    trace(trtkit.load(path), imgsz=(32, 32), batch=2)
    assert count_exports() == 3


def test_a_graph_is_simplified_once_for_all_precisions(monkeypatch) -> None:
    import onnxslim

    calls = []
    slim = onnxslim.slim
    monkeypatch.setattr(onnxslim, "slim", lambda proto: (calls.append(1), slim(proto))[1])
    traced = trace(trtkit.load(trtkit.demo.model_path("classify")), imgsz=(32, 32), simplify=False)
    model = trtkit.load(traced)
    first = trace(model)
    serialized = first.SerializeToString(deterministic=True)
    first.graph.node[0].name = "changed by the caller"
    assert trace(model).SerializeToString(deterministic=True) == serialized
    copied = trtkit.load(onnx.ModelProto.FromString(traced.SerializeToString()))
    assert trace(copied).SerializeToString(deterministic=True) == serialized
    assert len(calls) == 1
    # Another weight is another graph.
    assert model.proto is not None
    weight = model.proto.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + 1, weight.name))
    assert trace(model).SerializeToString(deterministic=True) != serialized
    assert len(calls) == 2


def test_a_changed_weight_is_traced_again(count_exports) -> None:
    model = trtkit.load(trtkit.demo.model_path("classify"))
    trace(model, imgsz=(32, 32))
    assert model.module is not None
    model.module.get_parameter("model.0.conv.weight").data[0, 0, 0, 0] = 12345.0
    weights = [numpy_helper.to_array(tensor) for tensor in trace(model, imgsz=(32, 32)).graph.initializer]
    assert count_exports() == 2
    assert any(12345.0 in weight for weight in weights)


def test_each_head_and_each_number_of_rows_is_traced(count_exports, tiny_two_heads) -> None:
    shapes = {
        name: [dim.dim_value for dim in trace(model, imgsz=(64, 64)).graph.output[0].type.tensor_type.shape.dim]
        for name, model in {
            "one-to-many": tiny_two_heads,
            "one-to-one": tiny_two_heads.with_end2end(),
            "fewer rows": tiny_two_heads.with_end2end(max_det=5),
        }.items()
    }
    assert count_exports() == 3
    assert shapes["fewer rows"][1:] == [5, 6]
    assert shapes["one-to-one"] != shapes["one-to-many"]


def test_few_traces_are_kept(count_exports, monkeypatch, tiny_two_heads) -> None:
    model = tiny_two_heads
    for batch in range(1, 7):
        trace(model, imgsz=(32, 32), batch=batch, simplify=False)
    assert len(torch_export._TRACES) == torch_export.TRACE_COUNT
    monkeypatch.setattr(torch_export, "TRACE_BYTES", 1 << 10)
    trace(model, imgsz=(64, 64), simplify=False)
    assert count_exports() == 7
    trace(model, imgsz=(64, 64), simplify=False)
    assert count_exports() == 8  # larger than the limit: not kept


def test_concurrent_traces_do_not_interfere() -> None:
    model = trtkit.load(trtkit.demo.model_path("classify"))
    barrier = threading.Barrier(2)

    def trace_operators(_: int) -> list[str]:
        barrier.wait()
        return [node.op_type for node in trace(model, imgsz=(32, 32), simplify=False).graph.node]

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(trace_operators, range(2))
    assert first == second
    assert "Conv" in first


@pytest.mark.parametrize("size", [4096, 0])
def test_a_full_temporary_folder_is_one_sentence(tiny_two_heads: Model, tmp_path, monkeypatch, size: int) -> None:
    torch_export._TRACES.clear()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with pytest.raises(OutputError) as e:
            trace(tiny_two_heads, imgsz=(32, 32))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (e.value.code, e.value.fields["path"]) == ("output-too-large", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


class Fixed(torch.nn.Module):
    """Takes images of 8 x 8 alone."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(192, 112)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.flatten(1)).reshape(-1, 7, 16)


def test_a_module_that_fails_at_another_shape() -> None:
    model = load(Fixed(), task="detect", example=torch.zeros(1, 3, 8, 8))
    with raises(ModelError, "model-shape-fails", shape=(1, 3, 16, 16)):
        trace(model, imgsz=(16, 16))


def test_a_module_that_fails_while_it_is_traced() -> None:
    class Untraceable(Fixed):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if torch.onnx.is_in_onnx_export():
                raise AttributeError("not in a graph")
            return super().forward(x)

    model = load(Untraceable(), task="detect", example=torch.zeros(1, 3, 8, 8))
    with raises(ModelError, "model-trace-failed", model="Untraceable"):
        trace(model)
