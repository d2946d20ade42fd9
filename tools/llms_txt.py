"""llms.txt: what trtkit is, its verbs and commands, and where the rest is written, for language models (llmstxt.org).

usage: python tools/llms_txt.py            write llms.txt from the package's docstrings and commands
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path

import trtkit
from trtkit.cli import COMMANDS

__all__ = ["FILE", "list_verbs", "render"]

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "llms.txt"

HEAD = """\
# trtkit

> Python package and command line that take a trained YOLO or RT-DETR model (.pt, .onnx, torch.nn.Module) to TensorRT
> engines and ONNX files in FP32, FP16 and INT8, and show what each precision costs in accuracy and buys in latency.
> Apache-2.0, Python 3.10 to 3.13; `import trtkit as tk`. Works without a GPU: accuracy then comes from ONNX Runtime.

- Precision is in the ONNX graph (typed FP16, Q/DQ): one file for TensorRT 8.6 to 11, TensorRT-RTX and ONNX Runtime.
- A checkpoint's pickle is never run, nothing is downloaded unless asked, nothing is sent.
- A verb returns a frozen dataclass with frame() (polars), plot() (plotly), save(folder) and load(folder), or a file.
- Errors are of type tk.TrtkitError, with .code and .fields. An argument means the same in every verb and command.
- Try it: `trtkit demo` (embedded model and images), `trtkit doctor` (what this machine can build and run).
- The most frequent question, whether INT8 is worth it: `tk.compare(model, data).verdicts["int8"]`, or
  `trtkit compare MODEL DATA --gate int8` (exit status 0 ship, 1 don't ship, 3 can't tell, 2 error).
"""

DOCUMENTS = {
    "README.md": "start, what each verb returns, model families, measured results, limits",
    "README.zh-CN.md": "the same in Chinese",
    "ARCHITECTURE.md": "layers, and where to add an algorithm, backend, task, family or target",
    "CHANGELOG.md": "behavior and names that changed",
    "docs/verbs.md": "an example of each verb",
    "docs/decision.md": "INT8 or FP16: how to decide",
    "docs/errors/index.md": "frequent error messages of TensorRT, trtexec, Triton and Ultralytics, with their cures",
    "docs/scale.md": "executor= and --scheduler: Dask workers, SLURM, Kubernetes",
    "docs/glossary.md": "terms",
    "docs/tools.md": "what Ultralytics' export, ModelOpt, Polygraphy, trtexec and TREx do",
    "docs/benchmarks.md": "measured accuracy and latency, and how",
    "docs/licenses.md": "licenses of packages and embedded files",
    "tests/public_api.txt": "every public name with its signature, fields and methods",
}


def list_verbs() -> Iterator[tuple[str, str]]:
    """The public functions with the first sentence of their docstrings, in the order of their names."""
    for name in sorted(dir(trtkit)):
        value = getattr(trtkit, name)
        if inspect.isfunction(value):
            text = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
            yield name, re.split(r"(?<=[a-z)`])\. ", text)[0].rstrip(".")


def render() -> str:
    """The text of llms.txt."""
    lines = [HEAD, "## Verbs", "", *(f"- `tk.{name}`: {text}" for name, text in list_verbs()), ""]
    lines += ["## Commands", ""]
    lines += [
        f"- `{' '.join(filter(None, ('trtkit', name, usage)))}`: {text}" for name, (_, usage, text) in COMMANDS.items()
    ]
    lines += ["", "## Docs", "", *(f"- [{path}]({path}): {text}" for path, text in DOCUMENTS.items()), ""]
    lines += ["## Notebooks", ""]
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        title, goal = re.findall(
            r"^# (.+)\n\n\*(.+)\*", "".join(json.loads(path.read_text("utf-8"))["cells"][0]["source"])
        )[0]
        lines.append(f"- [{title}](notebooks/{path.name}): {goal}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    FILE.write_text(render(), encoding="utf-8")
