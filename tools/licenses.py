"""The table of licenses: of every package in the lock, and of every file in the wheel that is not trtkit's own code.

usage: python tools/licenses.py            write docs/licenses.md; run it in the environment of `make install`

What the table says of a package that is not installed stays: only an installed one tells its license and who needs it.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from packaging.requirements import Requirement

__all__ = [
    "EMBEDDED",
    "PERMISSIVE",
    "TABLE",
    "Embedded",
    "installed_license",
    "is_installed",
    "locked_packages",
    "render",
    "rows",
    "written_rows",
]

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "docs" / "licenses.md"

PERMISSIVE = (
    "Apache", "MIT", "BSD", "ISC", "PSF", "Python", "MPL-2.0", "Unlicense", "0BSD", "HPND", "CC0", "Zlib", "NCSA",
)  # fmt: skip
"""A license whose name holds one of these may be needed by an installation without extras."""

ALIASES = {
    "MIT License": "MIT", "MIT license": "MIT", "Apache Software License": "Apache-2.0", "Apache 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0", "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "BSD 3-Clause License": "BSD-3-Clause", "3-Clause BSD License": "BSD-3-Clause", "BSD-3-Clause": "BSD-3-Clause",
    "BSD 2-Clause License": "BSD-2-Clause", "FreeBSD": "BSD-2-Clause", "BSD License": "BSD", "BSD": "BSD",
    "ISC License (ISCL)": "ISC", "ISC license": "ISC", "PSFL": "PSF-2.0",
    "Python Software Foundation License": "PSF-2.0", "Other/Proprietary License": "NVIDIA proprietary",
    "Proprietary": "NVIDIA proprietary",
}  # fmt: skip
"""Texts of metadata older than license expressions."""

STATED = {
    "faster-coco-eval": "Apache-2.0",  # its metadata has only the license's file
    "appnope": "BSD-2-Clause", "coloredlogs": "MIT", "cuda-pathfinder": "Apache-2.0", "decorator": "BSD-2-Clause",
    "exceptiongroup": "MIT", "humanfriendly": "MIT", "pyreadline3": "BSD", "pywinpty": "MIT", "tomli": "MIT",
    "axe-playwright-python": "MIT",  # its axe-core: MPL-2.0
    "triton": "MIT",
}  # fmt: skip
"""Packages of other systems or Python versions, and those whose metadata says nothing."""

PROPRIETARY = re.compile(r"(nvidia-(?!ml-py)|cuda-(?!pathfinder)|tensorrt)")
"""NVIDIA's own packages; its terms allow installation, not redistribution by trtkit, which contains none of them."""

WITH_CUDA = ("cuda-pathfinder", "triton")
"""Others' packages that come with them."""

OUTSIDE_LOCK = {"tensorrt": "NVIDIA proprietary", "ultralytics": "AGPL-3.0"}
"""Packages of extras that the lock leaves out: nothing of trtkit needs them."""


@dataclasses.dataclass(frozen=True)
class Embedded:
    """Files of the wheel that are not trtkit's code.

    Attributes:
        pattern: Their paths below `trtkit/`, as `Path.glob` takes it.
        license: Theirs.
        source: Whose they are.
    """

    pattern: str
    license: str
    source: str


DIGITS = (
    "digits: E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, 1998, CC BY 4.0; photographs of scikit-image, "
    "CC0 or public domain, and china.jpg (danielbuechele) and flower.jpg (vultilion), CC BY 2.0"
)
EMBEDDED = (
    Embedded("demo/*/images/**/*.jpg", "CC BY 4.0", DIGITS),
    Embedded("demo/classify/**/*.jpg", "CC BY 4.0", DIGITS),
    Embedded("demo/*/labels/**/*.txt", "CC BY 4.0", "made with the images"),
    Embedded("demo/*.pt", "Apache-2.0", "trained by tools/train_demo.py from random weights on such scenes"),
    Embedded("comparison/published_latencies.json", "Apache-2.0", "measured; by tools/published_latencies.py"),
    Embedded("plotting/plotly-cartesian.*", "MIT", "plotly.js 4.1.1, its cartesian bundle; Plotly, Inc."),
)
OWN_ENDINGS = {".py", ".j2", ".css", ".js", ".typed", ".yaml", ".cpp", ".hpp", ".h", ".sh"}
"""Files of trtkit itself, Apache-2.0."""

OWN_NAMES = {"LICENSE", ".gitignore", "CMakeLists.txt", "Makefile"}
"""Others of them."""


