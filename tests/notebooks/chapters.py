"""The notebooks for tests: their files, their fast values, and a run in a clean copy."""

import os
import shutil
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
CHAPTERS = sorted(FOLDER.glob("*.ipynb"))

TIMEOUT = 900
"""Longest time of a cell, s."""


def read(path):
    return nbformat.read(path, as_version=4)


def list_code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def find_parameters(notebook):
    """The parameters cell and its index."""
    ((index, cell),) = [
        (index, cell) for index, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())
    ]
    return index, cell


def read_fast_values(notebook):
    """The values that a notebook declares for tests, by name."""
    return notebook.metadata["trtkit"]["fast"]


def insert_fast_values(notebook, **more):
    """Insert a cell with the fast values after the parameters cell."""
    index, _ = find_parameters(notebook)
    values = {**read_fast_values(notebook), **more}
    lines = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    notebook.cells.insert(index + 1, nbformat.v4.new_code_cell(lines, id="fast"))
    return notebook


def run(path, folder, **more):
    """Execute a notebook in a copy of the folder of notebooks, as after a clean checkout.

    Args:
        path: The notebook.
        folder: An empty folder.
        **more: Values in addition to the fast ones.

    Returns:
        The executed notebook.
    """
    copy = Path(shutil.copytree(FOLDER, folder / "notebooks", ignore=shutil.ignore_patterns("runs", ".ipynb*")))
    notebook = insert_fast_values(read(copy / path.name), **more)
    # Use the kernel of this environment, not one that the user has installed.
    os.environ["JUPYTER_PATH"] = str(Path(sys.prefix, "share", "jupyter"))
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT,
        kernel_name="python3",
        resources={"metadata": {"path": str(copy)}},
    )
    return client.execute()


def list_outputs(notebook):
    return [output for cell in list_code_cells(notebook) for output in cell.outputs]


def list_data(notebook, kind):
    """The outputs of one MIME type."""
    return [output.data[kind] for output in list_outputs(notebook) if kind in output.get("data", {})]
