"""The least that runs an engine: TensorRT and CUDA graphs, nothing of trtkit. What trtkit's runner is held against.

    python benchmarks/bare_tensorrt.py yolo11n-fp16.engine [more engines]

Prints a line of JSON for each engine: milliseconds of a batch by replays of one captured `execute_async_v3`, on the
GPU's clock.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import tensorrt as trt
import torch

RUNS = 300


def main(path: str) -> None:
    data = Path(path).read_bytes()
    # An engine file of Ultralytics or trtkit begins with a description: its length, then JSON.
    length = int.from_bytes(data[:4], "little")
    plan = data[4 + length :] if data[4:5] == b"{" else data
    engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(plan)
    context = engine.create_execution_context()
    kinds = {"FLOAT": torch.float32, "HALF": torch.float16, "INT32": torch.int32, "INT64": torch.int64}
    held = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        shape = tuple(engine.get_tensor_shape(name))
        tensor = torch.rand(shape, device="cuda").to(kinds[engine.get_tensor_dtype(name).name])
        context.set_tensor_address(name, tensor.data_ptr())
        held.append(tensor)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(5):
            context.execute_async_v3(stream.cuda_stream)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin()
        context.execute_async_v3(stream.cuda_stream)
        graph.capture_end()
        for _ in range(50):
            graph.replay()
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(RUNS)]
        for begin, end in events:
            begin.record(stream)
            graph.replay()
            end.record(stream)
        stream.synchronize()
    times = [begin.elapsed_time(end) for begin, end in events]
    print(json.dumps({"p50_ms": statistics.median(times), "mean_ms": statistics.fmean(times), "runs": RUNS}))


if __name__ == "__main__":
    for engine_file in sys.argv[1:]:
        main(engine_file)
