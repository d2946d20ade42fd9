"""The notebooks as data: where they are, what each declares for tests, and how one is run from a clean copy."""

import os
import shutil
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
CHAPTERS = sorted(FOLDER.glob("*.ipynb"))

# Far longer than any chapter takes with its fast values: what is slow here is found by hand, not by a timed test.
SECONDS = 900


def read(path):
    return nbformat.read(path, as_version=4)


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parameters_of(notebook):
    """The one cell that a reader changes, and its place."""
    ((place, cell),) = [
        (place, cell) for place, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())
    ]
    return place, cell


def fast_of(notebook):
    """The values that a notebook declares for tests, by name."""
    return notebook.metadata["trtkit"]["fast"]


def quickened(notebook, **more):
    """The notebook with its fast values put behind its settings."""
    place, _ = parameters_of(notebook)
    values = {**fast_of(notebook), **more}
    lines = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(lines, id="fast"))
    return notebook


def run(path, folder, **more):
    """Execute a chapter in a copy of the notebooks' folder, as a newcomer does after a clean checkout.

    Args:
        path: The notebook.
        folder: An empty folder.
        **more: Values beside the fast ones it declares.

    Returns:
        The executed notebook.
    """
    there = Path(shutil.copytree(FOLDER, folder / "notebooks", ignore=shutil.ignore_patterns("runs", ".ipynb*")))
    notebook = quickened(read(there / path.name), **more)
    # The kernel of this very environment, whatever kernels the user has.
    os.environ["JUPYTER_PATH"] = str(Path(sys.prefix, "share", "jupyter"))
    client = NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(there)}},
    )
    return client.execute()


def outputs_of(notebook):
    return [output for cell in code_of(notebook) for output in cell.outputs]


def shown(notebook, kind):
    """Everything of one MIME type that the notebook shows."""
    return [output.data[kind] for output in outputs_of(notebook) if kind in output.get("data", {})]
