"""Data types of the fake TensorRT, and host memory as an array by its address, as TensorRT accesses it."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

SIZES = {"FLOAT": np.float32, "HALF": np.float16, "INT32": np.int32, "INT64": np.int64, "INT8": np.int8}
ONNX_TYPES = {1: "FLOAT", 10: "HALF", 6: "INT32", 7: "INT64", 3: "INT8"}


def view(address: int, kind: Any, shape: tuple[int, ...]) -> np.ndarray:
    count = int(np.prod(shape)) * np.dtype(kind).itemsize
    memory = (ctypes.c_byte * count).from_address(address)
    return np.frombuffer(memory, dtype=kind).reshape(shape)
