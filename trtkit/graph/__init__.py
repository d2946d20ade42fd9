"""Model -> ONNX graph -> FP16 or Q/DQ graph."""
