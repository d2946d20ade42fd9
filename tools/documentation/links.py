"""Links of repository files as links of the site: what a page links to is a page, or a file that is copied."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath

__all__ = ["LinkMap", "find_broken_links", "find_remote_loads", "rewrite", "split_fences"]

LINK = re.compile(r"(\]\()([^)\s]+)(\))|((?:src|srcset|href)=\")([^\"]+)(\")")
FENCE = re.compile(r"(^ *(`{3,})[^\n]*\n.*?^ *\2 *$\n?)", re.MULTILINE | re.DOTALL)


def split_fences(text: str) -> Iterator[tuple[bool, str]]:
    """The parts of Markdown in order, each with whether it is a fenced code block.

    Args:
        text: Markdown.
    """
    position = 0
    for match in FENCE.finditer(text):
        yield False, text[position : match.start()]
        yield True, match[1]
        position = match.end()
    yield False, text[position:]


@dataclasses.dataclass(frozen=True)
class LinkMap:
    """Where repository files are in the site.

    Attributes:
        root: The repository.
        pages: The site's path of each repository file that is a page; one that ends in "/" is a folder with a page for
            each heading.
        take: Receives a repository file that is no page and returns its path in the site; a folder gives None.
    """

    root: Path
    pages: Mapping[str, str]
    take: Callable[[Path], str | None]

    def resolve(self, link: str, source: str, page: str) -> str | None:
        """A link of a repository file as a link of its page; None where the site has nothing of it.

        Args:
            link: The link.
            source: The repository file that holds it, relative to the repository.
            page: The site's path of that file.

        Raises:
            SystemExit: It leads to no file.
        """
        path, hash_mark, anchor = link.partition("#")
        if not path or re.match(r"[a-z+]+:", link):
            return link
        target = Path(os.path.normpath(self.root / PurePosixPath(source).parent / path))
        if not target.exists() or not target.is_relative_to(self.root):
            raise SystemExit(f"{source}: the link {link} leads to no file of the repository")
        name = target.relative_to(self.root).as_posix()
        place = self.pages.get(name) or self.take(target)
        if place is None:
            return None
        if place.endswith("/"):
            place, hash_mark, anchor = f"{place}{anchor}.md", "", ""
        return f"{os.path.relpath(place, PurePosixPath(page).parent)}{hash_mark}{anchor}"


def rewrite(text: str, source: str, page: str, links: LinkMap) -> str:
    """Markdown of a repository file with the links of its page.

    Args:
        text: The Markdown.
        source: The repository file, relative to the repository.
        page: The site's path of that file.
        links: Where repository files are.
    """

    def replace(match: re.Match[str]) -> str:
        begin, link, end = match.groups()[:3] if match[2] is not None else match.groups()[3:]
        found = links.resolve(link, source, page)
        return f"{begin}{link if found is None else found}{end}"

    def remove_dead(match: re.Match[str]) -> str:
        return match[1] if links.resolve(match[2], source, page) is None else match[0]

    dead = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
    return "".join(
        part if fenced else LINK.sub(replace, dead.sub(remove_dead, part)) for fenced, part in split_fences(text)
    )


LOADS = {("script", "src"), ("link", "href"), ("img", "src"), ("source", "srcset"), ("iframe", "src")}
NOT_LOADED = {"canonical", "next", "prev", "alternate"}
"""Values of `rel` that a browser does not load."""


class _Page(HTMLParser):
    """What a built page holds: ids, links, and what it loads by itself."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        values = {name: value or "" for name, value in attributes}
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        for name, value in values.items():
            if (tag, name) in LOADS and not NOT_LOADED & set(values.get("rel", "").split()):
                self.loads.append(value)


def _read_site(site: Path) -> dict[Path, _Page]:
    pages = {}
    for path in sorted(site.rglob("*.html")):
        pages[path] = _Page()
        pages[path].feed(path.read_text(encoding="utf-8"))
    return pages


def find_broken_links(site: Path) -> list[str]:
    """Links, scripts, styles and images of a built site that lead to no file or no anchor of it.

    Args:
        site: The folder of the built site.
    """
    pages = _read_site(site)
    broken = []
    for path, page in pages.items():
        for link in [*page.links, *page.loads]:
            if re.match(r"[a-z]+:|//", link):
                continue
            name, _, anchor = link.partition("#")
            name = name.partition("?")[0]
            base = site if name.startswith("/") or path.name == "404.html" else path.parent
            target = Path(os.path.normpath(base / name.lstrip("/"))) if name else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                broken.append(f"{path.relative_to(site)}: {link}")
            elif anchor and target in pages and anchor not in pages[target].ids and not anchor.startswith("__"):
                broken.append(f"{path.relative_to(site)}: {link} (no such anchor)")
    return broken


def find_remote_loads(site: Path) -> list[str]:
    """What pages and styles of a built site load from other hosts.

    Args:
        site: The folder of the built site.
    """
    remote = [
        f"{path.relative_to(site)}: {load}"
        for path, page in _read_site(site).items()
        for load in page.loads
        if re.match(r"(https?:)?//", load)
    ]
    urls = re.compile(r"(?:@import\s*|url\()[\"']?((?:https?:)?//[^\"')]+)")
    for path in sorted(site.rglob("*.css")):
        remote += [f"{path.relative_to(site)}: {url}" for url in urls.findall(path.read_text(encoding="utf-8"))]
    return remote
