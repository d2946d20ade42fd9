"""Children that end by themselves, are cancelled, or are interrupted together with their parent."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from raising import raises

from trtkit.child_process import describe_exit, run_child
from trtkit.errors import CancelledError
from trtkit.progress import Reporter


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that does what the file `do.py` in its folder says."""
    (tmp_path / "a_child.py").write_text("import sys\nexec(open(sys.argv[1] + '/do.py').read())")
    monkeypatch.syspath_prepend(tmp_path)
    return "a_child"


def test_the_last_lines_of_a_child_and_its_exit_are_returned(child: str, tmp_path: Path) -> None:
    (tmp_path / "do.py").write_text("print('a', 'ü', '', 'c', 'd', sep='\\n')\nsys.exit(3)")
    assert run_child(child, tmp_path, "build", Reporter()) == (3, "ü | c | d")
    assert (describe_exit(3), describe_exit(-11), describe_exit(-999)) == ("exit code 3", "SIGSEGV", "signal 999")


def test_a_child_that_ctrl_c_ended_first_is_a_cancelled_job(child: str, tmp_path: Path) -> None:
    """A terminal sends SIGINT to both, and the parent asks its cancellation token when the child is gone."""
    # A shell's jobs in the background ignore SIGINT, and so do their children.
    (tmp_path / "do.py").write_text(
        "import os, signal\nsignal.signal(signal.SIGINT, signal.SIG_DFL)\nos.kill(os.getpid(), signal.SIGINT)"
    )
    cancel = threading.Event()
    assert run_child(child, tmp_path, "build", Reporter(None, cancel))[0] != 0
    cancel.set()
    with raises(CancelledError, "cancelled"):
        run_child(child, tmp_path, "build", Reporter(None, cancel))
