"""Executed notebooks as pages: run once per content, outputs without copies of plotly.js."""

from __future__ import annotations

import base64
import copy
import hashlib
import html
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import nbformat
import numpy as np
from nbclient import NotebookClient

from documentation import package_hash

__all__ = ["CHAINS", "SOURCES", "execute_all", "find_key", "list_problems", "output_html", "page_markdown", "read"]

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "notebooks"
TIMEOUT = 600
"""Longest time of a cell, s."""

CHAINS = (("01_quickstart", "03_int8_vs_fp16", "05_five_tasks"),
          ("04_calibration_tuning", "02_export_wizard", "07_deployment", "06_inside_the_engine"))  # fmt: skip
"""Notebooks that run one after another; the chains run side by side. The third chapter loads what the first saved."""

LIBRARY = re.compile(r"<script type='text/plain' data-trtkit-library>[^<]*</script>")
"""plotly.js inside an output; the site has one copy for all pages."""

PNG = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=]{20000,})")
QUALITY = 85
"""Of JPEG."""

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""Colors and cursor movements of a terminal."""

QUIET = "--IPKernelApp.log_level=ERROR"
"""A kernel otherwise warns that its ports on this machine are not encrypted."""

Notebook = nbformat.NotebookNode


def read(stem: str) -> Notebook:
    """A notebook with the settings that the site runs it with, written into its settings cell.

    Args:
        stem: The file's name without its ending.
    """
    notebook = nbformat.read(SOURCES / f"{stem}.ipynb", as_version=4)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", ()):
            cell.source = _replace_values(cell.source, notebook.metadata["trtkit"].get("published", {}))
    return notebook


def _replace_values(source: str, values: Mapping[str, Any]) -> str:
    for name, value in values.items():
        shown = repr(tuple(value) if isinstance(value, list) else value)
        source, count = re.subn(rf"^({name} = )\S.*?(?=  #|$)", rf"\g<1>{shown}", source, flags=re.MULTILINE)
        if count != 1:
            raise SystemExit(f"the settings cell has no {name!r}")
    return source


def find_key(stem: str) -> str:
    """The content that decides a notebook's outputs: its cells, the package, and the notebooks before it in its chain.

    Args:
        stem: The file's name without its ending.
    """
    (chain,) = (chain for chain in CHAINS if stem in chain)
    content = hashlib.sha256(package_hash().encode())
    for earlier in chain[: chain.index(stem) + 1]:
        cells = [(cell.cell_type, cell.source) for cell in read(earlier).cells if cell.cell_type == "code"]
        content.update(json.dumps(cells).encode())
    return content.hexdigest()[:16]


def execute_all(folder: Path) -> dict[str, Notebook]:
    """Every notebook with its outputs; one whose content was executed before is read from `folder`.

    Args:
        folder: Keeps executed notebooks and the folder that they run in.

    Returns:
        The executed notebooks by stem, in the order of their names.
    """
    work = folder / "work"
    keys = {stem: find_key(stem) for chain in CHAINS for stem in chain}
    stored = {stem: folder / f"{stem}-{key}.ipynb" for stem, key in keys.items()}
    if not all(path.is_file() for path in stored.values()):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(SOURCES, work, ignore=shutil.ignore_patterns("runs", ".ipynb*"))
    # One thread each: the chains share the cores.
    os.environ.update({f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")})
    os.environ["JUPYTER_PATH"] = str(Path(sys.prefix, "share", "jupyter"))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))

    def run(chain: Sequence[str]) -> None:
        # All of a chain or nothing: a later notebook reads what an earlier one saved.
        if all(stored[stem].is_file() for stem in chain):
            return
        for stem in chain:
            begun = time.monotonic()
            notebook = NotebookClient(
                read(stem),
                timeout=TIMEOUT,
                kernel_name="python3",
                resources={"metadata": {"path": str(work)}},
                extra_arguments=[QUIET],
            ).execute()
            for old in folder.glob(f"{stem}-*.ipynb"):
                old.unlink()
            notebook.metadata["trtkit"]["seconds"] = round(time.monotonic() - begun, 1)
            nbformat.write(notebook, stored[stem])
            print(f"executed {stem} in {time.monotonic() - begun:.0f} s", flush=True)

    with ThreadPoolExecutor(len(CHAINS)) as pool:
        list(pool.map(run, CHAINS))
    return {stem: nbformat.read(stored[stem], as_version=4) for stem in sorted(stored)}


def list_problems(notebook: Notebook) -> Iterator[str]:
    """What an executed notebook may not show: errors, warnings, cells that did not run.

    Args:
        notebook: An executed notebook.
    """
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        if cell.execution_count is None:
            yield f"cell {cell.id} did not run"
        for output in cell.outputs:
            if output.output_type == "error":
                yield f"cell {cell.id} raised {output.ename}"
            elif output.get("name") == "stderr":
                yield f"cell {cell.id} wrote to stderr: {output.text[:200]}"


def page_markdown(stem: str, notebook: Notebook) -> tuple[str, dict[str, str]]:
    """A notebook as Markdown with empty elements for its outputs, and their HTML.

    Outputs come into the page after it was built: they are large, and no Markdown.

    Args:
        stem: The file's name without its ending.
        notebook: An executed notebook.

    Returns:
        The page and the outputs by the name in `data-output`.
    """
    parts, outputs = [], {}
    published = notebook.metadata["trtkit"].get("published", {})
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        elif cell.source.startswith("%"):
            parts.append(f"```ipython\n{cell.source}\n```")
        else:
            parts.append(f"```python\n{cell.source}\n```")
        if cell.get("outputs"):
            name = f"{stem}/{cell.id}"
            if shown := "\n".join(filter(None, map(output_html, _merge_streams(cell.outputs)))):
                outputs[name] = shown
                parts.append(f'<div class="notebook-output" data-output="{name}"></div>')
        if index == 0:
            parts.append(_describe_run(stem, published))
    return "\n\n".join(parts) + "\n", outputs


def _describe_run(stem: str, published: Mapping[str, Any]) -> str:
    changed = ", ".join(f"`{name}`" for name in published)
    smaller = (
        f" The settings {changed} are smaller than the file's, so that the build takes minutes." if changed else ""
    )
    return (
        '!!! note "Executed while this site was built"\n\n'
        f"    Everything below was computed on the processor of the build machine, without a GPU.{smaller}\n"
        f"    [Download the notebook](../notebooks/{stem}.ipynb) and run it with `trtkit lab`.\n"
    )


def _merge_streams(outputs: Sequence[Any]) -> list[Any]:
    merged: list[Any] = []
    for output in map(copy.deepcopy, outputs):
        if merged and output.output_type == "stream" == merged[-1].output_type and output.name == merged[-1].name:
            merged[-1].text += output.text
        else:
            merged.append(output)
    return merged


def output_html(output: Mapping[str, Any]) -> str:
    """One output as HTML, without plotly.js and without paths of this machine; "" where nothing shows.

    Args:
        output: An output of a cell.
    """
    if output["output_type"] == "stream":
        return f"<pre>{html.escape(_hide_paths(ESCAPE.sub('', output['text'])).rstrip())}</pre>"
    data = output.get("data", {})
    if text := LIBRARY.sub("", data.get("text/html", "")).strip():
        return PNG.sub(_shrink_image, _hide_paths(text))
    for kind in ("image/png", "image/jpeg"):
        if kind in data:
            return f'<img src="data:{kind};base64,{data[kind]}" alt="output">'
    if "text/html" in data or not data.get("text/plain", "").strip():
        return ""
    return f"<pre>{html.escape(_hide_paths(ESCAPE.sub('', data['text/plain'])))}</pre>"


def _shrink_image(match: re.Match[str]) -> str:
    """A drawn photograph as JPEG: a tenth of the PNG's size."""
    image = cv2.imdecode(np.frombuffer(base64.b64decode(match[1]), np.uint8), cv2.IMREAD_COLOR)
    encoded = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, QUALITY))[1].tobytes()
    return f"data:image/jpeg;base64,{base64.b64encode(encoded).decode()}"


def _hide_paths(text: str) -> str:
    return text.replace(f"{ROOT}{os.sep}", "").replace(str(ROOT), ".")
