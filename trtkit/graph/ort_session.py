"""Sessions of ONNX Runtime on the CPU that run Q/DQ as it is written."""

from __future__ import annotations

from typing import Any

import onnx

__all__ = ["open_session", "run_qdq_as_written"]


def open_session(proto: onnx.ModelProto) -> Any:
    """Open a session of one thread: images run in parallel instead of the operators of one image.

    Args:
        proto: The graph, with or without Q/DQ.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    run_qdq_as_written(options)
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_qdq_as_written(options: Any) -> None:
    """Set options so that Q/DQ runs as quantize, dequantize and a float operator.

    The integer kernels that ONNX Runtime would fuse it into saturate in 16 bits on processors without VNNI (u8 x s8 on
    AVX2), and its last optimization level reorders sums (NCHWc), which moves values across quantization steps. With
    these settings the outputs equal those of the unoptimized graph bit for bit.

    Args:
        options: ONNX Runtime's `SessionOptions`.
    """
    import onnxruntime as ort

    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
