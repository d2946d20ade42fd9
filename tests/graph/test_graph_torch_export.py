"""Tracing from several threads at once, as a widget and a notebook cell do."""

import threading
from concurrent.futures import ThreadPoolExecutor

import trtkit
from trtkit.graph.torch_export import trace


def test_concurrent_traces_do_not_interfere() -> None:
    model = trtkit.load(trtkit.demo.model_path("classify"))
    barrier = threading.Barrier(2)

    def trace_operators(_: int) -> list[str]:
        barrier.wait()
        return [node.op_type for node in trace(model, imgsz=(32, 32), simplify=False).graph.node]

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(trace_operators, range(2))
    assert first == second
    assert "Conv" in first
