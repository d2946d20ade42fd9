"""What processes that share a GPU cost each other, by turns and by NVIDIA's Multi-Process Service.

    python benchmarks/gpu_sharing.py
    nvidia-cuda-mps-control -d && python benchmarks/gpu_sharing.py; echo quit | nvidia-cuda-mps-control

Each process stands in for a build by TensorRT, which prepares a kernel on one core and times it: 0.4 ms of a core's
work, then ten products of 512 x 512 halves between two events. Prints a line for each number of processes.
"""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.sharedctypes import Synchronized, SynchronizedArray
from typing import Any

COUNTS = (1, 2, 3, 4, 6, 8, 10, 12)
CORE_SECONDS = 400e-6
KERNELS = 10
SECONDS = 3.0


def work(place: int, turn: SynchronizedArray[int], done: Synchronized[int], times_queue: Any) -> None:
    """Do rounds while `turn` (how many take part, the number of the trial) says so; put their times when it changes."""
    import torch

    matrix, stream = torch.randn(512, 512, device="cuda").half(), torch.cuda.Stream()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.stream(stream):
        for _ in range(20):
            matrix @ matrix
    stream.synchronize()
    times_queue.put([])
    seen, times = 0, []
    while not done.value:
        count, trial = turn[0], turn[1]
        if trial != seen:
            if times:
                times_queue.put(times)
            times, seen = [], trial
        if place >= count:
            time.sleep(0.01)
            continue
        until = time.perf_counter() + CORE_SECONDS
        while time.perf_counter() < until:
            pass
        with torch.cuda.stream(stream):
            begin.record(stream)
            for _ in range(KERNELS):
                matrix @ matrix
            end.record(stream)
        stream.synchronize()
        times.append(begin.elapsed_time(end))


def main() -> None:
    context = multiprocessing.get_context("spawn")
    turn, done, times_queue = context.Array("i", [0, 0]), context.Value("i", 0), context.Queue()
    processes = [context.Process(target=work, args=(place, turn, done, times_queue)) for place in range(max(COUNTS))]
    for process in processes:
        process.start()
    for _ in processes:
        times_queue.get(timeout=120)
    print("| processes | rounds a second, each | together | ten kernels, us: p10 | p50 | p90 | mean |\n|" + "---|" * 7)
    for number, count in enumerate(COUNTS):
        turn[:] = [count, 2 * number + 1]
        time.sleep(SECONDS)
        turn[:] = [0, 2 * number + 2]
        times = sorted(1000 * one for _ in range(count) for one in times_queue.get(timeout=60))
        low, middle, high = (times[int(part * (len(times) - 1))] for part in (0.1, 0.5, 0.9))
        together = len(times) / SECONDS
        values = (together / count, together, low, middle, high, sum(times) / len(times))
        print(f"| {count} | " + " | ".join(f"{value:.0f}" for value in values) + " |", flush=True)
    done.value = 1
    for process in processes:
        process.join(10)


if __name__ == "__main__":
    main()
