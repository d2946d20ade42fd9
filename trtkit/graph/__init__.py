"""ONNX graphs: tracing, analysis, graph passes, FP16, Q/DQ and NMS."""
