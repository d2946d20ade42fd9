"""What workers are: versions, processor, GPUs; and whether they fit this process and each other."""

from __future__ import annotations

import dataclasses
import functools
import socket
from collections.abc import Mapping
from typing import Any

from trtkit.backends.devices import find_gpus
from trtkit.errors import CapabilityError
from trtkit.executor.scheduler import GPU
from trtkit.results import describe_machine, package_versions

__all__ = ["WorkerFacts", "check_gpus", "check_versions", "describe_worker"]

_VERSIONS_OF_GPUS = ("tensorrt", "tensorrt-rtx")
"""Packages that need not be where no GPU is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerFacts:
    """What a worker is.

    Attributes:
        host: Name of its machine.
        machine: As `describe_machine`.
        versions: Package versions by name.
        gpus: The GPUs it sees, as `Gpu` has them, with their clocks.
    """

    host: str
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    gpus: tuple[Mapping[str, Any], ...]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        gpus = [dict(gpu) for gpu in self.gpus]
        return {"host": self.host, **self.machine, "gpus": gpus, "versions": dict(self.versions)}


@functools.cache
def describe_worker() -> WorkerFacts:
    """The facts of this process."""
    return WorkerFacts(
        host=socket.gethostname(),
        machine=describe_machine(),
        versions=package_versions(),
        gpus=tuple(dataclasses.asdict(gpu) for gpu in find_gpus()),
    )


def check_versions(facts: Mapping[str, WorkerFacts]) -> None:
    """Check that workers compute what this process would.

    Args:
        facts: Of the workers, by address.

    Raises:
        CapabilityError: One has other versions.
    """
    own = package_versions()
    for address, one in facts.items():
        names = sorted({*own, *one.versions} - {"python", *_VERSIONS_OF_GPUS})
        found = {name: tuple(_read_version(of, name) for of in (one.versions, own)) for name in names}
        differing = {name: (theirs, ours) for name, (theirs, ours) in found.items() if theirs != ours}
        if differing:
            shown = ", ".join(
                f"{name} {theirs or 'missing'}, here {ours or 'missing'}" for name, (theirs, ours) in differing.items()
            )
            raise CapabilityError(
                f"use the worker {address}",
                f"it has other versions ({shown})",
                "install the same versions everywhere",
                code="executor-versions-differ",
                worker=address,
                names=tuple(differing),
            )


def _read_version(versions: Mapping[str, str], name: str) -> str:
    """A package's version; "" where it is not installed."""
    version = versions.get(name, "")
    # torch 2.13.0+cu130 of a worker with a GPU is torch 2.13.0+cpu of a caller without one.
    return version.partition("+")[0] if name == "torch" else version


def check_gpus(facts: Mapping[str, WorkerFacts], workers: Mapping[str, Any]) -> None:
    """Check that each worker with the resource has a GPU of its own, all of one kind.

    Args:
        facts: Of the workers, by address.
        workers: The scheduler's description of them, by address.

    Raises:
        CapabilityError: It is not so.
    """
    offered = {
        address: facts[address].gpus
        for address, worker in workers.items()
        if address in facts and worker["resources"].get(GPU)
    }
    asked = "build, run or time engines on workers"
    without = sorted(address for address, gpus in offered.items() if not gpus)
    if without or not offered:
        found = f"no worker has a GPU and the resource {GPU}"
        raise CapabilityError(
            asked,
            f"{', '.join(without)}: the resource {GPU} and no GPU" if without else found,
            f"start each worker with one GPU visible and --resources {GPU}=1",
            code="executor-gpu-missing",
            count=len(workers),
            names=without,
        )
    crowded = sorted(address for address in offered if workers[address]["resources"][GPU] > 1)
    ids = [gpus[0]["uuid"] for gpus in offered.values() if gpus[0]["uuid"]]
    if crowded or len(set(ids)) < len(ids):
        raise CapabilityError(
            asked,
            "several tasks would share a GPU, which falsifies timings",
            f"start one worker for each GPU, with CUDA_VISIBLE_DEVICES of its own and --resources {GPU}=1",
            code="executor-gpu-shared",
            names=crowded or sorted(offered),
        )
    kinds = {
        (gpus[0]["name"], gpus[0]["driver"], *(facts[address].versions.get(name) for name in _VERSIONS_OF_GPUS))
        for address, gpus in offered.items()
    }
    if len(kinds) > 1:
        raise CapabilityError(
            asked,
            f"they differ in GPU, driver or TensorRT ({'; '.join(sorted(str(kind) for kind in kinds))})",
            "use workers of one kind, and run each kind on its own",
            code="executor-gpus-mixed",
            names=sorted({kind[0] for kind in kinds}),
        )
