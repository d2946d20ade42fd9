"""Checkpoints that are missing, damaged, foreign or invalid: one error code each."""

from __future__ import annotations

import collections
import copy
import io
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_checkpoints import TINY, fake_class, fake_modules, read_members, rewrite_archive, write_archive

from trtkit.errors import CheckpointError, ModelError, UnknownLayerError, UnsafeCheckpointError
from trtkit.models import load, unpickler
from trtkit.models.torch_file import read_legacy
from trtkit.models.yolo import build_model

# Saving classes made in a test, torch can't keep their source code beside them.
pytestmark = pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")


def save(value: Any, path: Path, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


def test_unknown_activation(content: dict[str, Any], tmp_path: Path) -> None:
    content["model"].model[0].act = torch.nn.Softplus()
    with pytest.raises(UnknownLayerError) as error:
        load(save(content, tmp_path / "softplus.pt"))
    assert error.value.code == "checkpoint-layer-unknown"
    assert error.value.fields["layer"] == "an activation Softplus"


def test_unknown_layer(content: dict[str, Any], tmp_path: Path) -> None:
    content["model"].yaml = {**TINY, "backbone": [*TINY["backbone"][:2], [-1, 1, "C2fAttn", [16]]]}
    with pytest.raises(UnknownLayerError) as error:
        load(save(content, tmp_path / "world.pt"))
    assert error.value.code == "checkpoint-layer-unknown"
    assert error.value.fields["layer"] == "a layer C2fAttn(16)"
    assert "yolo export" in str(error.value), "the line that makes the ONNX file"


def test_unknown_head(content: dict[str, Any], tmp_path: Path) -> None:
    content["model"].yaml = {**TINY, "head": [*TINY["head"][:1], [[2, 3], 1, "WorldDetect", ["nc"]]]}
    with pytest.raises(UnknownLayerError) as error:
        load(save(content, tmp_path / "world.pt"))
    assert error.value.code == "checkpoint-layer-unknown"
    assert "WorldDetect" in error.value.fields["layer"]


def test_layer_that_differs_from_its_architecture(content: dict[str, Any], tmp_path: Path) -> None:
    layer = content["model"].model[2]
    layer.__class__ = fake_class("ultralytics.nn.modules.block", "C2fAttn")
    with pytest.raises(UnknownLayerError) as error:
        load(save(content, tmp_path / "swapped.pt"))
    assert error.value.code == "checkpoint-layer-mismatch"
    assert error.value.fields["layer"] == "C2fAttn"
    assert error.value.fields["expected"] == "C2f"


@pytest.mark.parametrize(
    ("row", "layer"),
    [
        ([-1, 1, "nn.Upsample", [[9, 9], 2, "nearest"]], "nn.Upsample([9, 9], 2"),
        ([[1, 0], 1, "Concat", [2]], "Concat(2)"),
    ],
)
def test_layers_with_unsupported_arguments_raise(
    content: dict[str, Any], tmp_path: Path, row: list[Any], layer: str
) -> None:
    content["model"].yaml = {**TINY, "backbone": [*TINY["backbone"], row]}
    with pytest.raises(UnknownLayerError) as error:
        load(save(content, tmp_path / "odd.pt"))
    assert error.value.code == "checkpoint-layer-unknown"
    assert layer in error.value.fields["layer"]


def test_activation_of_the_architecture(content: dict[str, Any], tmp_path: Path) -> None:
    assert type(build_model({**TINY, "activation": "torch.nn.ReLU(inplace=True)"}).model[0].act) is torch.nn.ReLU
    content["model"].yaml = {**TINY, "activation": "__import__('os').system('true')"}
    with pytest.raises(UnknownLayerError) as error:
        load(save(content, tmp_path / "attack.pt"))
    assert error.value.code == "checkpoint-layer-unknown"
    assert "__import__" in error.value.fields["layer"]


def test_keys_of_any_type_load(content: dict[str, Any], tmp_path: Path) -> None:
    content["model"].yaml.update({1: 2, b"x": 3, None: 4})
    assert len(load(save(content, tmp_path / "keys.pt")).hash) == 64


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        load(tmp_path / "absent.pt")
    assert error.value.code == "model-file-missing"


def test_folder(tmp_path: Path) -> None:
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(CheckpointError) as error:
        load(tmp_path / "folder.pt")
    assert error.value.code == "model-file-is-folder"


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.pt"
    path.touch()
    with pytest.raises(CheckpointError) as error:
        load(path)
    assert error.value.code == "model-file-empty"


@pytest.mark.parametrize("part", [0.02, 0.5, 0.99])
def test_truncated_file(checkpoint: Path, part: float) -> None:
    data = checkpoint.read_bytes()
    checkpoint.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(CheckpointError) as error:
        load(checkpoint)
    assert error.value.code == "checkpoint-truncated"


def test_truncated_legacy_file(content: dict[str, Any], tmp_path: Path) -> None:
    path = save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError) as error:
        load(path)
    assert error.value.code == "checkpoint-truncated"


