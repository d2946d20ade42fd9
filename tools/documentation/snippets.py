"""Code blocks of README.md and docs: each runs, or says above it why not (`<!-- not run: REASON -->`)."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import os
import pickletools
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from documentation import package_hash

__all__ = ["LANGUAGES", "Snippet", "list_pages", "list_snippets", "make_workspace", "run_all", "run_page"]

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = {"bash", "python"}
"""Languages that run; `text` is what a program printed, others are files."""

NOT_CODE = {"text", "json", "yaml", "toml", "ini", "pbtxt", "dockerfile", "mermaid"}
BLOCK = re.compile(
    r"(?:^ *<!-- not run: (?P<reason>[^\n]+?) -->\n+)?"
    r"^(?P<indent> *)(?P<fence>`{3,})(?P<language>\w*)[^\n]*\n(?P<code>.*?)^ *(?P=fence) *$",
    re.MULTILINE | re.DOTALL,
)
OWN_IMGSZ, IMGSZ = 640, 160
"""Image size of the embedded model and of the workspace's, pixels: snippets show settings, not accuracy."""

IMAGES = {"train": 12, "val": 12}
SECONDS = 0.2
"""Longest measured time of a runner, s."""

VERDICTS = {0, 1, 3}
"""Exit statuses of `compare --gate`."""


