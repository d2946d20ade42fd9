"""JupyterLab as a user has it: notebooks are opened, cells run, widgets clicked."""

import cv2
import nbformat
import numpy as np
from playwright.sync_api import expect

SLOW = 180_000
"""Milliseconds that the slowest single step (reading a model on busy cores) may take."""

# What a kernel on busy cores shows, it shows late.
expect.set_options(timeout=SLOW)


class Lab:
    """One page of JupyterLab.

    Args:
        page: Playwright's.
        address: The server.
        folder: Where its notebooks lie.
    """

    def __init__(self, page, address, folder):
        self.page, self.address, self.folder = page, address, folder
        self.page.set_default_timeout(SLOW)
        self.errors = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self, notebook, name):
        """Write a notebook to the server's folder and open it, its kernel ready.

        Args:
            notebook: From nbformat, or a list of cells' code.
            name: File name without ending.
        """
        if isinstance(notebook, (list, tuple)):
            cells = [nbformat.v4.new_code_cell(code, id=f"cell-{place}") for place, code in enumerate(notebook)]
            kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
            notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
        nbformat.write(notebook, self.folder / f"{name}.ipynb")
        self.page.goto(f"{self.address}/lab/workspaces/{name}/tree/{name}.ipynb?token=secret&reset")
        self.page.wait_for_selector(".jp-Notebook .jp-Cell")
        self.page.wait_for_function(
            "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
        )

    def run_all(self):
        """Run every cell and wait until the kernel is idle again."""
        self.page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
        self.wait_idle()

    def wait_idle(self):
        """Wait until every cell that was run has its number."""
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
        """Put code into a new last cell, run it, and give what it shows as text."""
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

    def save(self):
        """Save the notebook as it is shown, and read it."""
        name = self.page.evaluate(
            """async () => {
              await window.jupyterapp.commands.execute('docmanager:save');
              return window.jupyterapp.shell.currentWidget.context.path;
            }"""
        )
        return nbformat.read(self.folder / name, as_version=4)

    def find(self, name):
        """A control or part of a widget by its class, such as "next" for `.trtkit-next`."""
        return self.page.locator(f".jp-Notebook .trtkit-{name}")

    def fill(self, name, text):
        """Type into a text control and leave it."""
        box = self.find(name).locator("input")
        box.fill(text)
        box.press("Tab")

    def click(self, name):
        """Click a button."""
        self.find(name).click()

    def theme(self, scheme):
        """Let the browser ask for "light" or "dark" pages."""
        self.page.emulate_media(color_scheme=scheme)
        self.page.wait_for_function(
            "light => document.body.dataset.jpThemeLight === light", arg=str(scheme == "light").lower()
        )

    def both_themes(self, name, folder, called):
        """Images of a part in light and dark, after checking that each is what it says.

        Args:
            name: As `find` takes it.
            folder: Where `<called>-light.png` and `<called>-dark.png` go.
            called: What to call them.
        """
        shades = {}
        for scheme in ("light", "dark"):
            self.theme(scheme)
            path = folder / f"{called}-{scheme}.png"
            self.image(self.find(name), path)
            gray = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
            # What there is most of is the page; ink is told by how far the other end of the grays lies.
            shades[scheme] = (float(np.median(gray)), float(np.ptp(np.percentile(gray, [0.5, 99.5]))))
        assert shades["light"][0] > 200 > 60 > shades["dark"][0], shades
        assert min(contrast for _, contrast in shades.values()) > 120, shades

    def image(self, locator, path):
        """A screenshot of a part of the page, all of it, whatever the window shows."""
        size = self.page.viewport_size
        locator.scroll_into_view_if_needed()
        tall = int(locator.bounding_box()["height"]) + 400
        self.page.set_viewport_size({"width": size["width"], "height": max(size["height"], tall)})
        locator.scroll_into_view_if_needed()
        locator.screenshot(path=str(path), animations="disabled")
        self.page.set_viewport_size(size)

    def close(self):
        """Stop the kernel, so that no test's work slows the next."""
        self.page.evaluate(
            "async () => { await window.jupyterapp?.shell.currentWidget?.sessionContext?.shutdown?.(); }"
        )
