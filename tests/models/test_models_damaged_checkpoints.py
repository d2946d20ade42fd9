"""Checkpoints that are missing, damaged, foreign or senseless: one sentence each."""

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

from trtkit.errors import CheckpointError, UnknownLayerError, UnsafeCheckpointError
from trtkit.models import load
from trtkit.models.unpickler import read_legacy
from trtkit.models.yolo import build_model

# Saving classes made in a test, torch can't keep their source code beside them.
pytestmark = pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")


def save(value: Any, path: Path, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


def test_unknown_activation_is_named(content: dict[str, Any], tmp_path: Path) -> None:
    content["model"].model[0].act = torch.nn.Softplus()
    with pytest.raises(UnknownLayerError, match="an activation Softplus"):
        load(save(content, tmp_path / "softplus.pt"))


def test_unknown_layer_is_named(content: dict[str, Any], tmp_path: Path) -> None:
    content["model"].yaml = {**TINY, "backbone": [*TINY["backbone"][:2], [-1, 1, "GhostConv", [16]]]}
    with pytest.raises(UnknownLayerError, match=r"a layer GhostConv\(16\), which trtkit does not build"):
        load(save(content, tmp_path / "ghost.pt"))


def test_unknown_head_is_named(content: dict[str, Any], tmp_path: Path) -> None:
    content["model"].yaml = {**TINY, "head": [*TINY["head"][:1], [[2, 3], 1, "RTDETRDecoder", ["nc"]]]}
    with pytest.raises(UnknownLayerError, match="RTDETRDecoder"):
        load(save(content, tmp_path / "rtdetr.pt"))


def test_end_to_end_head_is_named(content: dict[str, Any], tmp_path: Path) -> None:
    content["model"].yaml = {**TINY, "end2end": True}
    with pytest.raises(UnknownLayerError, match="end-to-end head"):
        load(save(content, tmp_path / "end2end.pt"))


def test_layer_that_differs_from_its_architecture_is_named(content: dict[str, Any], tmp_path: Path) -> None:
    layer = content["model"].model[2]
    layer.__class__ = fake_class("ultralytics.nn.modules.block", "C2fAttn")
    with pytest.raises(UnknownLayerError, match="a layer C2fAttn stands where its architecture says C2f"):
        load(save(content, tmp_path / "swapped.pt"))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([-1, 1, "nn.Upsample", [[9, 9], 2, "nearest"]], r"nn\.Upsample\(\[9, 9\], 2"),
        ([[1, 0], 1, "Concat", [2]], r"Concat\(2\)"),
    ],
)
def test_layers_used_otherwise_than_in_yolo_are_named(
    content: dict[str, Any], tmp_path: Path, row: list[Any], said: str
) -> None:
    content["model"].yaml = {**TINY, "backbone": [*TINY["backbone"], row]}
    with pytest.raises(UnknownLayerError, match=f"a layer {said}"):
        load(save(content, tmp_path / "odd.pt"))


def test_activation_of_the_architecture(content: dict[str, Any], tmp_path: Path) -> None:
    assert type(build_model({**TINY, "activation": "torch.nn.ReLU(inplace=True)"}).model[0].act) is torch.nn.ReLU
    content["model"].yaml = {**TINY, "activation": "__import__('os').system('true')"}
    with pytest.raises(UnknownLayerError, match="an activation __import__"):
        load(save(content, tmp_path / "attack.pt"))


def test_keys_of_any_kind_do_no_harm(content: dict[str, Any], tmp_path: Path) -> None:
    content["model"].yaml.update({1: 2, b"x": 3, None: 4})
    assert len(load(save(content, tmp_path / "keys.pt")).hash) == 64


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.pt: the file does not exist; check the path\."):
        load(tmp_path / "absent.pt")


def test_folder(tmp_path: Path) -> None:
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(CheckpointError, match="it is a folder"):
        load(tmp_path / "folder.pt")


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.pt"
    path.touch()
    with pytest.raises(CheckpointError, match="the file is empty"):
        load(path)


@pytest.mark.parametrize("part", [0.02, 0.5, 0.99])
def test_truncated_file(checkpoint: Path, part: float) -> None:
    data = checkpoint.read_bytes()
    checkpoint.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(CheckpointError, match="the file is cut short or damaged"):
        load(checkpoint)


