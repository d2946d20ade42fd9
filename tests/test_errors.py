"""Errors carry a code and the values behind their sentence, so that callers need not read English."""

import ast
import pickle
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from trtkit import errors
from trtkit.data import open_dataset

PACKAGE = Path(errors.__file__).parent
TYPES = set(errors.__all__) - {"CancelledError", "warn"}


def raised():
    """Every call of one of trtkit's error types in the package, with its file."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name == "errors.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(getattr(node, "func", None), "id", getattr(getattr(node, "func", None), "attr", ""))
            if isinstance(node, ast.Call) and name in TYPES:
                yield path.relative_to(PACKAGE), node


def test_every_error_is_raised_with_a_code():
    missing = [
        f"{path}:{node.lineno}"
        for path, node in raised()
        if not any(keyword.arg in ("code", None) for keyword in node.keywords)
    ]
    assert not missing


def test_codes_are_kebab_case():
    codes = {
        keyword.value.value
        for _, node in raised()
        for keyword in node.keywords
        if keyword.arg == "code" and isinstance(keyword.value, ast.Constant)
    }
    assert len(codes) > 100
    assert not [code for code in codes if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", code)]


def test_a_type_s_own_code_is_the_default():
    assert errors.DataError("asked", "found", "do").code == "data"
    assert errors.UnsafeCheckpointError("asked", "found", "do").code == "unsafe-checkpoint"
    assert errors.CancelledError("asked").code == "cancelled"


@pytest.mark.parametrize("name", sorted(TYPES | {"CancelledError"}))
def test_code_and_fields_survive_pickling(name):
    error = getattr(errors, name)("load x.pt", "it is empty", "name another file", code="checkpoint-empty", size=0)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (copy.code, copy.fields, str(copy)) == ("checkpoint-empty", {"size": 0}, str(error))
    assert str(copy) == "load x.pt: it is empty; name another file."


def test_warnings_point_at_the_line_outside_the_package(tmp_path: Path) -> None:
    (tmp_path / "a.cr2").write_bytes(b"")
    cv2.imwrite(str(tmp_path / "b.png"), np.zeros((8, 8, 3), np.uint8))
    with pytest.warns(UserWarning, match="passed over") as warned:
        open_dataset(tmp_path, task="detect", needs_labels=False)
    assert {warning.filename for warning in warned} == {__file__}