@pytest.mark.parametrize("missing", [1, 19, 20, 21, 27, 40])
def test_legacy_file_truncated_between_its_storages(tmp_path: Path, missing: int) -> None:
    """Two storages of 12 bytes, each after its length in 8 bytes: truncation between them is detected, too."""
    tensors = {"one": torch.ones(3), "two": torch.ones(3) * 2}
    data = save(tensors, tmp_path / "old.pt", _use_new_zipfile_serialization=False).read_bytes()
    root, read_tensor = read_legacy(io.BufferedReader(io.BytesIO(data)), "load")
    assert [read_tensor(record).tolist() for record in root.values()] == [[1, 1, 1], [2, 2, 2]]
    root, read_tensor = read_legacy(io.BufferedReader(io.BytesIO(data[:-missing])), "load")
    with pytest.raises(CheckpointError) as error:
        read_tensor(root["one"])
    assert error.value.code == "checkpoint-truncated"


def test_damaged_byte(checkpoint: Path) -> None:
    data = bytearray(checkpoint.read_bytes())
    with zipfile.ZipFile(checkpoint) as file:
        info = max(file.infolist(), key=lambda member: member.file_size if "/data/" in member.filename else 0)
    data[info.header_offset + len(info.filename) + info.file_size // 2] ^= 0xFF
    checkpoint.write_bytes(data)
    with pytest.raises(CheckpointError) as error:
        load(checkpoint)
    assert error.value.code == "checkpoint-member-damaged"


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer, not the file itself"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"hello", "no PyTorch file"),
    ],
)
def test_other_files_raise(tmp_path: Path, start: bytes, kind: str) -> None:
    path = tmp_path / "other.pt"
    path.write_bytes(start + bytes(100))
    with pytest.raises(CheckpointError) as error:
        load(path)
    assert (error.value.code, error.value.fields["kind"]) == ("checkpoint-foreign", kind)


def test_state_dict(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        load(save(collections.OrderedDict(weight=torch.zeros(2)), tmp_path / "state.pt"))
    assert error.value.code == "checkpoint-without-model"
    assert "state_dict of 1" in error.value.fields["content"]


def test_state_dict_of_a_module_with_its_metadata(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        load(save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "state.pt"))
    assert error.value.code == "checkpoint-without-model"
    assert "state_dict of 2" in error.value.fields["content"]


def test_other_training_checkpoint(tmp_path: Path) -> None:
    value = {"state_dict": {"w": torch.zeros(2)}, "optimizer": {}, "epoch": 3}
    with pytest.raises(CheckpointError) as error:
        load(save(value, tmp_path / "lightning.pt"))
    assert error.value.code == "checkpoint-without-model"
    assert "state_dict, optimizer, epoch" in error.value.fields["content"]


@pytest.mark.parametrize(("value", "described"), [(torch.zeros(3), "a tensor"), ([1, 2], "a list"), ("text", "a str")])
def test_other_content(tmp_path: Path, value: Any, described: str) -> None:
    with pytest.raises(CheckpointError) as error:
        load(save(value, tmp_path / "other.pt"))
    assert error.value.code == "checkpoint-without-model"
    assert error.value.fields["content"] == described


def test_module_of_another_package(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        load(save({"model": torch.nn.Linear(2, 2)}, tmp_path / "linear.pt"))
    assert error.value.code == "checkpoint-model-unknown"
    assert error.value.fields["model"] == "torch.nn.modules.linear.Linear"


def test_yolov5(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_modules(monkeypatch, "models", "models.yolo")
    with pytest.raises(CheckpointError) as error:
        load(save({"model": fake_class("models.yolo", "DetectionModel")()}, tmp_path / "v5.pt"))
    assert error.value.code == "checkpoint-model-unknown"
    assert error.value.fields["model"] == "models.yolo.DetectionModel"


def test_torchscript(tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), path)
    with pytest.raises(CheckpointError) as error:
        load(path)
    assert error.value.code == "checkpoint-torchscript"


def test_other_zip_archive(tmp_path: Path) -> None:
    path = tmp_path / "arrays.pt"
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(3))
    with pytest.raises(CheckpointError) as error:
        load(path)
    assert error.value.code == "checkpoint-foreign"
    assert error.value.fields["kind"] == "zip"


def test_plain_pickle(tmp_path: Path) -> None:
    path = tmp_path / "plain.pt"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError) as error:
        load(path)
    assert error.value.code == "checkpoint-foreign"
    assert error.value.fields["kind"] == "pickle"