@dataclasses.dataclass(frozen=True)
class Snippet:
    """A code block.

    Attributes:
        page: Its file, relative to the repository.
        line: The line of its fence.
        language: The word behind the fence.
        code: Its content.
        reason: Why it is not run; None if it is.
    """

    page: str
    line: int
    language: str
    code: str
    reason: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def list_pages() -> list[Path]:
    """The pages whose code is checked."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def list_snippets(text: str, page: str) -> Iterator[Snippet]:
    """The code blocks of a page that hold code.

    Args:
        text: Markdown.
        page: Its name.

    Raises:
        SystemExit: A block has no language, or one that is neither run nor known as data.
    """
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("fence")) + 1
        language = match["language"]
        if language in NOT_CODE:
            continue
        if language not in LANGUAGES and match["reason"] is None:
            raise SystemExit(f"{page}:{line}: name the block's language ({', '.join(sorted(LANGUAGES | NOT_CODE))})")
        yield Snippet(page, line, language, match["code"], match["reason"])


def run_all(folder: Path = ROOT / "build" / "snippets") -> list[str]:
    """Run the snippets of all pages in fresh copies of a workspace, and print those that are not run.

    Args:
        folder: Remembers the content with which all of them ran; the same content does not run again.

    Returns:
        What failed.
    """
    pages = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in list_pages()}
    snippets = [snippet for name, text in pages.items() for snippet in list_snippets(text, name)]
    skipped = [snippet for snippet in snippets if snippet.reason]
    count, begun = len(snippets) - len(skipped), time.monotonic()
    content = json.dumps([package_hash(), Path(__file__).read_text(encoding="utf-8"), list(map(str, snippets)), pages])
    stamp = folder / hashlib.sha256(content.encode()).hexdigest()[:16]
    problems = [] if stamp.is_file() else _run_pages([snippet for snippet in snippets if not snippet.reason])
    outcome = "ran before, unchanged" if stamp.is_file() else f"ran in {time.monotonic() - begun:.0f} s"
    print(f"{count} code blocks {outcome}; not run:")
    for snippet in skipped:
        print(f"  {snippet}: {snippet.reason}")
    if not problems:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        stamp.touch()
    return problems


def _run_pages(snippets: list[Snippet]) -> list[str]:
    problems = []
    with tempfile.TemporaryDirectory() as folder, _timing_shortly():
        make_workspace(workspace := Path(folder, "workspace"))
        for page, group in itertools.groupby(snippets, key=lambda snippet: snippet.page):
            shutil.copytree(workspace, copy := Path(folder, page.replace("/", "-")), copy_function=os.link)
            problems += run_page(list(group), copy)
            shutil.rmtree(copy)
    return problems


def run_page(snippets: list[Snippet], folder: Path) -> list[str]:
    """Run the snippets of one page in a folder, in order; Python blocks share their names.

    Args:
        snippets: What to run.
        folder: The working folder.

    Returns:
        One message for each that failed.
    """
    names: dict[str, object] = {"__name__": "__main__"}
    problems = []
    with _working_in(folder):
        for snippet in snippets:
            begun = time.monotonic()
            error = _run_python(snippet, names) if snippet.language == "python" else _run_bash(snippet)
            if error:
                problems.append(f"{snippet} failed: {error}")
            if os.environ.get("TRTKIT_SNIPPET_TIMES"):
                print(f"{time.monotonic() - begun:6.1f} s  {snippet}", flush=True)
    return problems


@contextlib.contextmanager
def _timing_shortly() -> Iterator[None]:
    from trtkit.evaluation import latency

    measure = latency._time_runners

    def measure_shortly(*arguments: Any, seconds: float, **more: Any) -> Any:
        return measure(*arguments, seconds=min(seconds, SECONDS), **more)

    with mock.patch.object(latency, "_time_runners", measure_shortly):
        yield


@contextlib.contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    # contextlib.chdir came with Python 3.11.
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _run_python(snippet: Snippet, names: dict[str, object]) -> str:
    code = compile("\n" * snippet.line + snippet.code, snippet.page, "exec")
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(code, names)
    except Exception:  # noqa: BLE001 - a snippet may raise anything
        return traceback.format_exc(limit=-2)
    return ""


def _run_bash(snippet: Snippet) -> str:
    for line in re.sub(r"\\\n\s*", "", snippet.code).splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[0] == "trtkit" and not {"|", "&&", ";", ">"} & set(words) and "$(" not in line:
            error = _run_trtkit(words)
        else:
            error = _run_shell(line)
        if error:
            return f"{line}\n{error}"
    return ""


def _run_trtkit(words: list[str]) -> str:
    """Run a command of trtkit in this process: importing PyTorch takes longer than most of them."""
    from trtkit.cli import main

    accepted = {0, 2} if words[-2:] == ["||", "true"] else VERDICTS if "--gate" in words else {0}
    arguments = words[1 : -2 if words[-2:] == ["||", "true"] else None]
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            status = main(arguments)
    except SystemExit as exit:  # argparse
        status = int(exit.code or 0)
    return "" if status in accepted else f"exit status {status}\n{output.getvalue()[-2000:]}"


def _run_shell(line: str) -> str:
    paths = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment: Mapping[str, str] = {**os.environ, "PATH": paths, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(["bash", "-euo", "pipefail", "-c", line], capture_output=True, text=True, env=environment)
    return "" if run.returncode == 0 else f"exit status {run.returncode}\n{(run.stdout + run.stderr)[-2000:]}"


def make_workspace(folder: Path) -> None:
    """The files that snippets name: a small model and data set under the names of well-known ones.

    Args:
        folder: The folder to make.
    """
    import trtkit as tk

    folder.mkdir()
    _copy_model(tk.demo.model_path(), folder / "yolo11n.pt")
    source = tk.demo.data_path().parent
    for split, count in IMAGES.items():
        for image in sorted((source / "images" / split).glob("*.jpg"))[:count]:
            for path in (image, source / "labels" / split / f"{image.stem}.txt"):
                target = folder / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
    shutil.copy(source / "data.yaml", folder / "coco.yaml")
    shutil.copy(next((folder / "images" / "val").glob("*.jpg")), folder / "street.jpg")
    with _working_in(folder), contextlib.redirect_stdout(io.StringIO()):
        graph = tk.export("yolo11n.pt", format="onnx")
        tk.export(graph.path, format="onnx", int8=True, data="coco.yaml", output="yolo11n-int8.onnx")
        for name, settings in {"yolo11n": {"half": True}, "yolo11n-int8": {"int8": True, "data": "coco.yaml"}}.items():
            tk.export("yolo11n.pt", device=tk.demo.DEVICE, output=f"{name}.engine", **settings)


def _copy_model(source: Path, target: Path) -> None:
    """Copy a checkpoint with another image size in its training arguments."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            new.writestr(entry, _replace_imgsz(content) if entry.filename.endswith("data.pkl") else content)


def _replace_imgsz(pickle: bytes) -> bytes:
    operations = list(pickletools.genops(pickle))
    start = next(place for _, value, place in operations if value == "imgsz")
    changed = bytearray(pickle)
    for operation, value, place in operations:
        # The module and the training arguments say it each.
        if operation.name == "BININT2" and value == OWN_IMGSZ and place > start:
            changed[place + 1 : place + 3] = IMGSZ.to_bytes(2, "little")
    return bytes(changed)
