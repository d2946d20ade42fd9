"""Schedulers: `--scheduler` of the command line as a `distributed.Client`, and workers on this machine."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from trtkit.backends.devices import find_gpus
from trtkit.errors import CapabilityError, RecipeError
from trtkit.progress import available_cores

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["GPU", "is_protected", "open_executor"]

GPU = "GPU"
"""The Dask resource of which each worker has one for its GPU; work on a GPU takes it, so that none shares one."""

_PROTECTED = ("tls", "wss", "inproc")
"""Protocols that only this process, or holders of certificates, can speak to a scheduler."""


@contextlib.contextmanager
def open_executor(scheduler: str) -> Iterator[Client]:
    """Connect to a Dask scheduler, or start worker processes on this machine; both are closed with the block.

    >>> with tk.open_executor("local:2") as executor:
    ...     tk.evaluate("yolo11n.onnx", "coco.yaml", executor=executor)

    Args:
        scheduler: "local:2" for two worker processes on this machine, each with a GPU of its own as far as there are
            GPUs ("local": one for each GPU, else one for each core); the address of a scheduler, such as
            "tls://host:8786"; or the JSON file that a scheduler wrote (`dask scheduler --scheduler-file`).

    Yields:
        What verbs take as `executor`. A script that starts workers needs `if __name__ == "__main__":`.

    Raises:
        RecipeError: It is none of these.
        CapabilityError: Dask is not installed, or no scheduler answers.
    """
    dask, distributed = _import_dask()
    name, _, count = scheduler.partition(":")
    if scheduler == "local" or (name == "local" and count.isdecimal() and int(count) > 0):
        # Dask stops a lost worker's nanny after some seconds, but ours starts it again, as late as a busy machine may.
        with (
            dask.config.set({"distributed.deploy.lost-worker-timeout": "1 day"}),
            _start_local(int(count) if count else None) as cluster,
            # By its address: a client of a cluster waits for workers by that object's list of them, whose updates end
            # for good where that wait (its method `wait_for_workers`) and a worker's loss fall together.
            distributed.Client(cluster.scheduler_address) as client,
        ):
            yield client
        return
    is_file = Path(scheduler).suffix == ".json"
    if not is_file and (urlsplit(scheduler).scheme not in ("tcp", "tls", "ws", "wss") or not _parse_host(scheduler)):
        raise RecipeError(
            f"use the scheduler {scheduler!r}",
            "it is neither local:N nor the address or file of a scheduler",
            "pass e.g. local:2, tls://host:8786 or scheduler.json",
            code="executor-scheduler-invalid",
            value=scheduler,
        )
    if is_file and not Path(scheduler).is_file():
        # Dask would wait for it.
        raise CapabilityError(
            f"connect to the scheduler of {scheduler}",
            "there is no such file",
            "start it with dask scheduler --scheduler-file FILE, on a disk that this machine shares",
            code="executor-file-missing",
            path=scheduler,
        )
    client = distributed.Client.__new__(distributed.Client)
    try:
        distributed.Client.__init__(client, **({"scheduler_file": scheduler} if is_file else {"address": scheduler}))
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        _close_unconnected(client)
        # TypeError: tls:// without certificates in Dask's configuration.
        raise CapabilityError(
            f"connect to the scheduler {scheduler}",
            f"it does not answer ({' '.join(str(error).split())[:300]})",
            "check the address and that it runs; tls:// needs distributed.comm.tls in Dask's configuration",
            code="executor-unreachable",
            value=scheduler,
        ) from error
    with client:
        yield client


def _close_unconnected(client: Any) -> None:
    """Close a client whose constructor raised an error, and end its thread, which Dask leaves running.

    The garbage collector would close it at any time. While another client starts that would never end: the same thread
    would wait for a lock of Dask's that it holds.
    """
    client.__del__()
    runner = getattr(client, "_loop_runner", None)
    if runner is not None:
        runner.stop()


def _import_dask() -> tuple[Any, Any]:
    try:
        import dask
        import distributed
    except ImportError as error:
        raise CapabilityError(
            "use a Dask scheduler",
            "distributed is not installed",
            "run pip install 'trtkit[scale]'",
            code="executor-missing",
        ) from error
    return dask, distributed


def _start_local(count: int | None) -> Any:
    """Worker processes on this machine, behind nannies that start a killed one again."""
    from distributed import Nanny, Scheduler, SpecCluster

    gpus = find_gpus()
    count = count or len(gpus) or available_cores()
    # One task at a time, which has its GPU to itself. The system's limit of memory is the right one: a runtime's memory
    # is none of Dask's objects, so that Dask could spill none of it.
    shared = {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0"}
    options = {**shared, "nthreads": 1, "memory_limit": 0, "preload": [__name__], "silence_logs": logging.CRITICAL}
    workers = {}
    for index in range(count):
        own: dict[str, Any] = {}
        if gpus:
            own["env"] = {"CUDA_VISIBLE_DEVICES": gpus[index].visible_name() if index < len(gpus) else ""}
        if index < len(gpus):
            own["resources"] = {GPU: 1}
        workers[index] = {"cls": Nanny, "options": {**options, **own}}
    scheduler = {"cls": Scheduler, "options": {**shared, "port": 0}}
    return SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.CRITICAL)


def dask_setup(worker: Any) -> None:
    """Called by Dask in a local worker: Ctrl-C in a terminal reaches all processes, and the client ends the workers."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _parse_host(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def is_protected(address: str) -> bool:
    """Whether nobody but this machine's users and holders of certificates reaches a scheduler.

    Args:
        address: Of the scheduler.
    """
    if urlsplit(address).scheme in _PROTECTED:
        return True
    host = _parse_host(address)
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
