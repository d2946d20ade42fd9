"""How long the wizard takes to appear; run by hand. The tuner's redraw is timed by `tuner.py`.

    python benchmarks/widgets.py

Once in fresh processes, from `import trtkit` to the finished widget, and once in JupyterLab in headless Chromium, from
running the cell in a fresh kernel to the button that a user presses first. Results go to `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from records import about, line_of, table, write

LIMIT_S = 1.5
FRESH = """import time; begun = time.perf_counter()
import trtkit as tk
imported = time.perf_counter() - begun
found = tk.wizard()
print(imported, time.perf_counter() - begun, time.process_time())"""
CELL = "import trtkit as tk\ntk.wizard()"
# Runs the cell and waits, in the page itself, for the button to have a size.
APPEARS = """async () => {
  const begun = performance.now();
  window.jupyterapp.commands.execute('notebook:run-all-cells');
  for (;;) {
    const button = document.querySelector('.jp-Notebook button.trtkit-read-model');
    if (button && button.getBoundingClientRect().width > 0) return (performance.now() - begun) / 1000;
    await new Promise((next) => setTimeout(next, 10));
  }
}"""
IDLE = "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"


def in_processes(rounds: int) -> dict[str, list[float]]:
    """Seconds of `import trtkit`, until the widget is there, and of the processor alone."""
    names = ("import trtkit", "the widget is made", "processor time of the whole process")
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        answer = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, check=True).stdout
        for name, value in zip(found, answer.split(), strict=True):
            found[name].append(float(value))
    return found


@contextlib.contextmanager
def lab(folder: Path) -> Iterator[str]:
    """JupyterLab on a free port, with settings of its own; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}",
        "--IdentityProvider.token=secret", "--expose-app-in-browser", f"--ServerApp.root_dir={folder}",
    ]  # fmt: skip
    with (folder / "lab.log").open("w") as log:
        server = subprocess.Popen(command, env={**os.environ, **own}, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait()


def in_the_browser(rounds: int, chromium: str) -> list[float]:
    """Seconds from running the cell to the button, each with a fresh kernel."""
    from playwright.sync_api import sync_playwright

    taken = []
    with tempfile.TemporaryDirectory() as place, lab(Path(place)) as address, sync_playwright() as play:
        cell = {"cell_type": "code", "id": "a", "metadata": {}, "source": CELL, "outputs": [], "execution_count": None}
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        whole = {"cells": [cell], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(120_000)
        for number in range(rounds):
            (Path(place) / f"{number}.ipynb").write_text(json.dumps(whole))
            page.goto(f"{address}/lab/workspaces/w{number}/tree/{number}.ipynb?token=secret&reset")
            page.wait_for_function(IDLE)
            taken.append(page.evaluate(APPEARS))
            page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
        browser.close()
    return taken


def spread(times: Sequence[float]) -> dict[str, float | int]:
    return {"median": statistics.median(times), "least": min(times), "most": max(times), "runs": len(times)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--chromium", default=shutil.which("chromium"), help="the browser; found on the path if left out"
    )
    values = parser.parse_args()
    in_processes(1)
    found: dict[str, Any] = {name: spread(times) for name, times in in_processes(values.rounds).items()}
    if values.chromium:
        found["the button is there, in JupyterLab"] = spread(in_the_browser(values.rounds, values.chromium))
    provenance = {**about(f"--rounds {values.rounds}"), "load": os.getloadavg()[0], "niceness": os.nice(0)}
    rows = [[name, *(f"{one[key]:.2f}" for key in ("median", "least", "most"))] for name, one in found.items()]
    lines = [
        "# The wizard appears",
        "",
        f"Seconds in a fresh process or kernel, {values.rounds} runs each; {LIMIT_S} s are allowed.",
        "",
        *table(["until", "median, s", "least, s", "most, s"], rows),
        "",
        f"`{provenance['command']}`",
        "",
        f"{line_of(provenance)} Load average {provenance['load']:.1f}, niceness {provenance['niceness']}.",
    ]
    write("widgets", {"seconds": found, **provenance}, lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
