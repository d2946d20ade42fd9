"""The documentation site: pages from docstrings, records and executed notebooks, built by Zensical."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

__all__ = ["package_hash"]

ROOT = Path(__file__).resolve().parents[2]


def package_hash() -> str:
    """The content that decides what code in notebooks and pages does: the package, its dependencies and Python."""
    content = hashlib.sha256(sys.version.encode())
    for path in sorted((ROOT / "trtkit").rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            content.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    content.update((ROOT / "requirements.lock").read_bytes())
    return content.hexdigest()
