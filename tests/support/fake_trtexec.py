#!/usr/bin/env python
"""A stand-in for trtexec: checks options as its release does, "builds" an ONNX file by a copy, and runs it on a CPU.

The environment sets FAKE_TRTEXEC_VERSION (digits, such as 8601 or 110400) and FAKE_TRTEXEC_LOG (a file for commands).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

VERSION = os.environ["FAKE_TRTEXEC_VERSION"]
FIRST = int(VERSION) // (10000 if len(VERSION) > 4 else 1000)
# Options of trtexec's source at v8.6.1, v10.16 and v11.1, as far as deployment folders use them.
COMMON = {"onnx", "saveEngine", "loadEngine", "loadInputs", "exportOutput", "iterations", "warmUp", "duration",
          "shapes", "minShapes", "optShapes", "maxShapes", "skipInference", "useDLACore",
          "allowGPUFallback"}  # fmt: skip
BY_FLAGS = {"fp16", "int8", "calib", "precisionConstraints", "layerPrecisions", "layerOutputTypes"}
OPTIONS = {8: COMMON | BY_FLAGS, 10: COMMON | BY_FLAGS | {"stronglyTyped"}, 11: COMMON}


def main() -> int:
    print(f"&&&& RUNNING TensorRT.trtexec [TensorRT v{VERSION}] # trtexec {' '.join(sys.argv[1:])}")
    if "--help" in sys.argv:
        return 0
    options = dict(part.removeprefix("--").partition("=")[::2] for part in sys.argv[1:])
    with Path(os.environ["FAKE_TRTEXEC_LOG"]).open("a") as log:
        log.write(json.dumps(options) + "\n")
    if unknown := set(options) - OPTIONS[FIRST]:
        print(f"[E] Unknown option: --{sorted(unknown)[0]}")
        return 1
    if "onnx" in options:
        Path(options["saveEngine"]).write_bytes(Path(options["onnx"]).read_bytes())
    if "loadEngine" not in options:
        return 0
    import onnxruntime

    # As trtkit runs ONNX files: integer kernels saturate on some processors.
    settings = onnxruntime.SessionOptions()
    settings.add_session_config_entry("session.disable_quant_qdq", "1")
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    session = onnxruntime.InferenceSession(options["loadEngine"], settings, providers=["CPUExecutionProvider"])
    files = dict(pair.split(":") for pair in options["loadInputs"].split(","))
    shapes = dict(pair.split(":") for pair in options.get("shapes", "").split(",") if pair)
    feeds = {}
    for entry in session.get_inputs():
        shape = [int(size) for size in shapes[entry.name].split("x")] if entry.name in shapes else entry.shape
        feeds[entry.name] = np.fromfile(files[entry.name], np.float32).reshape(shape)
    lines = ["["]
    for number, (output, values) in enumerate(zip(session.get_outputs(), session.run(None, feeds), strict=True)):
        lines.append(f'{", " if number else "  "}{{ "name" : "{output.name}"')
        lines.append(f'  , "dimensions" : "{"x".join(map(str, values.shape))}"')
        lines.append(f'  , "values" : [ {", ".join(f"{value:.9g}" for value in values.ravel())} ]\n  }}')
    Path(options["exportOutput"]).write_text("\n".join([*lines, "]"]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
