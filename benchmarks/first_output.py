"""How long each notebook takes to its first useful output, with the values that it has; run by hand on an idle machine.

    python benchmarks/first_output.py                        # all seven, each stopped there
    python benchmarks/first_output.py 3 --saved FOLDER       # notebook 3 with what notebook 1 saved

From the start of the kernel to the first table, figure, image or widget; progress lines and what is printed do not
count. The limit is 15 s for notebook 1 and 60 s for the others, on two idle cores.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from records import about, line_of, table, write

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
LIMITS = {1: 15.0}
LIMIT = 60.0
"""Of the other notebooks, s."""

PROGRESS = "role='status'"


class FirstOutputError(Exception):
    """The first useful output is there; the rest of the notebook is of no interest."""


class Client(NotebookClient):
    """Runs a notebook up to its first useful output."""

    start: float
    found: tuple[int, str, float] | None = None

    def output(self, outs: Any, msg: Any, display_id: str, cell_index: int) -> Any:
        data = msg["content"].get("data", {})
        kinds = [kind for kind in data if kind != "text/plain"]
        if kinds and PROGRESS not in str(data.get("text/html", "")):
            self.found = (cell_index, kinds[0], time.monotonic() - self.start)
            raise FirstOutputError
        return super().output(outs, msg, display_id, cell_index)


def measure(path: Path, folder: Path, saved: str | None) -> dict[str, Any]:
    """The cell, kind and time of the first useful output.

    Args:
        path: The notebook.
        folder: Where it runs.
        saved: For notebook 3, the folder of notebook 1's comparison.
    """
    shutil.copy(path, folder)
    notebook = nbformat.read(folder / path.name, as_version=4)
    if saved is not None:
        index = next(n for n, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
        notebook.cells[index].source += f"\nsaved = {saved!r}"
    client = Client(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.start = time.monotonic()
    with contextlib.suppress(FirstOutputError), client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
    assert client.found is not None, path
    index, kind, seconds = client.found
    return {"notebook": path.stem, "cell": notebook.cells[index].id, "kind": kind, "seconds": seconds}


def main() -> None:
    """Measure the notebooks and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", type=int, help="notebooks [default: all]")
    parser.add_argument("--saved", type=os.path.abspath, help="folder of notebook 1's comparison, for notebook 3")
    parser.add_argument("--write", action="store_true", help="also write results/first_output.json and .md")
    values = parser.parse_args()
    # asyncio reports what still waited for the kernel.
    logging.disable(logging.CRITICAL)
    os.environ["JUPYTER_PATH"] = str(Path(sys.prefix, "share", "jupyter"))
    rows = []
    for number in values.numbers or range(1, len(NOTEBOOKS) + 1):
        with tempfile.TemporaryDirectory() as folder:
            row = measure(NOTEBOOKS[number - 1], Path(folder), values.saved if number == 3 else None)
        row["limit"] = LIMITS.get(number, LIMIT)
        rows.append(row)
        print(f"{row['notebook']}: {row['seconds']:.1f} s ({row['cell']}, {row['kind']})", flush=True)
    if values.write:
        content = {**about(" ".join(map(str, values.numbers))), "notebooks": rows}
        cells = [[row["notebook"], f"{row['seconds']:.1f}", f"{row['limit']:.0f}", row["cell"]] for row in rows]
        text = ["# First useful output of the notebooks", "", line_of(content), ""]
        write("first_output", content, [*text, *table(["notebook", "s", "limit, s", "cell"], cells)])
    sys.exit(any(row["seconds"] > row["limit"] for row in rows))


if __name__ == "__main__":
    main()
