"""Tracing from several threads at once, as a widget and a cell beside it do."""

import threading
from concurrent.futures import ThreadPoolExecutor

import trtkit
from trtkit.graph.torch_export import trace


def test_threads_take_turns() -> None:
    model = trtkit.load(trtkit.demo.model_path("classify"))
    together = threading.Barrier(2)

    def traced(_: int) -> list[str]:
        together.wait()
        return [node.op_type for node in trace(model, imgsz=(32, 32), simplify=False).graph.node]

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(traced, range(2))
    assert one == two
    assert "Conv" in one