def test_compressed_archive(checkpoint: Path, tmp_path: Path) -> None:
    inside = read_members(checkpoint)
    path = write_archive(tmp_path / "zip.pt", inside["best/data.pkl"], compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError) as error:
        load(path)
    assert error.value.code == "checkpoint-compressed"


def test_missing_storage(checkpoint: Path, tmp_path: Path) -> None:
    path = rewrite_archive(
        checkpoint, tmp_path / "hole.pt", lambda all_: {k: v for k, v in all_.items() if k != "best/data/3"}
    )
    with pytest.raises(CheckpointError) as error:
        load(path)
    assert error.value.code == "checkpoint-member-missing"
    assert error.value.fields["member"] == "best/data/3"


def test_short_storage(checkpoint: Path, tmp_path: Path) -> None:
    path = rewrite_archive(checkpoint, tmp_path / "short.pt", lambda all_: {**all_, "best/data/3": b"\0"})
    with pytest.raises(CheckpointError) as error:
        load(path)
    assert error.value.code == "checkpoint-tensor-damaged"


def test_other_byte_order(checkpoint: Path, tmp_path: Path) -> None:
    path = rewrite_archive(checkpoint, tmp_path / "big.pt", lambda all_: {**all_, "best/byteorder": b"big"})
    with pytest.raises(CheckpointError) as error:
        load(path)
    assert error.value.code == "checkpoint-byte-order"


def test_members_that_share_bytes(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("best/data.pkl", b"\x80\x02N.")
        file.writestr("best/data/0", bytes(4096))
        for index in range(1, 2000):
            copied = copy.copy(file.getinfo("best/data/0"))
            copied.filename = f"best/data/{index}"
            file.filelist.append(copied)
    path = tmp_path / "bomb.pt"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError) as error:
        load(path)
    assert error.value.code == "checkpoint-oversized-archive"


def test_weights_of_another_shape(content: dict[str, Any], tmp_path: Path) -> None:
    content["model"].model[0].conv.weight = torch.nn.Parameter(torch.zeros(4, 3, 3, 3))
    with pytest.raises(CheckpointError) as error:
        load(save(content, tmp_path / "small.pt"))
    assert error.value.code == "checkpoint-weights-mismatch"
    assert error.value.fields["weight"] == "model.0.conv.weight"
    assert error.value.fields["shape"] == (4, 3, 3, 3)
    assert error.value.fields["expected"] == (8, 3, 3, 3)


def test_surplus_weights(content: dict[str, Any], tmp_path: Path) -> None:
    content["model"].model[0].extra = torch.nn.Parameter(torch.zeros(4))
    with pytest.raises(CheckpointError) as error:
        load(save(content, tmp_path / "extra.pt"))
    assert error.value.code == "checkpoint-weights-mismatch"
    assert error.value.fields["weight"] == "model.0.extra"
    assert error.value.fields["shape"] == (4,)
    assert error.value.fields["expected"] is None


