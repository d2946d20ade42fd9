"""A kernel interrupt while a job and no cell runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator

import pytest

from trtkit.widgets.ui import jobs

START = """
import signal, time
from trtkit.progress import Reporter
from trtkit.widgets.ui.jobs import Job
def slow(seconds, progress, cancel):
    begun = time.monotonic()
    while time.monotonic() < begun + seconds:
        Reporter(progress, cancel).step("wait", 0)
        time.sleep(0.01)
job = Job("waiting")
"""


@pytest.fixture
def kernel() -> Iterator[tuple[Callable[[str], str], Callable[[], None]]]:
    """A function that runs a cell and returns its output, and one that interrupts the kernel."""
    manager_module = pytest.importorskip("jupyter_client.manager")
    manager = manager_module.KernelManager()
    manager.kernel_cmd = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=120)

    def run(code: str) -> str:
        printed: list[str] = []

        def receive(message: dict[str, dict[str, str]]) -> None:
            printed.append(message["content"].get("text", "") + message["content"].get("evalue", ""))

        client.execute_interactive(code, output_hook=receive, timeout=120)
        return "".join(printed).strip()

    yield run, manager.interrupt_kernel
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def test_an_interrupt_cancels_the_job_and_the_kernel_goes_on(
    kernel: tuple[Callable[[str], str], Callable[[], None]],
) -> None:
    run, interrupt = kernel
    run(START)
    run("job.start(slow, 60)")
    # The handler is installed between two messages, shortly after the cell.
    time.sleep(1)
    interrupt()
    assert run("job.wait(30); print(job.state)") == "cancelled"
    # While a cell runs, the interrupt is the cell's and the job goes on.
    run("job.start(slow, 60)")
    assert (
        run("try:\n    signal.raise_signal(signal.SIGINT)\nexcept KeyboardInterrupt:\n    print('stopped')")
        == "stopped"
    )
    assert run("print(job.state); job.cancel(); job.wait(30)").startswith("running")
    # Without a job the kernel's own handler is back.
    time.sleep(1)
    assert run("import trtkit.widgets.ui.jobs as i; print(i._interruptible_jobs)") == "[]"
    interrupt()
    assert run("print('alive')") == "alive"


def test_outside_a_kernel_no_handler_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)

    class Running:
        running = True

        def cancel(self) -> None:
            raise AssertionError

    jobs.cancel_on_interrupt(Running())
    assert jobs._interruptible_jobs == []
