"""Settings of a build that are out of range."""

from __future__ import annotations

from typing import Any

import pytest
from raising import raises

from trtkit.backends import BuildSettings, ImplicitCalibration
from trtkit.errors import RecipeError


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"precision": "int4"}, "build-precision"),
        ({"batch": 0}, "build-batch"),
        ({"workspace": 0.0}, "build-workspace"),
        ({"opt_level": 6}, "build-opt-level"),
        ({"aux_streams": -1}, "build-aux-streams"),
        ({"aux_streams": 17}, "build-aux-streams"),
        ({"dynamic": True, "imgsz": (16, 16)}, "build-dynamic-sizes"),
        ({"implicit": ImplicitCalibration()}, "build-implicit-precision"),
    ],
)
def test_settings_out_of_range(wrong: dict[str, Any], code: str) -> None:
    with raises(RecipeError, code):
        BuildSettings(**wrong)
