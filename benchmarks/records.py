"""How benchmarks leave what they found: JSON for programs, Markdown for people; both name command and machine."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trtkit.progress import Event
from trtkit.results import describe_machine, package_versions
from trtkit.version import __version__
from trtkit.writing import write_bytes, write_json

__all__ = ["about", "about_engines", "earlier", "line_of", "of_gpu", "show", "table", "write"]

RESULTS = Path(__file__).resolve().parent / "results"


def about(arguments: str) -> dict[str, Any]:
    """Where a finding comes from: the command that made it, the machine and the versions.

    Args:
        arguments: The command's arguments as anybody would type them, without this machine's folders.
    """
    command = f"python benchmarks/{Path(sys.argv[0]).name} {arguments}"
    return {"command": command, "machine": describe_machine(), "versions": package_versions()}


def about_engines(command: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """Where engines come from that another machine built: as `about`, from one engine's `passport` and `cores`."""
    passport = row["passport"]
    gpu = f"{passport['gpu']} (driver {passport['driver']}, CUDA {passport['cuda']})"
    return {
        "command": command,
        "machine": {"processor": gpu, "cores": row["cores"]},
        "versions": {"TensorRT": passport["tensorrt"], "trtkit": passport["versions"].get("trtkit", __version__)},
    }


def of_gpu(name: str, row: Mapping[str, Any]) -> str:
    """What to call a record of engines: times of two GPUs have no place in one table."""
    return f"{name}-{re.sub(r'[^a-z0-9]+', '-', row['passport']['gpu'].lower()).strip('-')}"


def line_of(provenance: Mapping[str, Any]) -> str:
    """A provenance as one line of Markdown."""
    found = ", ".join(f"{name} {version}" for name, version in provenance["versions"].items())
    return f"{provenance['machine']['processor']}, {provenance['machine']['cores']} cores; {found}."


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, line by line."""
    return [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)]


def earlier(name: str) -> dict[str, Any]:
    """What `results/<name>.json` holds by now, {} where there is none."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write(name: str, content: Mapping[str, Any], lines: Sequence[str]) -> None:
    """Write `results/<name>.json` and `results/<name>.md`."""
    write_json(RESULTS / f"{name}.json", dict(content))
    write_bytes(RESULTS / f"{name}.md", ("\n".join(lines) + "\n").encode())
    print(f"wrote {name}.json and {name}.md")


def show(event: Event) -> None:
    """A progress that says when a step begins and ends."""
    if event.done in (0, event.total):
        print(event.stage, event.done, event.total, event.message, flush=True)