def test_wrong_strides(content: dict[str, Any], tmp_path: Path) -> None:
    content["model"].stride = torch.tensor([8.0, 16.0])
    with pytest.raises(CheckpointError) as error:
        load(save(content, tmp_path / "strides.pt"))
    assert error.value.code == "checkpoint-stride-mismatch"
    assert error.value.fields["value"] == (8.0, 16.0)
    assert error.value.fields["expected"] == (4, 8)


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": []},
        {"backbone": None},
        {"backbone": [[-1, 1, "Conv"]]},
        {"backbone": [[5, 1, "Conv", [8, 3, 2]]]},
        {"backbone": [[-1, 1, "Conv", [10**9, 3, 2]]]},
        {"backbone": [[-1, 10**9, "Conv", [8, 3, 2]]]},
        {"backbone": [[-1, 1, "Conv", ["wide", 3, 2]]]},
        {"scales": {"n": [1.0]}},
        {"scale": "huge"},
        {"nc": -1},
        {"nc": None},
        {"reg_max": "many"},
        {"head": [[-1, 1, "Pose", ["nc", [4, 5]]]]},
        {"head": [[[2, 1], 1, "OBB", ["nc", 2]]]},
    ],
)
def test_invalid_architecture(content: dict[str, Any], tmp_path: Path, change: dict[str, Any]) -> None:
    content["model"].yaml = {**TINY, **change}
    with pytest.raises(CheckpointError) as error:
        load(save(content, tmp_path / "invalid.pt"))
    assert error.value.code in (
        "checkpoint-architecture-invalid",
        "checkpoint-weights-mismatch",
        "checkpoint-layer-mismatch",
    )


def test_module_inside_itself(content: dict[str, Any], tmp_path: Path) -> None:
    content["model"].model[0]._modules["again"] = content["model"].model[0]
    with pytest.raises(CheckpointError) as error:
        load(save(content, tmp_path / "loop.pt"))
    assert error.value.code == "checkpoint-nesting"


def test_settings_inside_themselves(content: dict[str, Any], tmp_path: Path) -> None:
    content["model"].yaml["again"] = content["model"].yaml
    with pytest.raises(CheckpointError) as error:
        load(save(content, tmp_path / "loop.pt"))
    assert error.value.code == "checkpoint-nesting"


def test_settings_that_double_at_every_level(content: dict[str, Any], tmp_path: Path) -> None:
    value: list[Any] = ["ha"]
    for _ in range(30):
        value = [value, value]
    content["train_args"]["laughs"] = value
    with pytest.raises(CheckpointError) as error:
        load(save(content, tmp_path / "laughs.pt"))
    assert error.value.code == "checkpoint-nesting"


