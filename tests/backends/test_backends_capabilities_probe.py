"""Every name and argument of the fake TensorRT exists in the version it simulates.

8.6: a listing taken from the wheel (`references/`); 10.x: NVIDIA's stubs as `tensorrt-stubs` ships them; 11.x:
TensorRT-RTX itself, whose interface is TensorRT 11's.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
from pathlib import Path
from typing import Any

import fake_cuda  # noqa: F401 - the fake needs it
import fake_tensorrt
import pytest

Surface = dict[str, dict[str, list[str] | None]]
LISTING = Path(__file__).parent / "references" / "tensorrt-8.6.0-surface.json"


def of_fake(trt: Any) -> Surface:
    surface: Surface = {}
    for name, kind in vars(trt).items():
        if name[0].isupper() and isinstance(kind, type) and name != "Severity":
            surface[name] = {
                member: list(inspect.signature(value).parameters) if inspect.isfunction(value) else None
                for member, value in vars(kind).items()
                if not member.startswith("_") and member not in ("name", "value", "data", "numerator", "denominator")
            }
    return surface


def of_stubs() -> Surface:
    spec = importlib.util.find_spec("tensorrt_bindings")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs tensorrt-stubs")
    text = (Path(next(iter(spec.submodule_search_locations))) / "tensorrt.pyi").read_text(encoding="utf-8")
    surface: Surface = {}
    members: dict[str, list[str] | None] = {}
    # By lines: the stubs contain signatures that are not valid Python.
    for line in text.splitlines():
        if match := re.match(r"class (\w+)", line):
            members = surface.setdefault(match[1], {})
        elif match := re.match(r"    def (\w+)\((.*)\) ->", line):
            members[match[1]] = members.get(match[1]) or re.findall(r"(?:^|, )(\w+)(?=[:,=]|$)", match[2])
        elif match := re.match(r"    (\w+): ", line):
            members[match[1]] = None
    return surface


def of_rtx() -> Surface:
    trt = pytest.importorskip("tensorrt_rtx")
    return {
        name: dict.fromkeys((member for member in dir(kind) if not member.startswith("_")), None)
        for name, kind in vars(trt).items()
        if isinstance(kind, type)
    }


def compare(fake: Surface, real: Surface) -> list[str]:
    differences = []
    for name, members in fake.items():
        if name not in real:
            differences.append(name)
            continue
        for member, arguments in members.items():
            if member not in real[name]:
                differences.append(f"{name}.{member}")
            expected = real[name].get(member)
            if arguments is not None and expected is not None and arguments[1:] != expected[1 : len(arguments)]:
                differences.append(f"{name}.{member}{arguments[1:]}, not {expected[1:]}")
    return differences


def test_8_6() -> None:
    real = json.loads(LISTING.read_text())["classes"]
    assert compare(of_fake(fake_tensorrt.make("8.6.0")), real) == []
    assert "IProgressMonitor" not in real


def test_10() -> None:
    assert compare(of_fake(fake_tensorrt.make("10.13.0.35")), of_stubs()) == []


def test_11() -> None:
    assert compare(of_fake(fake_tensorrt.make("11.4.0.106")), of_rtx()) == []


def test_the_comparison_reports_differences() -> None:
    fake: Surface = {"A": {"x": None, "f": ["self", "a"]}, "B": {}}
    assert compare(fake, {"A": {"f": ["self", "b"]}}) == ["A.x", "A.f['a'], not ['b']", "B"]
