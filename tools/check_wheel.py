"""Build sdist and wheel, install the wheel where nothing else is, and use it as someone without a checkout would.

usage: python tools/check_wheel.py [FOLDER]    run it in the environment of `make install`; FOLDER [dist] gets the files

The wheel is built from the sdist. Its environment has no packages but those that the wheel requires (with the extras
`notebook` and, where it is installed, `rtx`): their files are links to those that are installed here, so that nothing
is downloaded, and a package that is imported but not declared is missing. There it runs `trtkit demo` on few images,
starts `trtkit lab` and stops it, and executes a copy of the first notebook.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import venv
import zipfile
from collections.abc import Iterator, Mapping
from email.parser import Parser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

__all__ = ["build", "install", "link_packages", "list_requirements", "main"]

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("notebook", "rtx") if importlib.util.find_spec("tensorrt_rtx") else ("notebook",)
FEW = {"--eval-images": "40", "--calibration-images": "8"}
NOTEBOOK = "01_quickstart.ipynb"
START_SECONDS = 60.0
"""The longest that JupyterLab may take to answer, s."""


def main() -> None:
    """Build, install, and use."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "dist")
    wheel = build(parser.parse_args().folder)
    with tempfile.TemporaryDirectory() as temporary:
        environment = install(wheel, Path(temporary, "environment"))
        here = Path(temporary, "user")
        here.mkdir()
        for name, step in {"demo": run_demo, "lab": run_lab, "notebook": run_notebook}.items():
            start = time.monotonic()
            step(environment, here)
            print(f"{wheel.name}: {name} works ({time.monotonic() - start:.0f} s)", flush=True)


def build(folder: Path) -> Path:
    """The wheel, built from the sdist, which is built from the checkout.

    Args:
        folder: Where both are written.
    """
    with tempfile.TemporaryDirectory() as made:
        run([sys.executable, "-m", "build", "--outdir", made, str(ROOT)])
        (sdist,), (wheel,) = Path(made).glob("*.tar.gz"), Path(made).glob("*.whl")
        folder.mkdir(parents=True, exist_ok=True)
        for path in (sdist, wheel):
            (folder / path.name).write_bytes(path.read_bytes())
        return folder / wheel.name


def install(wheel: Path, folder: Path) -> dict[str, str]:
    """Install a wheel into a new virtual environment that links what it requires.

    Args:
        wheel: The wheel.
        folder: The environment, which must not exist.

    Returns:
        The variables of a process that runs in it.
    """
    venv.create(folder, symlinks=True, with_pip=False)
    python = folder / "bin" / "python"
    site = Path(run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        required = Parser().parsestr(archive.read(metadata).decode()).get_all("Requires-Dist", [])
    packages = list_requirements(required, EXTRAS)
    files = link_packages(packages, site)
    print(f"{wheel.name}: {len(packages)} packages, {files} files linked", flush=True)
    run(
        [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(python),
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            str(wheel),
        ]
    )
    home = folder / "home"
    home.mkdir()
    kept = {name: os.environ[name] for name in ("LANG", "LC_ALL", "TMPDIR") if name in os.environ}
    return {**kept, "PATH": f"{folder / 'bin'}{os.pathsep}{os.defpath}", "HOME": str(home), "PYTHONNOUSERSITE": "1"}


def list_requirements(required: list[str], extras: tuple[str, ...]) -> dict[str, importlib.metadata.Distribution]:
    """The installed distributions that requirements name, and those that these require.

    Args:
        required: Requirements with markers.
        extras: Extras that count.

    Raises:
        PackageNotFoundError: A requirement is not installed.
    """
    packages: dict[str, importlib.metadata.Distribution] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(text, extra) for extra in ("", *extras) for text in required]
    while waiting:
        text, extra = waiting.pop()
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        packages[name] = importlib.metadata.distribution(name)
        for more in ("", *requirement.extras):
            if (name, more) not in seen:
                seen.add((name, more))
                waiting += [(line, more) for line in packages[name].requires or ()]
    return packages


def link_packages(packages: Mapping[str, importlib.metadata.Distribution], site: Path) -> int:
    """Link the files of distributions into a folder of packages; commands, which name their Python, are left out.

    Files outside it, such as JupyterLab's pages, are copied: Jupyter's server refuses links.

    Args:
        packages: The distributions.
        site: The folder.

    Returns:
        The number of files.
    """
    root, count, folders = site.parents[2], 0, set()
    for distribution in packages.values():
        for file in distribution.files or ():
            path = Path(os.path.normpath(site / file))
            source = Path(str(distribution.locate_file(file)))
            if root not in path.parents or path.parent == root / "bin" or not source.is_file():
                continue
            if path.parent not in folders:
                path.parent.mkdir(parents=True, exist_ok=True)
                folders.add(path.parent)
            if path.exists():
                continue
            if site in path.parents:
                path.symlink_to(os.path.abspath(source))  # noqa: PTH100 - a link to a link stays one
            else:
                shutil.copyfile(source, path)
            count += 1
    return count