def test_truncated_file_of_the_old_format(content: dict[str, Any], tmp_path: Path) -> None:
    path = save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="the file is cut short or damaged"):
        load(path)


@pytest.mark.parametrize("missing", [1, 19, 20, 21, 27, 40])
def test_old_format_cut_between_its_storages(tmp_path: Path, missing: int) -> None:
    """Two storages of 12 bytes behind 8 that say so: a cut between them leaves nothing that looks wrong by itself."""
    tensors = {"one": torch.ones(3), "two": torch.ones(3) * 2}
    data = save(tensors, tmp_path / "old.pt", _use_new_zipfile_serialization=False).read_bytes()
    root, fetch = read_legacy(io.BufferedReader(io.BytesIO(data)), "load")
    assert [fetch(record).tolist() for record in root.values()] == [[1, 1, 1], [2, 2, 2]]
    root, fetch = read_legacy(io.BufferedReader(io.BytesIO(data[:-missing])), "load")
    with pytest.raises(CheckpointError, match="the file is cut short or damaged"):
        fetch(root["one"])


def test_damaged_byte(checkpoint: Path) -> None:
    data = bytearray(checkpoint.read_bytes())
    with zipfile.ZipFile(checkpoint) as file:
        info = max(file.infolist(), key=lambda member: member.file_size if "/data/" in member.filename else 0)
    data[info.header_offset + len(info.filename) + info.file_size // 2] ^= 0xFF
    checkpoint.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        load(checkpoint)


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer, not the file itself"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"hello", "no PyTorch file"),
    ],
)
def test_other_files_are_named(tmp_path: Path, start: bytes, said: str) -> None:
    path = tmp_path / "other.pt"
    path.write_bytes(start + bytes(100))
    with pytest.raises(CheckpointError, match=said):
        load(path)


def test_state_dict(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a state_dict of 1 tensors without an architecture, not a YOLO model"):
        load(save(collections.OrderedDict(weight=torch.zeros(2)), tmp_path / "state.pt"))


def test_state_dict_of_a_module_with_its_metadata(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a state_dict of 2 tensors"):
        load(save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "state.pt"))


def test_other_training_checkpoint(tmp_path: Path) -> None:
    value = {"state_dict": {"w": torch.zeros(2)}, "optimizer": {}, "epoch": 3}
    with pytest.raises(CheckpointError, match="a dictionary of state_dict, optimizer, epoch, not a YOLO model"):
        load(save(value, tmp_path / "lightning.pt"))


@pytest.mark.parametrize(("value", "said"), [(torch.zeros(3), "a tensor"), ([1, 2], "a list"), ("text", "a str")])
def test_other_content(tmp_path: Path, value: Any, said: str) -> None:
    with pytest.raises(CheckpointError, match=f"it holds {said}, not a YOLO model"):
        load(save(value, tmp_path / "other.pt"))


def test_module_of_somebody_else(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"its model is a torch\.nn\.modules\.linear\.Linear"):
        load(save({"model": torch.nn.Linear(2, 2)}, tmp_path / "linear.pt"))


def test_yolov5_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_modules(monkeypatch, "models", "models.yolo")
    with pytest.raises(CheckpointError, match=r"its model is a models\.yolo\.DetectionModel"):
        load(save({"model": fake_class("models.yolo", "DetectionModel")()}, tmp_path / "v5.pt"))


def test_torchscript_is_named(tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), path)
    with pytest.raises(CheckpointError, match="a TorchScript export, whose layers can't be read"):
        load(path)


def test_other_zip_archive(tmp_path: Path) -> None:
    path = tmp_path / "arrays.pt"
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(3))
    with pytest.raises(CheckpointError, match=r"a zip archive that torch\.save did not write"):
        load(path)


def test_plain_pickle(tmp_path: Path) -> None:
    path = tmp_path / "plain.pt"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match=r"a plain pickle that torch\.save did not write"):
        load(path)


def test_compressed_archive(checkpoint: Path, tmp_path: Path) -> None:
    inside = read_members(checkpoint)
    path = write_archive(tmp_path / "zip.pt", inside["best/data.pkl"], compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="the archive is compressed"):
        load(path)


