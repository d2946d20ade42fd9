"""What else a process has done on the GPU, and what that costs an engine.

    python benchmarks/streams.py ENGINE OTHER_ENGINE

Each case runs in a process of its own and prints the median of an engine's replays, milliseconds a batch, each time
one is timed. Needs a GPU and TensorRT, nothing of trtkit.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bare_tensorrt import bound, captured, deserialized, timed, warmed

RUNS = 200


class Engine:
    """An engine on a stream, its own unless one is given."""

    def __init__(self, path: str, *, engine: Any = None, stream: Any = None) -> None:
        self.name = Path(path).stem
        self.engine = engine or deserialized(path)
        self.context, self.held = bound(self.engine)
        self.stream = stream or torch.cuda.Stream()

    def warm(self) -> Engine:
        warmed(self.context, self.stream)
        self.graph = captured(self.context, self.stream)
        return self

    def time(self) -> None:
        print(f"    {self.name}: {statistics.median(timed(self.graph, self.stream, RUNS)):.4f} ms", flush=True)


def one_after_another(one: str, other: str) -> None:
    for path in (one, other, one):
        Engine(path).warm().time()


def the_first_again(one: str, other: str) -> None:
    first = Engine(one).warm()
    first.time()
    Engine(other).warm().time()
    first.time()


def a_second_context(one: str, _: str) -> None:
    first = Engine(one).warm()
    first.time()
    Engine(one, engine=first.engine).warm().time()


def all_on_one_stream(one: str, other: str) -> None:
    stream = torch.cuda.Stream()
    for path in (one, other, one):
        Engine(path, stream=stream).warm().time()


def beside_one_that_is_loaded(one: str, other: str) -> None:
    loaded = deserialized(other)
    Engine(one).warm().time()
    del loaded


def beside_one_that_has_run(one: str, other: str) -> None:
    ran = Engine(other)
    warmed(ran.context, ran.stream)
    Engine(one).warm().time()


def after_additions_on_five_streams(one: str, _: str) -> None:
    streams = [torch.cuda.Stream() for _ in range(5)]
    for stream in streams:
        with torch.cuda.stream(stream):
            torch.zeros(10, device="cuda").add_(1)
    Engine(one).warm().time()


CASES: dict[str, Callable[[str, str], None]] = {
    case.__name__: case
    for case in (
        one_after_another, the_first_again, a_second_context, all_on_one_stream, beside_one_that_is_loaded,
        beside_one_that_has_run, after_additions_on_five_streams,
    )
}  # fmt: skip


def main(paths: list[str]) -> None:
    if len(paths) == 3:
        CASES[paths[0]](paths[1], paths[2])
        return
    for name in CASES:
        print(name.replace("_", " "), flush=True)
        subprocess.run([sys.executable, __file__, name, *paths], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
