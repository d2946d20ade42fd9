"""The layer table from the inspector's two JSON forms and from the builder's log."""

from __future__ import annotations

import json

import polars as pl
import pytest
from raising import raises

from trtkit.backends.trt.layer_info import add_times, layer_frame, parse_build_log, parse_inspector_json
from trtkit.errors import EngineError

# As TensorRT 8.6.0 prints a YOLO engine (shortened).
EIGHT = {
    "Layers": [
        {
            "Name": "Reformatting CopyNode for Input Tensor 0 to /model.0/conv/Conv",
            "LayerType": "Reformat",
            "Inputs": [{"Name": "images", "Dimensions": [8, 3, 640, 640], "Format/Datatype": "Row major linear FP32"}],
            "Outputs": [
                {
                    "Name": "r",
                    "Dimensions": [8, 3, 640, 640],
                    "Format/Datatype": "Channel major FP16 format where channel % 4 == 0",
                }
            ],
            "ParameterType": "Reformat",
            "TacticValue": "0x00000000000003e8",
        },
        {
            "Name": "/model.0/conv/Conv + PWN(PWN(/model.0/act/Sigmoid), /model.0/act/Mul)",
            "LayerType": "CaskConvolution",
            "Inputs": [
                {
                    "Name": "r",
                    "Dimensions": [8, 3, 640, 640],
                    "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format",
                }
            ],
            "Outputs": [
                {
                    "Name": "m",
                    "Dimensions": [8, 16, 320, 320],
                    "Format/Datatype": "Channel major FP16 format where channel % 8 == 0",
                }
            ],
            "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32",
            "TacticValue": "0x1",
        },
        {
            "Name": "{ForeignNode[/model.10/m/m.0/attn/Reshape.../model.10/m/m.0/attn/MatMul_1]}",
            "LayerType": "Myelin",
            "Inputs": [{"Name": "m", "Dimensions": [8, 16], "Format/Datatype": "Row major linear FP16 format"}],
            "Outputs": [{"Name": "output0", "Dimensions": [8, 16], "Format/Datatype": "Row major linear FP32"}],
        },
        "a layer of an engine with names alone",
    ],
    "Bindings": ["images", "output0"],
}
# As TensorRT 10 prints it.
TEN = {
    "Layers": [
        {
            "Name": "__myl_ConvSilu_myl0_1",
            "LayerType": "conv",
            "Inputs": [{"Name": "q", "Dimensions": [1, 3, 64, 64], "Datatype": "Int8", "Format": "NHWC"}],
            "Outputs": [{"Name": "m", "Dimensions": [1, 16, 32, 32], "Datatype": "Half", "Format": "NHWC"}],
            "TacticName": "sm90_xmma",
            "Metadata": "[ONNX Layer: /model.0/conv/Conv]\x1e[ONNX Layer: /model.0/act/Mul]",
        },
    ],
    "I/O Tensors": [{"Name": "images"}],
}
# As TensorRT-RTX 1.7 logs it while building.
LOG = """Layers:
Name: entry^bb^signal^3_myl0_0, LayerType: signal, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, EventId: 22, Metadata: 
Name: __myl_Move_myl0_3, LayerType: kgen, Inputs: [ { Name: images, Dimensions: [1,3,640,640], Strides: [1,1,1,1], Datatype: Float, Format: (Linear) x }], Constants: [], Outputs: [ { Name: k_myl0, Dimensions: [1,3,640,640], Strides: [1,1,1,3], Datatype: Float, Format: (NHWC) x }], TacticName: __myl_Move_0x7c, StreamId: 0, Metadata: 
Name: /model.0/conv/Conv_myl0_4, LayerType: correlation, Inputs: [ { Name: k_myl0, Dimensions: [1,4,640,640], Strides: [1], Datatype: Int8, Format: (NHWC) x }, { Name: z, Dimensions: [1], Strides: [1], Datatype: Float, Format: x }], Constants: [ { Name: c, Dimensions: [16,4,3,3], Strides: [1], Datatype: Int8, Format: x }], Outputs: [ { Name: o, Dimensions: [1,16,320,320], Strides: [1], Datatype: Half, Format: x }], TacticName: stub, StreamId: 0, Metadata: [ONNX Layer: /model.0/conv/Conv][ONNX Layer: images_DQ]

I/O Tensors:
 Name: images, IOMode: Input, DataType: Float
"""  # noqa: E501, W291 - printed so


