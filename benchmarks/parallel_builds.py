"""Programs beside each other on a machine with GPUs, each on one GPU and a share of the cores."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
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
        queue: Programs of one queue run one after another; None waits for no other.
    """

    name: str
    words: Sequence[str]
    log: Path
    gpu: int | None = None
    queue: str | None = None


def gpus_here() -> list[str]:
    """The GPUs this program may use, as `CUDA_VISIBLE_DEVICES` names them.

    Raises:
        CapabilityError: There is no GPU, or no TensorRT.
    """
    from trtkit import backends
    from trtkit.errors import CapabilityError

    here = backends.probe("tensorrt")
    count = len(here.gpus)
    if not here.present or not count:
        raise CapabilityError(
            "build and time engines",
            f"TensorRT: {here.missing or 'there is no GPU'}",
            "run this on a machine with both",
        )
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[:count] or [str(index) for index in range(count)]


@contextlib.contextmanager
def _shared_gpus() -> Iterator[dict[str, str]]:
    """NVIDIA's Multi-Process Service: programs in whose environment what is yielded stands use a GPU at the same time.

    Without it processes take turns on a GPU, and each waits for the others' turns however little they do
    (`gpu_sharing.py` measures both).
    """
    control = shutil.which("nvidia-cuda-mps-control")
    with tempfile.TemporaryDirectory(prefix="trtkit-mps-", ignore_cleanup_errors=True) as folder:
        places = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        # The service numbers its clients' GPUs among those it sees itself, so it must see all.
        seeing = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"} | places
        if control is None or subprocess.run([control, "-d"], env=seeing, check=False).returncode:
            print("no Multi-Process Service: programs take turns on a GPU, more than three gain nothing", flush=True)
            yield {}
            return
        try:
            yield places
        finally:
            ended = subprocess.run([control], env=seeing, input="quit -t 5\n", text=True, check=False)
            if ended.returncode:
                print(f"the Multi-Process Service goes on: {control} ended with {ended.returncode}", flush=True)


def drive(
    programs: Sequence[Program],
    *,
    gpus: Sequence[str],
    lanes: int = 1,
    seconds: float | None = None,
    service: bool = True,
) -> None:
    """Run programs in their order, `lanes` of them beside each other on each GPU.

    Alone on 16 cores a build by TensorRT 8.6 keeps one of them busy and the GPU a fifth of the time at most. Of fifteen
    on 64 shared cores each was seen to keep nine busy: all got slower, and so did the kernels that were chosen. By
    the service, too, kernels are timed beside those of other builds: the fewer lanes, the fairer.

    Args:
        programs: What to run.
        gpus: As from `gpus_here`.
        lanes: Programs at once on each GPU.
        seconds: Stop what still runs after so long, and start nothing more.
        service: Programs of several lanes use a GPU at the same time, through NVIDIA's service. Without it they must
            see to their turns.
    """
    if not programs:
        return
    with _shared_gpus() if service and lanes > 1 else contextlib.nullcontext({}) as places:
        _drive(programs, gpus, lanes, seconds, places)


def _drive(
    programs: Sequence[Program], gpus: Sequence[str], lanes: int, seconds: float | None, service: dict[str, str]
) -> None:
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
            held = {one.queue for one, *_ in running} - {None}
            program = next((one for one in waiting if one.gpu in (None, place[1]) and one.queue not in held), None)
            if program is None:
                continue
            waiting.remove(program)
            free.remove(place)
            first = (place[0] * len(gpus) + place[1]) * share % len(cores)
            given = {**service, "CUDA_VISIBLE_DEVICES": gpus[place[1]]}
            running.append((program, place, _start(program, given, cores[first : first + share]), time.monotonic()))
        time.sleep(0.2)


def _start(program: Program, given: dict[str, str], cores: Sequence[int]) -> subprocess.Popen[bytes]:
    mine = os.sched_getaffinity(0)
    # A child inherits its parent's cores, which is simpler than setting them between fork and exec.
    with program.log.open("wb") as log, contextlib.ExitStack() as after:
        after.callback(os.sched_setaffinity, 0, mine)
        os.sched_setaffinity(0, cores)
        return subprocess.Popen(program.words, stdout=log, stderr=log, env={**os.environ, **given})
