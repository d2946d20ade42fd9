"""JupyterLab on a free port with its own settings, and a page of headless Chromium in it."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
START_SECONDS = 120


def pytest_ignore_collect(config):
    """Do not import these tests where they are not asked for: reading notebooks takes seconds to import."""
    return True if "not browser" in config.option.markexpr else None


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def chromium():
    """The browser: the one CHROMIUM names, else the first one on the path."""
    named = os.environ.get("CHROMIUM")
    path = named or next(filter(None, map(shutil.which, BROWSERS)), None)
    if not path or not Path(path).exists():
        pytest.fail(
            f"no Chromium was found ({named or ', '.join(BROWSERS)}): install it (on Debian: apt-get install chromium) "
            "or name it in the environment variable CHROMIUM"
        )
    return path


@pytest.fixture(scope="session")
def page_maker(chromium):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Root in a container can't use the sandbox; only pages of this machine are opened.
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """JupyterLab in a temporary folder: its address and the folder of its notebooks."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "notebooks").mkdir()
    settings = folder / "settings" / "@jupyterlab"
    for plugin, text in SETTINGS.items():
        (settings / plugin).parent.mkdir(parents=True, exist_ok=True)
        (settings / f"{plugin}.jupyterlab-settings").write_text(text)
    page_config = folder / "config" / "labconfig" / "page_config.json"
    page_config.parent.mkdir(parents=True)
    page_config.write_text(json.dumps({"disabledExtensions": {SPLASH: True}}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    environment = {**os.environ, **{name: str(folder / place) for name, place in places.items()}}
    environment |= {"JUPYTER_PATH": str(Path(sys.prefix, "share", "jupyter")), "JUPYTER_PREFER_ENV_PATH": "1"}
    options = {
        "ip": "127.0.0.1", "port": port, "port_retries": 0, "open_browser": False, "allow_root": True,
        "root_dir": folder / "notebooks",
    }  # fmt: skip
    command = [sys.executable, "-m", "jupyterlab", "--IdentityProvider.token=secret", "--expose-app-in-browser"]
    command += [f"--ServerApp.{name}={value}" for name, value in options.items()]
    log = folder / "log.txt"
    with log.open("w") as sink:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=sink, stderr=subprocess.STDOUT)
    try:
        _wait(f"http://127.0.0.1:{port}/api/status?token=secret", process, log)
        yield f"http://127.0.0.1:{port}", folder / "notebooks"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


SETTINGS = {
    # The page follows the browser's light or dark mode.
    "apputils-extension/themes": '{"adaptive-theme": true}',
    "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
    # All cells are in the page, also those not in view.
    "notebook-extension/tracker": '{"windowingMode": "none", "autoStartDefaultKernel": true}',
    "docmanager-extension/plugin": '{"autosave": false}',
}
# JupyterLab shows it at each change of theme and removes it 200 ms later; after two changes within that time it is gone
# at the second removal, and the page reports an error.
SPLASH = "@jupyterlab/apputils-extension:splash"


def _wait(address, process, log):
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"JupyterLab did not start:\n{log.read_text()}")
            time.sleep(0.2)


@pytest.fixture(scope="session")
def opened_lab(server, page_maker):
    """JupyterLab with one notebook and one kernel, whose cells each test replaces by its own."""
    from lab import Lab

    address, folder = server
    context = page_maker.new_context(viewport={"width": 1360, "height": 1000})
    opened = Lab(context.new_page(), address, folder)
    yield opened
    opened.close()
    context.close()


@pytest.fixture
def lab(opened_lab):
    """`opened_lab` for one test, which fails where its page reported an error."""
    opened_lab.errors.clear()
    yield opened_lab
    assert opened_lab.errors == []


@pytest.fixture(scope="session")
def screenshots():
    """Folder of the screenshots: runs/browser in the repository."""
    folder = Path(__file__).resolve().parents[2] / "runs" / "browser"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