def test_tensorrt_8() -> None:
    frame = layer_frame(parse_inspector_json(json.dumps(EIGHT)))
    assert frame["reformat"].to_list() == [True, False, False, False]
    assert frame["precision"].to_list() == ["fp16", "int8", "fp32", None]
    assert frame["input_precision"].to_list() == ["fp32", "int8", "fp16", None]
    assert frame["output_precision"].to_list() == ["fp16", "fp16", "fp32", None]
    assert frame["onnx_nodes"].to_list() == [
        [],
        ["/model.0/conv/Conv", "/model.0/act/Sigmoid", "/model.0/act/Mul"],
        ["/model.10/m/m.0/attn/Reshape", "/model.10/m/m.0/attn/MatMul_1"],
        ["a layer of an engine with names alone"],
    ]
    assert frame["tactic"][1].startswith("sm80_xmma")
    assert frame["tactic"][0] == "0x00000000000003e8"
    assert frame["shape"][1] == "8x16x320x320"
    assert frame["inputs"][2].to_list() == ["m"]
    assert frame["index"].to_list() == [0, 1, 2, 3]


def test_tensorrt_10() -> None:
    (row,) = parse_inspector_json(json.dumps(TEN))
    assert row["onnx_nodes"] == ["/model.0/conv/Conv", "/model.0/act/Mul"]
    assert (row["precision"], row["input_precision"], row["output_precision"]) == ("int8", "int8", "fp16")


def test_a_kernel_s_name_may_have_control_characters() -> None:
    """TensorRT does not escape them."""
    text = json.dumps(TEN).replace("__myl_ConvSilu_myl0_1", "__myl_ConvSilu\x01")
    assert [row["name"] for row in parse_inspector_json(text)] == ["__myl_ConvSilu\x01"]
    # Without detail a layer is its name alone.
    assert parse_inspector_json('{"Layers": ["stem"]}')[0]["name"] == "stem"


@pytest.mark.parametrize(
    ("name", "kind", "precision", "reformat"),
    [
        ("/conv", "fusion", "int8", False),
        ("/conv", "CaskConvolution", "int8", False),
        ("/pool", "pooling", "fp16", False),
        # It converts, whatever its kind.
        ("__myl_Cast_1", "fusion", "fp16", True),
        ("Reformatting CopyNode for /conv", "Reformat", "fp16", True),
        ("/nothing", "NoCopy", "fp16", True),
    ],
)
def test_the_precision_of_a_layer(name: str, kind: str, precision: str, reformat: bool) -> None:
    layer = {
        "Name": name, "LayerType": kind, "Inputs": [{"Name": "a", "Format/Datatype": "Int8"}, {"Datatype": "Float"}],
        "Outputs": [{"Name": "b", "Format/Datatype": "FP16"}],
    }  # fmt: skip
    (row,) = parse_inspector_json(json.dumps({"Layers": [layer]}))
    assert (row["precision"], row["reformat"]) == (precision, reformat)
    # Weights are further inputs, in a type of their own.
    del layer["Inputs"][0]["Format/Datatype"]
    (row,) = parse_inspector_json(json.dumps({"Layers": [layer]}))
    assert (row["precision"], row["input_precision"], row["output_precision"]) == ("fp16", None, "fp16")


def test_a_kernel_of_myelin_names_no_nodes() -> None:
    layer = {"Name": "__myl_FcMul_myl0_3", "LayerType": "kgen"}
    (row,) = parse_inspector_json(json.dumps({"Layers": [layer]}))
    assert (row["onnx_nodes"], row["reformat"]) == ([], False)
    layer["Metadata"] = "[ONNX Layer: /model.0/conv/Conv]\x1e[ONNX Layer: /model.0/act/Mul]"
    (row,) = parse_inspector_json(json.dumps({"Layers": [layer]}))
    assert row["onnx_nodes"] == ["/model.0/conv/Conv", "/model.0/act/Mul"]


def test_the_build_log() -> None:
    rows = parse_build_log(LOG)
    assert [row["type"] for row in rows] == ["kgen", "correlation"]
    assert [row["reformat"] for row in rows] == [True, False]
    assert rows[1]["precision"] == "int8"
    assert rows[1]["output_precision"] == "fp16"
    assert rows[1]["onnx_nodes"] == ["/model.0/conv/Conv", "images_DQ"]
    assert rows[1]["inputs"] == ["k_myl0", "z"]
    assert rows[1]["shape"] == "1x16x320x320"
    assert parse_build_log("") == ()


def test_times_are_added_by_name_and_rows_survive_json() -> None:
    rows = add_times(parse_inspector_json(json.dumps(TEN)), {"__myl_ConvSilu_myl0_1": 0.125})
    frame = layer_frame(json.loads(json.dumps(rows)))
    assert frame["ms"].to_list() == [0.125]
    assert frame.schema["onnx_nodes"] == pl.List(pl.String)


def test_an_empty_table_has_its_columns() -> None:
    assert layer_frame(()).columns[:3] == ["index", "name", "type"]


@pytest.mark.parametrize("text", ["", "{}", "[1]", "not JSON"])
def test_text_without_a_table(text: str) -> None:
    with raises(EngineError, "layer-table-invalid"):
        parse_inspector_json(text)
