"""Engine files and passports, without TensorRT."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import tiny_graphs
from raising import raises

from trtkit.backends import (
    BuildResult,
    BuildSettings,
    Passport,
    detect_backend,
    layer_frame,
    read_engine,
    strip_engine,
    wrap_engine,
    write_engine,
)
from trtkit.backends.capabilities import same_release
from trtkit.errors import EngineError, OutputExistsError

PLAN = b"ftrt" + bytes(range(256)) * 4
BUILT = BuildResult(
    plan=PLAN,
    seconds=12.3456,
    facts={"tensorrt": "8.6.0", "sm": "sm90", "gpu": "NVIDIA H100", "cuda": "13.0", "driver": "580.65"},
    layers=({"name": "stem", "precision": "fp16"},),
)
PASSPORT = Passport.from_build(
    BUILT,
    BuildSettings(precision="fp16", batch=8, imgsz=(480, 640), dynamic=True),
    backend="tensorrt",
    model_hash="ab" * 32,
    recipe={"half": True},
    data_hash="cd" * 32,
    calibration_hash="ef" * 32,
    created="2026-11-22T12:00:00+00:00",
)


def written(folder: Path, passport: Passport | None = PASSPORT) -> Path:
    return write_engine(folder / "m.engine", PLAN, tiny_graphs.info((480, 640)).to_metadata(batch=8), passport)


def test_the_file_is_length_json_plan(tmp_path: Path) -> None:
    data = written(tmp_path).read_bytes()
    length = int.from_bytes(data[:4], "little")
    header = json.loads(data[4 : 4 + length])
    assert data[4 + length :] == PLAN
    # The keys that Ultralytics' loader reads.
    assert header["task"] == "detect"
    assert header["batch"] == 8
    assert header["imgsz"] == [480, 640]
    assert header["names"] == {"0": "zero", "1": "one", "2": "two"}
    assert header["trtkit"]["gpu"] == "NVIDIA H100"


def test_a_passport_survives_the_file(tmp_path: Path) -> None:
    file = read_engine(written(tmp_path))
    assert file.passport == PASSPORT
    assert file.plan == PLAN
    assert file.backend == "tensorrt"
    assert file.info() == tiny_graphs.info((480, 640))
    assert PASSPORT.build_seconds == 12.346
    assert PASSPORT.layers == BUILT.layers
    assert PASSPORT.versions["trtkit"]


def test_keys_of_later_versions_are_ignored() -> None:
    assert Passport.from_dict({**json.loads(json.dumps(PASSPORT.to_dict())), "color": "red"}) == PASSPORT


def test_a_dla_engine_has_ultralytics_key(tmp_path: Path) -> None:
    path = written(tmp_path, dataclasses.replace(PASSPORT, dla=1))
    assert read_engine(path).metadata["dla"] == "1"


def test_engines_of_ultralytics_and_bare_plans_are_read(tmp_path: Path) -> None:
    theirs = read_engine(written(tmp_path, None))
    assert theirs.passport is None
    assert theirs.info().task == "detect"
    bare = strip_engine(written(tmp_path), tmp_path / "m.plan")
    assert bare.read_bytes() == PLAN
    file = read_engine(bare)
    assert (file.metadata, file.plan, file.passport) == ({}, PLAN, None)
    assert file.info(task="pose", names={0: "person"}).names == {0: "person"}
    (tmp_path / "rtx.plan").write_bytes(b"vtrt" + PLAN)
    assert read_engine(tmp_path / "rtx.plan").backend == "tensorrt_rtx"


def test_strip_and_wrap_are_inverse(tmp_path: Path) -> None:
    path = written(tmp_path)
    bare = strip_engine(path, tmp_path / "m.plan")
    with pytest.raises(OutputExistsError):
        strip_engine(path, bare)
    again = wrap_engine(bare, tmp_path / "again.engine", tiny_graphs.info((480, 640)), PASSPORT, batch=8)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "engine-empty"),
        (b"\x01", "engine-empty"),
        (b"PK\x03\x04 a checkpoint or zip" * 9, "engine-invalid"),
        (b"\xff\xd8\xff\xe0 an image" * 9, "engine-invalid"),
        (b"\x08\x08\x12\x07pytorch" * 9, "engine-invalid"),
        ((20).to_bytes(4, "little") + b'{"task": "detect"', "engine-truncated"),
        ((18).to_bytes(4, "little") + b'{"task": "detect"}', "engine-truncated"),
        ((9).to_bytes(4, "little") + b'{"task": detect}' + PLAN, "engine-invalid"),
        ((2).to_bytes(4, "little") + b"[]" + PLAN, "engine-invalid"),
    ],
)
def test_foreign_and_truncated_files(tmp_path: Path, data: bytes, code: str) -> None:
    path = tmp_path / "x.engine"
    path.write_bytes(data)
    with raises(EngineError, code, path=path):
        read_engine(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with raises(EngineError, "engine-not-found", path=tmp_path / "none.engine"):
        read_engine(tmp_path / "none.engine")


def test_a_file_of_another_user_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path)

    def refuse(path: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with raises(EngineError, "engine-unreadable", path=path):
        read_engine(path)


def test_a_truncated_or_changed_plan(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with raises(EngineError, "engine-truncated", size=928, expected=1028):
        read_engine(path)
    path.write_bytes(whole[:-1] + b"\x00")
    with raises(EngineError, "engine-hash-mismatch", path=path):
        read_engine(path)


def test_a_path_that_is_not_unicode_survives(tmp_path: Path) -> None:
    """As the system gives one in another encoding; the recipe names the model and the data."""
    passport = dataclasses.replace(PASSPORT, recipe={"data": "caf\udce9"})
    found = read_engine(written(tmp_path, passport)).passport
    assert found is not None
    assert found.recipe == {"data": "caf\udce9"}


def test_the_backend_of_a_file_without_a_passport(tmp_path: Path) -> None:
    for plan, backend in ((b"ftrt" + bytes(60), "tensorrt"), (b"vtrt" + bytes(60), "tensorrt_rtx")):
        path = write_engine(tmp_path / "m.engine", plan, tiny_graphs.info(), None)
        assert (detect_backend(path), read_engine(path).backend) == (backend, backend)
        path.write_bytes(plan)
        assert (detect_backend(path), read_engine(path).backend) == (backend, backend)


def test_a_broken_passport(tmp_path: Path) -> None:
    path = write_engine(tmp_path / "m.engine", PLAN, {"task": "detect", "trtkit": {"gpu": "?"}}, None)
    with raises(EngineError, "engine-passport-invalid", path=path):
        read_engine(path)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("8.6.0", "8.6.0.12", True),
        ("8.6.0", "8.6.1", False),
        ("10.13.0.35", "10.13.0.35", True),
        ("10.1", "10.13", False),
        ("", "8.6", False),
    ],
)
def test_releases(one: str, other: str, same: bool) -> None:
    assert same_release(one, other) is same


def with_header(path: Path, text: bytes) -> Path:
    path.write_bytes(len(text).to_bytes(4, "little") + text + PLAN)
    return path


@pytest.mark.parametrize("text", [b'{"a":' * 100_000, b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"])
def test_headers_nested_without_end(tmp_path: Path, text: bytes) -> None:
    path = with_header(tmp_path / "m.engine", text)
    with raises(EngineError, "engine-invalid"):
        read_engine(path)
    assert detect_backend(path) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("stride", "1e999"), ("stride", "0"), ("imgsz", "[1e999, 32]"), ("imgsz", "[]"), ("names", "5"),
        ("names", '"' + "[" * 50_000 + '"'), ("kpt_shape", "[1]"), ("channels", "0"), ("trtkit", '{"preprocess": 5}'),
    ],
)  # fmt: skip
def test_metadata_that_no_model_has(tmp_path: Path, key: str, value: str) -> None:
    header = {**tiny_graphs.info().to_metadata(), key: "HERE"}
    header.pop("trtkit") if key != "trtkit" else None
    path = with_header(tmp_path / "m.engine", json.dumps(header).replace('"HERE"', value).encode())
    with raises(EngineError, "engine-metadata-invalid"):
        read_engine(path).info()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layers", 5), ("layers", [5]), ("imgsz", [1]), ("imgsz", "ab"), ("imgsz", 5), ("batch", "8"), ("batch", -1),
        ("recipe", []), ("versions", None), ("sm", 90), ("dla", "x"), ("dynamic", 1), ("plan_size", 1.5),
        ("build_seconds", float("inf")), ("backend", None), ("graph_hash", 3), ("imgsz", [0, 640]),
        ("imgsz", [True, 640]), ("batch", True), ("build_seconds", "1"),
        ("pixel_input", 4), ("pixel_input", {"side": 4}), ("pixel_input", {"side": 3, "scale": 0.5}),
        ("pixel_input", {"side": 4.0, "scale": 0.5}),
        ("pixel_input", {"side": 4, "scale": 0.0}), ("pixel_input", {"side": 4, "scale": float("inf")}),
        ("pixel_input", {"side": 4, "scale": "1"}), ("pixel_input", {"side": [4], "scale": 0.5}),
    ],
)  # fmt: skip
def test_passports_of_odd_types(tmp_path: Path, key: str, value: object) -> None:
    header = {**tiny_graphs.info().to_metadata(), "trtkit": {**PASSPORT.to_dict(), key: value}}
    with raises(EngineError, "engine-passport-invalid"):
        read_engine(with_header(tmp_path / "m.engine", json.dumps(header).encode()))


@pytest.mark.parametrize(
    ("key", "value"),
    [("name", 5), ("ms", "x"), ("onnx_nodes", 3), ("onnx_nodes", [{}]), ("reformat", "no"), ("ms", {})],
)
def test_layers_of_odd_types(key: str, value: object) -> None:
    with raises(EngineError, "layer-table-invalid"):
        layer_frame([{"name": "stem", key: value}])


def test_paths_that_no_engine_can_have(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.engine")
    for path in ("x" * 300, "a\0b", tmp_path / "fifo.engine", tmp_path):
        with raises(EngineError, "engine-not-found"):
            read_engine(path)
        assert detect_backend(path) is None
