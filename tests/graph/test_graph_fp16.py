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


def test_half_keeps_inputs_outputs_and_tail_in_fp32(proto: onnx.ModelProto) -> None:
    half = convert_to_fp16(proto)
    onnx.checker.check_model(half, full_check=True)
    found = types(half)
    assert found["images"] == found["output0"] == TensorProto.FLOAT
    assert found["pixels"] == found["probabilities"] == found["dfl"] == TensorProto.FLOAT
    assert found["stem"] == found["residual"] == found["attention"] == found["sides"] == TensorProto.FLOAT16


def test_half_agrees_with_fp32_and_leaves_the_original_alone(proto: onnx.ModelProto, images: np.ndarray) -> None:
    before = proto.SerializeToString()
    whole, half = run(proto, images)[0], run(convert_to_fp16(proto), images)[0]
    assert proto.SerializeToString() == before
    assert 0 < np.abs(whole - half).max() < 0.02


def test_keep_leaves_a_layer_in_fp32(proto: onnx.ModelProto) -> None:
    kept = convert_to_fp16(proto, ["wid*"])
    assert types(kept)["wide"] == TensorProto.FLOAT
    assert types(convert_to_fp16(proto))["wide"] == TensorProto.FLOAT16
    onnx.checker.check_model(kept, full_check=True)


def test_keep_that_matches_nothing_is_refused(proto: onnx.ModelProto) -> None:
    with pytest.raises(RecipeError, match="no ONNX node has such a name"):
        convert_to_fp16(proto, ["/model.99/*"])


def test_a_weight_beyond_fp16_stays_in_fp32(proto: onnx.ModelProto) -> None:
    for tensor in proto.graph.initializer:
        if tensor.name == "wide.weight":
            values = numpy_helper.to_array(tensor).copy()
            values[0, 0] = 1e5
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    half = convert_to_fp16(proto)
    assert types(half)["wide"] == TensorProto.FLOAT
    found_weights = {t.name: numpy_helper.to_array(t) for t in half.graph.initializer}
    assert found_weights["wide.weight"].max() == 1e5
    assert all(np.isfinite(values).all() for values in found_weights.values())


def test_mixed_has_fp16_scales_and_the_same_integers(proto: onnx.ModelProto, images: np.ndarray) -> None:
    placement = plan_qdq(proto)
    pairs = insert_qdq(proto, dict.fromkeys(placement.tensors, (-1.0, 2.0)))
    typed = convert_qdq_to_fp16(pairs)
    onnx.checker.check_model(typed, full_check=True)
    found = types(typed)
    assert found["residual_dq"] == TensorProto.FLOAT16
    assert found["residual_q"] == TensorProto.INT8
    assert found["output0"] == TensorProto.FLOAT
    # FP16 between the pairs tips a few values to the next integer, which moves a box side by a tenth of a pixel.
    apart = np.abs(run(typed, images)[0] - run(pairs, images)[0])
    assert np.median(apart) < 0.01
    assert apart.max() < 0.2
