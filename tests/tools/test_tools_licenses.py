"""The table of licenses is complete, and what everybody installs is permissive."""

import importlib.metadata
from collections import Counter

import licenses
import pytest

PACKAGE = licenses.ROOT / "trtkit"


def table():
    lines = licenses.TABLE.read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {first: (second, third) for first, second, third in cells}


def test_every_locked_package_is_in_the_table_with_the_license_of_its_metadata():
    written = table()
    for name, versions in licenses.locked_packages().items():
        stated = written[name][0]
        assert stated, name
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        own = licenses.installed_license(name)
        if version in versions and own is not None and name not in licenses.STATED:
            assert stated == own or licenses.PROPRIETARY.match(name), name


def test_packages_that_are_not_installed_keep_their_rows(monkeypatch):
    """Written in an environment that lacks some, such as the extras, the table stays as it is."""
    before = licenses.TABLE.read_text()
    rows = licenses.written_rows(before)
    assert rows.keys() == licenses.locked_packages().keys() | licenses.OUTSIDE_LOCK.keys()
    missing = {"numpy", "onnx", "distributed", "playwright", "packaging"}
    real_metadata, real_version, real_requires = (
        getattr(importlib.metadata, name) for name in ("metadata", "version", "requires")
    )

    def without(real):
        def ask(name):
            if name in missing:
                raise importlib.metadata.PackageNotFoundError(name)
            return real(name)

        return ask

    whole = licenses.written_rows(licenses.render(before))
    for name, real in (("metadata", real_metadata), ("version", real_version), ("requires", real_requires)):
        monkeypatch.setattr(importlib.metadata, name, without(real))
    written = licenses.written_rows(licenses.render(before))
    assert written.keys() == rows.keys()
    assert {name: written[name] for name in missing} == {name: rows[name] for name in missing}
    assert rows["numpy"][1] == whole["numpy"][1] == "always"
    with pytest.raises(SystemExit, match="distributed has no known license"):
        licenses.render(before.replace("| distributed |", "| undistributed |"))


def test_what_everybody_installs_is_permissive():
    always = {name: row[0] for name, row in table().items() if row[1] == "always"}
    assert {"numpy", "torch", "onnx", "polars"} <= set(always)
    for name, stated in always.items():
        assert any(word in stated for word in licenses.PERMISSIVE), name
        assert "GPL" not in stated, name


def test_no_locked_package_is_under_a_gpl():
    assert not [name for name in licenses.locked_packages() if "GPL" in table()[name][0]]


def test_no_file_of_the_wheel_is_under_a_gpl():
    assert not [entry for entry in licenses.EMBEDDED if "GPL" in entry.license + entry.source]


def test_every_file_of_the_wheel_that_is_not_code_has_one_row():
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    counts = Counter(path for entry in licenses.EMBEDDED for path in PACKAGE.glob(entry.pattern))
    others = [p for p in files if p.suffix not in licenses.OWN_ENDINGS and p.name not in licenses.OWN_NAMES]
    assert {path: counts[path] for path in others} == dict.fromkeys(others, 1)
    for entry in licenses.EMBEDDED:
        assert any(PACKAGE.glob(entry.pattern)), entry.pattern
        assert table()[f"`{entry.pattern}`"] == (entry.license, entry.source)


def test_a_license_is_read_from_each_form_of_metadata():
    assert licenses.installed_license("numpy").startswith("BSD-3-Clause")  # an expression
    assert licenses.installed_license("pyyaml") == "MIT"
    assert licenses.installed_license("no-such-package") is None
