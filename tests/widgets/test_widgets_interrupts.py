"""The interrupt button of a kernel in which a job runs and no cell does."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator

import pytest

from trtkit.widgets.ui import jobs as interrupts

START = """
import signal, time
from trtkit.progress import Work
from trtkit.widgets.ui.jobs import Job
def slow(seconds, progress, cancel):
    begun = time.monotonic()
    while time.monotonic() < begun + seconds:
        Work(progress, cancel).step("wait", 0)
        time.sleep(0.01)
job = Job("waiting")
"""


@pytest.fixture
def kernel() -> Iterator[tuple[Callable[[str], str], Callable[[], None]]]:
    """Runs a cell and gives what it printed; presses the interrupt button."""
    manager_module = pytest.importorskip("jupyter_client.manager")
    manager = manager_module.KernelManager()
    manager.kernel_cmd = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=120)

    def run(code: str) -> str:
        printed: list[str] = []

        def hear(message: dict[str, dict[str, str]]) -> None:
            printed.append(message["content"].get("text", "") + message["content"].get("evalue", ""))

        client.execute_interactive(code, output_hook=hear, timeout=120)
        return "".join(printed).strip()

    yield run, manager.interrupt_kernel
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def test_it_cancels_the_job_and_the_kernel_goes_on(
    kernel: tuple[Callable[[str], str], Callable[[], None]],
) -> None:
    run, interrupt = kernel
    run(START)
    run("job.start(slow, 60)")
    # Ours goes in between two messages, a moment after the cell.
    time.sleep(1)
    interrupt()
    assert run("job.wait(30); print(job.state)") == "cancelled"
    # While a cell runs the button is the cell's, and the job goes on.
    run("job.start(slow, 60)")
    assert (
        run("try:\n    signal.raise_signal(signal.SIGINT)\nexcept KeyboardInterrupt:\n    print('stopped')")
        == "stopped"
    )
    assert run("print(job.state); job.cancel(); job.wait(30)").startswith("running")
    # With nothing to stop, the button does what it did before.
    time.sleep(1)
    assert run("import trtkit.widgets.ui.jobs as i; print(i._watched)") == "[]"
    interrupt()
    assert run("print('alive')") == "alive"


def test_outside_a_kernel_nothing_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)

    class Running:
        running = True

        def cancel(self) -> None:
            raise AssertionError

    interrupts.cancel_on_interrupt(Running())
    assert interrupts._interruptible_jobs == []
