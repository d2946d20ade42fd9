"""The notebooks for tests: their files, their fast values, and a run in a clean copy."""

import os
import shutil
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
CHAPTERS = sorted(FOLDER.glob("*.ipynb"))

TIMEOUT = 900
"""Longest time of a cell, s."""


def read(path):
    import nbformat

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
    import nbformat

    index, _ = find_parameters(notebook)
    values = {**read_fast_values(notebook), **more}
    lines = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    notebook.cells.insert(index + 1, nbformat.v4.new_code_cell(f"{lines}\n{MEASURE_SHORTLY}", id="fast"))
    return notebook


MEASURE_SHORTLY = """\
from trtkit.widgets.wizard import actions
actions.SECONDS = 0.1
del actions
"""
"""The wizard has no setting for how long it measures latency."""

RESET = """\
import os, sys
get_ipython().run_line_magic("reset", "-f")
import os, sys
if "trtkit" in sys.modules:
    import ipywidgets, polars
    from trtkit.backends import capabilities
    from trtkit.plotting import notebook
    capabilities.import_bindings.cache_clear()
    capabilities.probe.cache_clear()
    ipywidgets.Widget.close_all()
    polars.Config.restore_defaults()
    notebook._library_cells.clear()
for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
    if {without_tensorrt}:
        sys.modules[name] = None
    elif sys.modules.get(name, True) is None:
        del sys.modules[name]
os.chdir({folder!r})
get_ipython().run_line_magic("reset", "-f")
"""
"""Makes a kernel as good as new: no names, widgets or settings of another notebook; TensorRT installed or not."""


class Kernel:
    """One kernel for several notebooks: starting it and importing PyTorch takes longer than many a cell."""

    def __init__(self):
        # These take seconds to import, in every worker that collects tests.
        import nbformat
        from nbclient import NotebookClient

        # The kernel of this environment, not one that the user has installed.
        os.environ["JUPYTER_PATH"] = str(Path(sys.prefix, "share", "jupyter"))
        self._owner = NotebookClient(nbformat.v4.new_notebook(), kernel_name="python3")
        self._owner.create_kernel_manager()
        self._owner.start_new_kernel()

    def run(self, path, folder, *, without_tensorrt=False, **more):
        """Execute a notebook in a copy of the folder of notebooks, as after a clean checkout.

        Args:
            path: The notebook.
            folder: An empty folder.
            without_tensorrt: Let no TensorRT be installed.
            **more: Values in addition to the fast ones.

        Returns:
            The executed notebook.
        """
        import nbformat

        copy = Path(shutil.copytree(FOLDER, folder / "notebooks", ignore=shutil.ignore_patterns("runs", ".ipynb*")))
        notebook = insert_fast_values(read(copy / path.name), **more)
        notebook.cells.insert(
            0, nbformat.v4.new_code_cell(RESET.format(folder=str(copy), without_tensorrt=without_tensorrt), id="reset")
        )
        return self._execute(notebook)

    def run_cells(self, sources):
        """Execute the sources of cells, and return the cells."""
        import nbformat

        return self._execute(
            nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in sources])
        ).cells

    def _execute(self, notebook):
        from nbclient import NotebookClient

        client = NotebookClient(notebook, timeout=TIMEOUT, km=self._owner.km)
        try:
            return client.execute()
        finally:
            if client.kc is not None:
                client.kc.stop_channels()

    def close(self):
        """Stop the kernel."""
        self._owner._cleanup_kernel()


def list_outputs(notebook):
    return [output for cell in list_code_cells(notebook) for output in cell.outputs]


def list_data(notebook, kind):
    """The outputs of one MIME type."""
    return [output.data[kind] for output in list_outputs(notebook) if kind in output.get("data", {})]
