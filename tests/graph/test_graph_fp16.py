from __future__ import annotations

import numpy as np
import onnx
import pytest
from detector_graph import run
from onnx import TensorProto, numpy_helper

from trtkit.errors import RecipeError
from trtkit.graph.fp16 import convert_qdq_to_fp16, convert_to_fp16
from trtkit.graph.qdq import insert_qdq, plan_qdq


def types(proto: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    values = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    return {value.name: value.type.tensor_type.elem_type for value in values}


def test_inputs_outputs_and_decoding_stay_in_fp32(proto: onnx.ModelProto) -> None:
    fp16 = convert_to_fp16(proto)
    onnx.checker.check_model(fp16, full_check=True)
    elem_types = types(fp16)
    assert elem_types["images"] == elem_types["output0"] == TensorProto.FLOAT
    assert elem_types["pixels"] == elem_types["probabilities"] == elem_types["dfl"] == TensorProto.FLOAT
    assert (
        elem_types["stem"]
        == elem_types["residual"]
        == elem_types["attention"]
        == elem_types["sides"]
        == TensorProto.FLOAT16
    )


def test_fp16_agrees_with_fp32_and_does_not_modify_the_original(proto: onnx.ModelProto, images: np.ndarray) -> None:
    before = proto.SerializeToString()
    fp32, fp16 = run(proto, images)[0], run(convert_to_fp16(proto), images)[0]
    assert proto.SerializeToString() == before
    assert 0 < np.abs(fp32 - fp16).max() < 0.02


def test_keep_leaves_a_layer_in_fp32(proto: onnx.ModelProto) -> None:
    kept = convert_to_fp16(proto, ["wid*"])
    assert types(kept)["wide"] == TensorProto.FLOAT
    assert types(convert_to_fp16(proto))["wide"] == TensorProto.FLOAT16
    onnx.checker.check_model(kept, full_check=True)


def test_keep_that_matches_nothing_raises(proto: onnx.ModelProto) -> None:
    with pytest.raises(RecipeError) as error:
        convert_to_fp16(proto, ["/model.99/*"])
    assert error.value.code == "keep-no-match"
    assert error.value.fields["pattern"] == "/model.99/*"


def test_a_weight_beyond_fp16_stays_in_fp32(proto: onnx.ModelProto) -> None:
    for tensor in proto.graph.initializer:
        if tensor.name == "wide.weight":
            values = numpy_helper.to_array(tensor).copy()
            values[0, 0] = 1e5
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    fp16 = convert_to_fp16(proto)
    assert types(fp16)["wide"] == TensorProto.FLOAT
    weights = {t.name: numpy_helper.to_array(t) for t in fp16.graph.initializer}
    assert weights["wide.weight"].max() == 1e5
    assert all(np.isfinite(values).all() for values in weights.values())


def test_qdq_in_fp16_has_fp16_scales_and_the_same_integers(proto: onnx.ModelProto, images: np.ndarray) -> None:
    placement = plan_qdq(proto)
    qdq = insert_qdq(proto, dict.fromkeys(placement.tensors, (-1.0, 2.0)))
    typed = convert_qdq_to_fp16(qdq)
    onnx.checker.check_model(typed, full_check=True)
    elem_types = types(typed)
    assert elem_types["residual_dq"] == TensorProto.FLOAT16
    assert elem_types["residual_q"] == TensorProto.INT8
    assert elem_types["output0"] == TensorProto.FLOAT
    # FP16 between Q/DQ rounds a few values to the next integer, which moves a box side by a tenth of a pixel.
    difference = np.abs(run(typed, images)[0] - run(qdq, images)[0])
    assert np.median(difference) < 0.01
    assert difference.max() < 0.2
