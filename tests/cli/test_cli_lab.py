"""`trtkit lab`: JupyterLab on a checkout's notebooks, or on copies, which are the user's own."""

import importlib.util
import os
import signal
import sys
from pathlib import Path

import pytest
from raising import raises

from trtkit.cli import lab_command, main
from trtkit.cli.lab_command import COPIES, copy_notebooks, find_notebooks
from trtkit.errors import CapabilityError, OutputError

NAMES = [path.name for path in sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))]


def set_jupyterlab(monkeypatch, found):
    """JupyterLab is found or not; other packages, which libraries look for meanwhile, are as they are."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *more: found if name == "jupyterlab" else find(name, *more)
    )


@pytest.fixture
def opened(monkeypatch, tmp_path):
    """The calls of JupyterLab, none of which starts it, from an empty current folder."""
    calls = []

    class Server:
        def __init__(self, words, *, cwd):
            calls.append((words, cwd))

        def __enter__(self):
            return self

        def __exit__(self, *error):
            os.kill(os.getpid(), signal.SIGTERM)

        def terminate(self):
            calls.append("terminated")

    monkeypatch.setattr(lab_command.subprocess, "Popen", Server)
    set_jupyterlab(monkeypatch, object())
    monkeypatch.chdir(tmp_path)
    return calls


@pytest.fixture
def wheel(monkeypatch, tmp_path):
    """A package as a wheel installs it, with two notebooks."""
    package = tmp_path / "site-packages" / "trtkit"
    (package / "notebooks").mkdir(parents=True)
    for name in ("01_a.ipynb", "02_b.ipynb"):
        (package / "notebooks" / name).write_text(name)
    monkeypatch.setattr(lab_command, "PACKAGE", package)
    return package


def test_lab_opens_copies_of_the_notebooks_and_passes_options_to_jupyterlab(opened):
    assert main(["lab", "--no-browser", "--port=9999"]) == 0
    # A signal to this process stops the server.
    assert opened == [([sys.executable, "-m", "jupyterlab", "--no-browser", "--port=9999"], COPIES), "terminated"]
    assert sorted(path.name for path in COPIES.iterdir()) == NAMES


def test_lab_opens_the_notebooks_of_a_checkout_in_place(opened):
    Path("notebooks").mkdir()
    Path("notebooks", NAMES[0]).write_text("mine")
    assert main(["lab"]) == 0
    assert opened[0][1] == Path("notebooks")
    assert [path.name for path in Path().iterdir()] == ["notebooks"]


def test_another_folder_of_that_name_is_not_a_checkout(opened):
    Path("notebooks").mkdir()
    assert main(["lab"]) == 0
    assert opened[0][1] == COPIES


def test_existing_copies_stay_as_they_are(wheel, tmp_path, opened, capsys):
    assert main(["lab", "--output", "mine"]) == 0
    Path("mine", "01_a.ipynb").write_text("edited")
    Path("mine", "02_b.ipynb").unlink()
    assert main(["lab", "--output", "mine"]) == 0
    assert [path.read_text() for path in sorted(Path("mine").iterdir())] == ["edited", "02_b.ipynb"]
    assert "1 notebook copied" in capsys.readouterr().err
    assert copy_notebooks(tmp_path / "mine") == []


def test_the_package_s_own_notebooks_are_never_edited(wheel, monkeypatch, opened):
    with raises(OutputError, "cli-notebooks-in-package", path=wheel / "notebooks"):
        copy_notebooks(wheel / "notebooks")
    monkeypatch.chdir(wheel)
    assert main(["lab"]) == 2
    assert not opened


def test_an_installation_without_notebooks(wheel):
    for path in find_notebooks():
        path.unlink()
    with raises(CapabilityError, "cli-notebooks-missing"):
        find_notebooks()


def test_a_folder_that_is_a_file(wheel, opened, capsys):
    Path("mine").write_text("")
    assert main(["lab", "--output", "mine"]) == 2
    assert not opened


def test_lab_without_jupyterlab(monkeypatch, capsys):
    set_jupyterlab(monkeypatch, None)
    assert main(["lab"]) == 2
    assert "pip install 'trtkit[notebook]'" in capsys.readouterr().err
