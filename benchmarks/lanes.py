"""Programs beside each other on a machine with GPUs, each on one GPU and a share of the cores."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ["Program", "drive", "gpus_here"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """One program to run.

    Attributes:
        name: What to call it.
        words: Its command line.
        log: Where its output goes.
        gpu: The GPU it needs, by its place among those here; None for whichever has a free lane.
    """

    name: str
    words: Sequence[str]
    log: Path
    gpu: int | None = None


def gpus_here() -> list[str]:
    """The GPUs this program may use, as `CUDA_VISIBLE_DEVICES` names them.

    Raises:
        CapabilityError: There is no GPU, or no TensorRT.
    """
    from trtkit import backends
    from trtkit.errors import CapabilityError

    here = backends.capabilities("tensorrt")
    count = len(here.gpus)
    if not here.present or not count:
        raise CapabilityError(
            "build and time engines",
            f"TensorRT: {here.missing or 'there is no GPU'}",
            "run this on a machine with both",
        )
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[:count] or [str(index) for index in range(count)]


def drive(programs: Sequence[Program], *, gpus: Sequence[str], lanes: int = 1, seconds: float | None = None) -> None:
    """Run programs in their order, `lanes` of them beside each other on each GPU.

    Alone on 16 cores a build by TensorRT 8.6 keeps one of them busy and the GPU a fifth of the time at most. Of fifteen
    on 64 shared cores each was seen to keep nine busy: all got slower, and so did the kernels that were chosen.

    Args:
        programs: What to run.
        gpus: As from `gpus_here`.
        lanes: Programs at once on each GPU.
        seconds: Stop what still runs after so long, and start nothing more.
    """
    begin, waiting = time.monotonic(), list(programs)
    cores = sorted(os.sched_getaffinity(0))
    share = math.ceil(len(cores) / (lanes * len(gpus)))
    free = [(lane, gpu) for lane in range(lanes) for gpu in range(len(gpus))]
    running: list[tuple[Program, tuple[int, int], subprocess.Popen[bytes], float]] = []
    while waiting or running:
        for entry in list(running):
            program, place, child, started = entry
            if child.poll() is None:
                continue
            running.remove(entry)
            free.append(place)
            free.sort()
            took = time.monotonic() - started
            print(f"{program.name}: {'ends' if child.returncode == 0 else 'fails'} after {took:.0f} s", flush=True)
        if seconds is not None and time.monotonic() - begin > seconds:
            for program, _, child, _ in running:
                print(f"{program.name}: stopped", flush=True)
                child.kill()
                child.wait()
            return
        for place in list(free):
            program = next((one for one in waiting if one.gpu in (None, place[1])), None)
            if program is None:
                continue
            waiting.remove(program)
            free.remove(place)
            first = (place[0] * len(gpus) + place[1]) * share % len(cores)
            running.append(
                (program, place, _start(program, gpus[place[1]], cores[first : first + share]), time.monotonic())
            )
        time.sleep(0.2)


def _start(program: Program, gpu: str, cores: Sequence[int]) -> subprocess.Popen[bytes]:
    mine = os.sched_getaffinity(0)
    # A child inherits its parent's cores, which is simpler than setting them between fork and exec.
    with program.log.open("wb") as log, contextlib.ExitStack() as after:
        after.callback(os.sched_setaffinity, 0, mine)
        os.sched_setaffinity(0, cores)
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu}
        return subprocess.Popen(program.words, stdout=log, stderr=log, env=environment)