def test_an_archive_of_which_one_member_is_compressed(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "mixed.pt"
    with zipfile.ZipFile(checkpoint) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            compression = zipfile.ZIP_DEFLATED if name.endswith("/data.pkl") else zipfile.ZIP_STORED
            target.writestr(name, source.read(name), compression)
    with pytest.raises(CheckpointError) as error:
        load(path)
    assert error.value.code == "checkpoint-compressed"


def test_modules_of_long_names_are_bounded(content: dict[str, Any], tmp_path: Path) -> None:
    """Each module below one repeats its name."""
    content["model"].model.add_module("x" * 600, torch.nn.Identity())
    with pytest.raises(CheckpointError) as error:
        load(save(content, tmp_path / "names.pt"))
    assert error.value.code == "checkpoint-nesting"


def test_a_stride_that_no_head_has_is_not_read(content: dict[str, Any], tmp_path: Path) -> None:
    content["model"].stride = torch.ones(17)
    assert load(save(content, tmp_path / "stride.pt")).stride == 8


def test_tensors_that_share_bytes_are_bounded(content: dict[str, Any], tmp_path: Path) -> None:
    big = torch.nn.Parameter(torch.zeros(100_000))
    for index in range(10):
        content["model"].model[0].register_parameter(f"copy{index}", big)
    for index in range(10):
        content["model"].model[1].register_parameter(f"copy{index}", torch.nn.Parameter(big.data[:]))
    with pytest.raises(CheckpointError) as error:
        load(save(content, tmp_path / "shared.pt"))
    assert error.value.code == "checkpoint-oversized-tensors"


def test_unsafe_is_a_checkpoint_error() -> None:
    assert issubclass(UnsafeCheckpointError, CheckpointError)
    assert issubclass(UnknownLayerError, CheckpointError)


COLLIDING = b"".join(b"\x8a\x10" + (n * (2**61 - 1)).to_bytes(16, "little") + b"N" for n in range(1, 1000))
NEGATIVE = b"".join(b"\x8a\x10" + (n * (1 - 2**61)).to_bytes(16, "little", signed=True) + b"N" for n in range(1, 1000))
TUPLES = b"".join(b"J" + n.to_bytes(4, "little") + b"\x85N" for n in range(1000))
COLLIDING_PAIRS = b"".join(b"\x8a\x10" + (n * (2**61 - 1)).to_bytes(16, "little") + b"N\x86" for n in range(1, 1000))
PAIRS = b"(" + b"K\x01K\x02\x86" * 1000 + b"t\x85q\x01"


@pytest.mark.parametrize("is_legacy", [False, True])
@pytest.mark.parametrize(
    "program",
    [
        pytest.param(b"}" * 100_000, id="empty dictionaries"),
        pytest.param(b"\x8f" * 100_000, id="empty sets"),
        pytest.param(b"(" * 100_000, id="marks"),
        pytest.param(b"}(" + COLLIDING + b"u", id="integers of one hash"),
        pytest.param(b"}(" + NEGATIVE + b"u", id="negative integers of one hash"),
        pytest.param(b"ccollections\nOrderedDict\n(" + COLLIDING_PAIRS + b"t\x85R", id="pairs of one hash"),
        pytest.param(b"}(" + TUPLES + b"u", id="tuples as keys"),
        pytest.param(PAIRS + b"ccollections\nOrderedDict\nh\x01R0" * 1000 + b"N", id="the same pairs again and again"),
        pytest.param(PAIRS + b"cdatetime\ndate\nh\x01\x810" * 100 + b"h\x01" * 10, id="the same arguments"),
        pytest.param(PAIRS + b"cdatetime\ndate\nh\x01}\x920" * 100 + b"h\x01", id="the same arguments by NEWOBJ_EX"),
    ],
)
def test_pickles_that_ask_for_time_or_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: bytes, is_legacy: bool
) -> None:
    monkeypatch.setattr(unpickler, "WORK_LIMIT", 50_000)
    program = b"\x80\x02" + program + b"."
    path = tmp_path / "bomb.pt"
    path.write_bytes(program) if is_legacy else write_archive(path, program)
    with pytest.raises(CheckpointError) as error:
        load(path)
    assert error.value.code == "checkpoint-pickle-damaged"


def test_a_pickle_beyond_the_limit(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        load(write_archive(tmp_path / "bomb.pt", b"\x80\x02" + b"}" * (8 << 20) + b"."))
    assert error.value.code == "checkpoint-oversized-pickle"


def test_the_second_pickle_of_the_old_format_is_limited_too(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    first = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    path.write_bytes(
        first + pickle.dumps(1001, 2) + b"\x80\x02X" + (9 << 20).to_bytes(4, "little") + bytes(9 << 20) + b"."
    )
    with pytest.raises(CheckpointError) as error:
        load(path)
    assert error.value.code == "checkpoint-pickle-damaged"


@pytest.mark.parametrize("place", [6, 10])
def test_versions_and_flags_of_zip_that_do_not_exist(checkpoint: Path, place: int) -> None:
    """Such as "zip file version 12.8", in the directory at the archive's end."""
    data = bytearray(checkpoint.read_bytes())
    data[data.index(b"PK\x01\x02") + place] = 0x80
    checkpoint.write_bytes(data)
    with pytest.raises(CheckpointError) as error:
        load(checkpoint)
    assert error.value.code.startswith("checkpoint-")


@pytest.mark.parametrize("name", ["x" * 300 + ".pt", "x" * 300 + ".onnx", "x" * 5000])
def test_paths_that_no_file_can_have(name: str) -> None:
    with pytest.raises(ModelError) as error:
        load(name)
    assert error.value.code == "model-path-invalid"
    assert len(str(error.value)) < 4000
