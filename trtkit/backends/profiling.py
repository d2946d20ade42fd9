"""Where an engine's time goes: TensorRT's own profiler, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trtkit.backends.execution import Execution

__all__ = ["layer_times"]


def layer_times(execution: Execution, shapes: Mapping[str, tuple[int, ...]], runs: int) -> dict[str, float]:
    """Time each layer, in a context of its own that is thrown away: a profiled one is slower for good.

    Args:
        execution: The engine; its input and output memory is used.
        shapes: Of every input.
        runs: Runs to average over.

    Returns:
        Mean milliseconds of one run by layer name. Layers in sequence: their sum exceeds a run that overlaps them.

    Raises:
        EngineError: TensorRT refuses, or memory is short.
    """
    trt = execution.trt
    totals: dict[str, float] = {}

    class Profiler(trt.IProfiler):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            totals[layer_name] = totals.get(layer_name, 0.0) + ms

    profiler = Profiler()
    execution.renew()
    try:
        execution.set_shapes(shapes)
        # The first run allocates and loads kernels.
        execution.launch()
        execution.stream.synchronize()
        execution.context.profiler = profiler
        for _ in range(runs):
            execution.launch()
            execution.stream.synchronize()
    finally:
        execution.renew()
    return {name: total / runs for name, total in totals.items()}
