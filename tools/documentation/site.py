"""The site itself: pages collected in build/docs, built by Zensical into build/site, then completed and checked."""

from __future__ import annotations

import functools
import gzip
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from documentation import decision, notebooks, verbs
from documentation.links import LinkMap, find_broken_links, find_remote_loads, rewrite

__all__ = ["build", "collect", "list_repository_pages", "navigation"]

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"
"""Gets pages in docs, executed notebooks in notebooks and the site in site."""

HERE = Path(__file__).resolve().parent

PLOTLY = "assets/plotly-cartesian.min.js"
"""The site's one copy of plotly.js, which every figure loads."""

FOLDERS = {"docs/verbs.md": "verbs/"}
"""Files of docs whose headings become pages of their own."""

PROJECT = {
    "ARCHITECTURE.md": "architecture.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md",
    "README.md": "readme.md", "README.zh-CN.md": "readme.zh-CN.md", "SECURITY.md": "security.md",
}  # fmt: skip
"""Files beside the package that are pages too, where they are there."""


def list_repository_pages() -> dict[str, str]:
    """The site's path of each Markdown file of the repository that is a page."""
    pages = {name: page for name, page in PROJECT.items() if (ROOT / name).is_file()}
    for path in sorted((ROOT / "docs").rglob("*.md")):
        if path.relative_to(ROOT).as_posix() not in FOLDERS:
            pages[path.relative_to(ROOT).as_posix()] = path.relative_to(ROOT / "docs").as_posix()
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.md")):
        pages[path.relative_to(ROOT).as_posix()] = f"records/{path.name}"
    pages |= {
        f"notebooks/{path.name}": f"notebooks/{path.stem}.md" for path in sorted(notebooks.SOURCES.glob("*.ipynb"))
    }
    return pages


def build(folder: Path = BUILD, *, draft: bool = False) -> list[str]:
    """Build the site.

    Args:
        folder: The folder to build in; the site is in its `site`.
        draft: Show notebooks without outputs instead of executing them.

    Returns:
        Problems: warnings of the generator, broken links, loads from other hosts, failed cells.
    """
    site = folder / "site"
    executed = {} if draft else notebooks.execute_all(folder / "notebooks")
    problems = [f"{stem}: {problem}" for stem, one in executed.items() for problem in notebooks.list_problems(one)]
    outputs = collect(executed, folder)
    shutil.rmtree(site, ignore_errors=True)
    generator = Path(sys.executable).with_name("zensical")
    run = subprocess.run(
        [str(generator), "build", "--strict", "--clean", "-f", str(folder / "mkdocs.yml")],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1", "PYTHONPATH": str(ROOT)},
    )
    if run.returncode or "No issues found" not in run.stdout + run.stderr:
        problems.append((run.stdout + run.stderr).strip())
    if not site.is_dir():
        return problems
    _insert_outputs(outputs, site)
    problems += find_broken_links(site)
    problems += [f"loaded from another host: {load}" for load in find_remote_loads(site)]
    size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
    print(f"{len(list(site.rglob('*.html')))} pages, {size / 1e6:.1f} MB in {site}")
    return problems


