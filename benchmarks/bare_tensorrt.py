"""The least that runs an engine: TensorRT and CUDA graphs, nothing of trtkit. What trtkit's runner is held against.

    python benchmarks/bare_tensorrt.py yolo11n-fp16.engine [more engines]

Prints a line of JSON for each engine: milliseconds of a batch by replays of one captured `execute_async_v3`, on the
GPU's clock. Of several engines in one process the first is the fastest (`results/runner.md`).
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import tensorrt as trt
import torch

RUNS = 300


def deserialized(path: str) -> Any:
    """The engine of a bare plan, or of a file by Ultralytics or trtkit."""
    data = Path(path).read_bytes()
    # Their files begin with a description: its length, then JSON.
    length = int.from_bytes(data[:4], "little")
    plan = data[4 + length :] if data[4:5] == b"{" else data
    return trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(plan)


def bound(engine: Any) -> tuple[Any, list[torch.Tensor]]:
    """A context of an engine, and the memory it reads and writes, which must outlive it."""
    context = engine.create_execution_context()
    kinds = {"FLOAT": torch.float32, "HALF": torch.float16, "INT32": torch.int32, "INT64": torch.int64}
    held = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        shape = tuple(engine.get_tensor_shape(name))
        tensor = torch.rand(shape, device="cuda").to(kinds[engine.get_tensor_dtype(name).name])
        context.set_tensor_address(name, tensor.data_ptr())
        held.append(tensor)
    return context, held


def warmed(context: Any, stream: Any) -> None:
    """Run it a few times, as it must be before it can be captured."""
    with torch.cuda.stream(stream):
        for _ in range(5):
            context.execute_async_v3(stream.cuda_stream)
        stream.synchronize()


def captured(context: Any, stream: Any) -> Any:
    """One run as a CUDA graph."""
    with torch.cuda.stream(stream):
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin()
        context.execute_async_v3(stream.cuda_stream)
        graph.capture_end()
    return graph


def timed(graph: Any, stream: Any, runs: int = RUNS) -> list[float]:
    """Milliseconds of replays, queued one behind the other."""
    with torch.cuda.stream(stream):
        for _ in range(50):
            graph.replay()
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(runs)]
        for begin, end in events:
            begin.record(stream)
            graph.replay()
            end.record(stream)
        stream.synchronize()
    return [begin.elapsed_time(end) for begin, end in events]


def main(path: str) -> None:
    context, _held = bound(deserialized(path))
    stream = torch.cuda.Stream()
    warmed(context, stream)
    times = timed(captured(context, stream), stream)
    print(json.dumps({"p50_ms": statistics.median(times), "mean_ms": statistics.fmean(times), "runs": RUNS}))


if __name__ == "__main__":
    for engine_file in sys.argv[1:]:
        main(engine_file)
