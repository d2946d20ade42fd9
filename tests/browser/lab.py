"""Drives JupyterLab: opens notebooks, runs cells, clicks widgets."""

import cv2
import nbformat
import numpy as np
from playwright.sync_api import expect

SLOW = 180_000
"""Timeout of a single step, ms; reading a model on busy cores is the slowest."""

REPLACE_CELLS = """(cells) => {
  const notebook = window.jupyterapp.shell.currentWidget.content.model.sharedModel;
  notebook.transact(() => {
    notebook.deleteCellRange(0, notebook.cells.length);
    notebook.insertCells(0, cells.map((source) => ({ cell_type: "code", source, metadata: {}, outputs: [] })));
  });
}"""
HAS_OUTPUT = "text => JSON.stringify(window.jupyterapp.shell.currentWidget.content.model.toJSON()).includes(text)"

expect.set_options(timeout=SLOW)


class Lab:
    """One page of JupyterLab.

    Args:
        page: A Playwright page.
        address: The server's address.
        folder: The folder of its notebooks.
    """

    def __init__(self, page, address, folder):
        self.page, self.address, self.folder = page, address, folder
        self.page.set_default_timeout(SLOW)
        self.errors = []
        # By its stack an error of JupyterLab can be told from one of a widget.
        self.page.on("pageerror", lambda error: self.errors.append(error.stack or str(error)))

    def open(self, cells):
        """Show code cells in place of those before; the first time open a notebook and wait for its kernel.

        The kernel stays: starting one and importing PyTorch takes longer than most tests.

        Args:
            cells: Code.
        """
        if self.page.url.startswith(self.address):
            self.page.evaluate(REPLACE_CELLS, list(cells))
            return
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        new = [nbformat.v4.new_code_cell(code, id=f"cell-{place}") for place, code in enumerate(cells)]
        notebook = nbformat.v4.new_notebook(cells=new, metadata={"kernelspec": kernel})
        nbformat.write(notebook, self.folder / "tested.ipynb")
        self.page.goto(f"{self.address}/lab/workspaces/tested/tree/tested.ipynb?token=secret&reset")
        self.page.wait_for_selector(".jp-Notebook .jp-Cell")
        self.page.wait_for_function(
            "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
        )

    def restart(self):
        """Restart the kernel, so that the next figure is the first: that one brings plotly.js into the notebook."""
        self.page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.restartKernel()")
        self.wait_idle()

    def run_all(self):
        """Run every cell and wait until the kernel is idle again."""
        self.page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
        self.wait_idle()

    def wait_idle(self):
        """Wait until every run cell has its execution number."""
        self.page.wait_for_function(
            """() => {
              const panel = window.jupyterapp.shell.currentWidget;
              const cells = Array.from(panel.content.widgets).filter((cell) => cell.model.type === 'code');
              const waiting = cells.some((cell) => cell.model.executionState === 'running' || cell.node
                .querySelector('.jp-InputPrompt')?.textContent.includes('*'));
              return !waiting && panel.sessionContext.session.kernel.status === 'idle';
            }"""
        )

    def run_new_cell(self, code):
        """Run code in a new last cell and return its outputs as text."""
        self.page.evaluate(
            """async (code) => {
              const app = window.jupyterapp, panel = app.shell.currentWidget, notebook = panel.content;
              notebook.activeCellIndex = notebook.widgets.length - 1;
              await app.commands.execute('notebook:insert-cell-below');
              notebook.activeCell.model.sharedModel.setSource(code);
              await app.commands.execute('notebook:run-cell');
            }""",
            code,
        )
        self.wait_idle()
        return self.page.locator(".jp-Notebook .jp-Cell").last.locator(".jp-OutputArea-output").all_inner_texts()

    def wait_for_output(self, text):
        """Wait until the outputs that saving the notebook would keep hold a text."""
        self.page.wait_for_function(HAS_OUTPUT, arg=text, polling=200)

    def save(self):
        """Save the notebook and read it."""
        self.page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
        return nbformat.read(self.folder / self.name(), as_version=4)

    def name(self):
        """The notebook's file below `folder`."""
        return self.page.evaluate("() => window.jupyterapp.shell.currentWidget.context.path")

    def find(self, name):
        """A part of a widget by its CSS class, such as "next" for `.trtkit-next`."""
        return self.page.locator(f".jp-Notebook .trtkit-{name}")

    def fill(self, name, text):
        """Type into a text field and leave it."""
        box = self.find(name).locator("input")
        box.fill(text)
        box.press("Tab")

    def click(self, name):
        """Click a button."""
        self.find(name).click()

    def theme(self, scheme):
        """Switch the browser to "light" or "dark" mode."""
        self.page.emulate_media(color_scheme=scheme)
        self.page.wait_for_function(
            "light => document.body.dataset.jpThemeLight === light", arg=str(scheme == "light").lower()
        )

    def both_themes(self, name, folder, stem):
        """Take screenshots of a part in light and dark mode and check brightness and contrast of both.

        Args:
            name: As `find` takes it.
            folder: Folder of `<stem>-light.png` and `<stem>-dark.png`.
            stem: Start of the file names.
        """
        shades = {}
        for scheme in ("light", "dark"):
            self.theme(scheme)
            path = folder / f"{stem}-{scheme}.png"
            self.screenshot(self.find(name), path)
            gray = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
            # The median is the page's background; the range of the grays is the contrast of the text.
            shades[scheme] = (float(np.median(gray)), float(np.ptp(np.percentile(gray, [0.5, 99.5]))))
        assert shades["light"][0] > 200 > 60 > shades["dark"][0], shades
        assert min(contrast for _, contrast in shades.values()) > 120, shades

    def screenshot(self, locator, path):
        """Take a screenshot of a whole part of the page, also beyond the viewport."""
        size = self.page.viewport_size
        locator.scroll_into_view_if_needed()
        tall = int(locator.bounding_box()["height"]) + 400
        self.page.set_viewport_size({"width": size["width"], "height": max(size["height"], tall)})
        locator.scroll_into_view_if_needed()
        locator.screenshot(path=str(path), animations="disabled")
        self.page.set_viewport_size(size)

    def close(self):
        """Shut the kernel down."""
        self.page.evaluate(
            "async () => { await window.jupyterapp?.shell.currentWidget?.sessionContext?.shutdown?.(); }"
        )