def run(words: list[str], **settings: object) -> str:
    """The output of a command; what it printed is shown if it fails."""
    done = subprocess.run(words, capture_output=True, text=True, check=False, **settings)  # type: ignore[call-overload]
    if done.returncode:
        sys.exit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return str(done.stdout)


def run_demo(environment: dict[str, str], here: Path) -> None:
    """`trtkit demo` on few images, and that it is the wheel's."""
    python = ["python", "-c", "import trtkit; print(trtkit.__file__)"]
    package = run(python, cwd=here, env=environment).strip()
    if not package.startswith(environment["PATH"].partition(os.pathsep)[0].removesuffix("bin")):
        sys.exit(f"trtkit was imported from {package}")
    run(["trtkit", "demo", *(word for option in FEW.items() for word in option)], cwd=here, env=environment)
    if not (here / "runs" / "demo" / "report.html").stat().st_size:
        sys.exit("the demo's report is empty")


@contextlib.contextmanager
def started_lab(environment: dict[str, str], here: Path) -> Iterator[str]:
    """Yield the address of the server that `trtkit lab` starts, and stop it by a signal to `trtkit lab`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["trtkit", "lab", "--no-browser", "--allow-root", f"--port={port}", "--IdentityProvider.token="]
    with (here / "lab.log").open("w") as log:
        server = subprocess.Popen(words, cwd=here, env=environment, stdout=log, stderr=log)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=30)


def read_json(address: str) -> dict[str, object]:
    """What a server that is starting answers."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return dict(json.load(answer))
        except (urllib.error.URLError, ConnectionError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def check_page(address: str) -> None:
    """JupyterLab's page, and the scripts of its extensions, those of widgets among them, are served."""
    with urllib.request.urlopen(address, timeout=30) as answer:
        page = answer.read().decode()
    (config,) = re.findall(r'<script id="jupyter-config-data" type="application/json">(.*?)</script>', page, re.DOTALL)
    extensions = {one["name"]: one["load"] for one in json.loads(config)["federated_extensions"]}
    for name in ("@jupyter-widgets/jupyterlab-manager", "anywidget"):
        urllib.request.urlopen(f"{address}/extensions/{name}/{extensions[name]}", timeout=30).close()


def run_lab(environment: dict[str, str], here: Path) -> None:
    """`trtkit lab` shows copies of the notebooks, which open."""
    notebooks = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
    with started_lab(environment, here) as address:
        listed = read_json(f"{address}/api/contents")["content"]
        names = sorted(str(entry["name"]) for entry in listed)  # type: ignore[attr-defined]
        opened = read_json(f"{address}/api/contents/{NOTEBOOK}")
        check_page(f"{address}/lab")
    if names != notebooks or not opened["writable"]:
        sys.exit(f"JupyterLab shows {names}")


def run_notebook(environment: dict[str, str], here: Path) -> None:
    """A copy that `trtkit lab` made, executed with the few images that its metadata names."""
    path = here / "trtkit-notebooks" / NOTEBOOK
    notebook = json.loads(path.read_text(encoding="utf-8"))
    index = next(n for n, cell in enumerate(notebook["cells"]) if "parameters" in cell["metadata"].get("tags", ()))
    values = "\n".join(f"{name} = {value!r}" for name, value in notebook["metadata"]["trtkit"]["fast"].items())
    cell = {"cell_type": "code", "id": "fast", "metadata": {}, "source": values, "outputs": [], "execution_count": None}
    notebook["cells"].insert(index + 1, cell)
    path.write_text(json.dumps(notebook), encoding="utf-8")
    words = ["python", "-m", "nbconvert", "--to", "notebook", "--execute", "--inplace", path.name]
    run(words, cwd=path.parent, env=environment)
    executed = json.loads(path.read_text(encoding="utf-8"))
    outputs = [output for cell in executed["cells"] for output in cell.get("outputs", ())]
    if not any("application/vnd.plotly.v1+json" in output.get("data", {}) for output in outputs):
        sys.exit("the notebook shows no figure")


if __name__ == "__main__":
    main()
