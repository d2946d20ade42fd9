"""Small settings of zoo(), for tests."""

SMALL = {"precisions": ("fp32", "int8"), "calibration_images": 2, "resamples": 20, "backends": "onnxruntime"}