def locked_packages() -> dict[str, set[str]]:
    """The versions of each package in requirements.lock, by name; which one is installed depends on Python."""
    versions: dict[str, set[str]] = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if match := re.match(r"([\w.-]+)==([^\s;]+)", line):
            versions.setdefault(match[1].lower(), set()).add(match[2])
    return dict(sorted(versions.items()))


def installed_license(name: str) -> str | None:
    """The license in a package's metadata; None if it is not installed or says nothing."""
    try:
        metadata = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    if expression := metadata.get("License-Expression"):
        return expression
    texts = [metadata.get("License") or ""]
    texts += [
        line.rpartition(" :: ")[2] for line in metadata.get_all("Classifier") or [] if line.startswith("License ::")
    ]
    found = [ALIASES.get(text.strip(), text.strip() if text.strip() in ALIASES.values() else "") for text in texts]
    return next(iter(sorted(filter(None, found), key=lambda text: text == "BSD")), None)


def written_rows(text: str) -> dict[str, tuple[str, str]]:
    """License and installation of each package in a table that `render` wrote.

    Args:
        text: The whole file; an empty one has no rows.
    """
    packages = text.rpartition("\n|---|---|---|\n")[2]
    return {match[1]: (match[2], match[3]) for match in re.finditer(r"^\| (\S+) \| (.+?) \| (.+?) \|$", packages, re.M)}


def rows(before: Mapping[str, tuple[str, str]]) -> Iterator[tuple[str, str, str]]:
    """Each locked package, its license, and who installs it.

    Args:
        before: From `written_rows`: of packages that are not installed here.

    Raises:
        SystemExit: A license is not known.
    """
    always = _required("")
    for name in locked_packages():
        license_before, when_before = before.get(name, (None, None))
        known = "NVIDIA proprietary" if PROPRIETARY.match(name) else STATED.get(name) or installed_license(name)
        if known is None and not is_installed(name):
            known = license_before
        if known is None:
            raise SystemExit(f"{name} has no known license: look it up and add it to STATED in {Path(__file__).name}")
        yield name, known, when_before if when_before and not is_installed(name) else _when(name, known, always)


def _required(extra: str) -> set[str]:
    """The installed packages that trtkit needs with an extra; "" for none."""
    found: set[str] = set()
    pending = [("trtkit", extra)]
    seen = set()
    while pending:
        entry = pending.pop()
        if entry in seen:
            continue
        seen.add(entry)
        try:
            texts = importlib.metadata.requires(entry[0]) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for requirement in map(Requirement, texts):
            if requirement.marker is None or requirement.marker.evaluate({"extra": entry[1]}):
                name = requirement.name.lower().replace("_", "-")
                found.add(name)
                pending += [(name, part) for part in ("", *requirement.extras)]
    return found


def _when(name: str, license_name: str, always: set[str]) -> str:
    """Who installs a package."""
    if name in always:
        return "always"
    if license_name == "NVIDIA proprietary" or name in WITH_CUDA:
        return "with `rtx`" if name.startswith("tensorrt") else "with PyTorch for CUDA"
    return "with an extra" if is_installed(name) else "on other systems or Python versions"


def is_installed(name: str) -> bool:
    """Whether a package is in this environment."""
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def render(before: str = "") -> str:
    """The table.

    Args:
        before: The table so far, for packages that are not installed here.

    Raises:
        SystemExit: A license is not known.
    """
    lines = [
        "# Licenses",
        "",
        "trtkit itself is under the [Apache License 2.0](../LICENSE). `python tools/licenses.py` writes this "
        "table, and `tests/tools/test_tools_licenses.py` holds it against the installed packages' own metadata.",
        "",
        "## In the wheel",
        "",
        "| files below `trtkit/` | license | source |",
        "|---|---|---|",
        *(f"| `{entry.pattern}` | {entry.license} | {entry.source} |" for entry in EMBEDDED),
        "| everything else | Apache-2.0 | trtkit |",
        "",
        "## Packages",
        "",
        'None is part of trtkit; pip installs them. "always": an installation without extras has it. '
        "NVIDIA's come with a CUDA build of PyTorch (the CPU build has none) and with the extras `rtx` and `tensorrt`.",
        "",
        "| package | license | installed |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {license_name} | {when} |" for name, license_name, when in rows(written_rows(before))]
    for name, license_name in OUTSIDE_LOCK.items():
        lines.append(f"| {name} | {license_name} | with the extra `{name}`, never by another |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    former = TABLE.read_text()
    TABLE.write_text(render(former))
    if gone := sorted(written_rows(former).keys() - written_rows(TABLE.read_text()).keys()):
        print(f"removed, because requirements.lock has them no more: {', '.join(gone)}")