def collect(executed: Mapping[str, notebooks.Notebook], folder: Path = BUILD) -> dict[str, str]:
    """Write all pages and the configuration into the build folder.

    Args:
        executed: The executed notebooks; the others are shown without outputs.
        folder: The build folder.

    Returns:
        The outputs of notebooks by their place.
    """
    place = folder / "docs"
    shutil.rmtree(place, ignore_errors=True)
    pages = list_repository_pages()
    links = LinkMap(ROOT, pages | FOLDERS, functools.partial(_take_file, place))
    outputs: dict[str, str] = {}
    texts: dict[str, str] = {}
    for source, page in pages.items():
        if source.endswith(".ipynb"):
            stem = Path(source).stem
            notebook = executed.get(stem) or notebooks.read(stem)
            markdown, found = notebooks.page_markdown(stem, notebook)
            outputs |= found
            _write(place / "notebooks" / Path(source).name, (ROOT / source).read_bytes())
        else:
            markdown = decision.fill((ROOT / source).read_text(encoding="utf-8"))
        texts[page] = rewrite(markdown, source, page, links)

    def fit_links(title: str, section: str) -> str:
        return rewrite(section, "docs/verbs.md", f"verbs/{title}.md", links)

    texts |= {f"verbs/{name}.md": text for name, text in verbs.list_pages(fit_links).items()}
    texts["records/index.md"] = _list_records(texts)
    for page, text in texts.items():
        _write(place / page, text.encode())
    _write(place / "assets" / "site.css", (HERE / "site.css").read_bytes())
    plotly = gzip.decompress((ROOT / "trtkit" / "plotting" / "plotly-cartesian.min.js.gz").read_bytes())
    _write(place / PLOTLY, plotly)
    configuration = yaml.safe_load((HERE / "site.yml").read_text(encoding="utf-8"))
    configuration["nav"] = navigation(texts)
    python = configuration["plugins"][1]["mkdocstrings"]["handlers"]["python"]
    python |= {"paths": [str(ROOT)], "options": verbs.OPTIONS}
    _write(folder / "mkdocs.yml", yaml.safe_dump(configuration, sort_keys=False, allow_unicode=True).encode())
    return outputs


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _take_file(place: Path, path: Path) -> str | None:
    """Copy a file that pages link to; a folder of records has a page, other folders have none."""
    if path == ROOT / "benchmarks" / "results":
        return "records/index.md"
    if path == ROOT / "notebooks":
        return "notebooks/01_quickstart.md"
    if path.is_dir():
        return None
    name = path.relative_to(ROOT).as_posix()
    # A browser shows text; the names of programs would be downloaded, or rendered as pages.
    page = f"files/{name}" if path.suffix in (".png", ".json", ".svg", ".html", ".ipynb") else f"files/{name}.txt"
    _write(place / page, path.read_bytes())
    return page


def _list_records(texts: Mapping[str, str]) -> str:
    lines = [
        "# Records",
        "",
        "What each published figure was measured with: the command, the machine and all rows.",
        "",
    ]
    for page, text in texts.items():
        if page.startswith("records/"):
            lines.append(f"- [{_title(text)}]({Path(page).name})")
    return "\n".join(lines) + "\n"


def _title(text: str) -> str:
    match = re.search(r"^# (.+)$", text, re.MULTILINE)
    assert match is not None
    return match[1]


def navigation(texts: Mapping[str, str]) -> list[dict[str, Any]]:
    """The site's menu; a page that has no place in it comes under "Measurements".

    Args:
        texts: The Markdown of each page.
    """
    placed: set[str] = set()

    def entry(page: str, title: str | None = None) -> dict[str, str]:
        placed.add(page)
        return {title or _title(texts[page]): page}

    def group(prefix: str) -> list[dict[str, str]]:
        return [entry(page) for page in texts if page.startswith(prefix) and page not in placed]

    widgets = [entry(f"verbs/{name}.md") for name in verbs.INTERACTIVE]
    others = entry("verbs/other_names.md")
    menu: list[dict[str, Any]] = [
        {"Start": [entry("index.md", "What it is"), entry("decision.md"), entry("tools.md"), entry("glossary.md")]},
        {"Notebooks": group("notebooks/")},
        {"Verbs": [*group("verbs/"), {"Widgets": widgets}, others]},
        {"Errors": [entry("errors/index.md", "By their text"), *group("errors/")]},
    ]
    project = [entry(page) for page in PROJECT.values() if page in texts]
    project.append(entry("licenses.md"))
    records = [entry("records/index.md", "All of them"), *group("records/")]
    measurements = [entry("benchmarks.md"), *group(""), {"Records": records}]
    return [*menu, {"Measurements": measurements}, {"Project": project}]


def _insert_outputs(outputs: Mapping[str, str], site: Path) -> None:
    """Put the outputs of notebooks into their built pages; their figures load the site's plotly.js."""
    from trtkit.plotting.notebook import plotly_url

    for place, shown in outputs.items():
        page = site / "notebooks" / place.partition("/")[0] / "index.html"
        text = page.read_text(encoding="utf-8")
        element = f'data-output="{place}">'
        assert text.count(element) == 1, place
        page.write_text(
            text.replace(element, element + shown.replace(plotly_url(), f"../../{PLOTLY}")), encoding="utf-8"
        )