def test_missing_storage(checkpoint: Path, tmp_path: Path) -> None:
    path = rewrite_archive(
        checkpoint, tmp_path / "hole.pt", lambda all_: {k: v for k, v in all_.items() if k != "best/data/3"}
    )
    with pytest.raises(CheckpointError, match="the archive lacks best/data/3"):
        load(path)


def test_short_storage(checkpoint: Path, tmp_path: Path) -> None:
    path = rewrite_archive(checkpoint, tmp_path / "short.pt", lambda all_: {**all_, "best/data/3": b"\0"})
    with pytest.raises(CheckpointError, match="fewer bytes than it claims"):
        load(path)


def test_other_byte_order(checkpoint: Path, tmp_path: Path) -> None:
    path = rewrite_archive(checkpoint, tmp_path / "big.pt", lambda all_: {**all_, "best/byteorder": b"big"})
    with pytest.raises(CheckpointError, match="the other byte order"):
        load(path)


def test_members_that_share_bytes_are_a_bomb(tmp_path: Path) -> None:
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
    with pytest.raises(CheckpointError, match="claims more bytes than the file has"):
        load(path)


def test_weights_that_do_not_fit_are_named(content: dict[str, Any], tmp_path: Path) -> None:
    content["model"].model[0].conv.weight = torch.nn.Parameter(torch.zeros(4, 3, 3, 3))
    with pytest.raises(CheckpointError, match=r"model\.0\.conv\.weight is \(4, 3, 3, 3\) instead of \(8, 3, 3, 3\)"):
        load(save(content, tmp_path / "small.pt"))


def test_surplus_weights_are_named(content: dict[str, Any], tmp_path: Path) -> None:
    content["model"].model[0].extra = torch.nn.Parameter(torch.zeros(4))
    with pytest.raises(CheckpointError, match=r"model\.0\.extra is \(4,\) instead of None"):
        load(save(content, tmp_path / "extra.pt"))


def test_false_strides(content: dict[str, Any], tmp_path: Path) -> None:
    content["model"].stride = torch.tensor([8.0, 16.0])
    with pytest.raises(CheckpointError, match=r"claims strides \(8\.0, 16\.0\) where its layers have \(4, 8\)"):
        load(save(content, tmp_path / "strides.pt"))


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
def test_senseless_architecture(content: dict[str, Any], tmp_path: Path, change: dict[str, Any]) -> None:
    content["model"].yaml = {**TINY, **change}
    with pytest.raises(CheckpointError, match=r"its architecture makes no sense|do not fit|stands where"):
        load(save(content, tmp_path / "senseless.pt"))


def test_module_inside_itself(content: dict[str, Any], tmp_path: Path) -> None:
    content["model"].model[0]._modules["again"] = content["model"].model[0]
    with pytest.raises(CheckpointError, match="nested without end"):
        load(save(content, tmp_path / "loop.pt"))


def test_settings_inside_themselves(content: dict[str, Any], tmp_path: Path) -> None:
    content["model"].yaml["again"] = content["model"].yaml
    with pytest.raises(CheckpointError, match="nested without end"):
        load(save(content, tmp_path / "loop.pt"))


def test_settings_that_double_at_every_level(content: dict[str, Any], tmp_path: Path) -> None:
    value: list[Any] = ["ha"]
    for _ in range(30):
        value = [value, value]
    content["train_args"]["laughs"] = value
    with pytest.raises(CheckpointError, match="nested without end"):
        load(save(content, tmp_path / "laughs.pt"))


def test_tensors_that_share_bytes_are_bounded(content: dict[str, Any], tmp_path: Path) -> None:
    big = torch.nn.Parameter(torch.zeros(100_000))
    for index in range(100):
        content["model"].model[0].register_parameter(f"copy{index}", big)
    for index in range(100):
        content["model"].model[1].register_parameter(f"copy{index}", torch.nn.Parameter(big.data[:]))
    with pytest.raises(CheckpointError, match="more elements than the file has bytes"):
        load(save(content, tmp_path / "shared.pt"))


def test_unsafe_is_a_checkpoint_error() -> None:
    assert issubclass(UnsafeCheckpointError, CheckpointError)
    assert issubclass(UnknownLayerError, CheckpointError)
