"""The two file formats of `torch.save`: a zip archive, and the pickles in a row from before torch 1.6."""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Callable
from typing import Any

import torch

from trtkit.errors import CheckpointError
from trtkit.sources.pickled import Record, Storage, TensorRecord, read_pickle

__all__ = ["Fetch", "open_legacy", "open_zip"]

MAGIC = 0x1950A86A20F9469CFC6C
PICKLE_LIMIT = 64 << 20

Fetch = Callable[[TensorRecord], torch.Tensor]


def open_zip(file: io.BufferedReader, asked: str) -> tuple[Any, Fetch]:
    """The pickle's content and a way to its tensors, from a zip archive as torch writes it."""
    again = "copy or download it again"
    size = file.seek(0, io.SEEK_END)
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise CheckpointError(asked, "the file is cut short or damaged", again) from error
    members = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if any(name.endswith("/constants.pkl") for name in members):
        raise CheckpointError(
            asked, "it is a TorchScript export, whose layers can't be read", "load the checkpoint it came from"
        )
    if len(pickles) != 1:
        raise CheckpointError(
            asked, "it is a zip archive that torch.save did not write", "name a checkpoint that Ultralytics wrote"
        )
    prefix = pickles[0].removesuffix("data.pkl")
    if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
        raise CheckpointError(
            asked, "the archive is compressed, which torch.save never does", "save the checkpoint with torch.save"
        )
    if sum(info.file_size for info in members.values()) > size or members[pickles[0]].file_size > PICKLE_LIMIT:
        raise CheckpointError(asked, "the archive claims more bytes than the file has", again)

    def member(name: str) -> bytes:
        if name not in members:
            raise CheckpointError(asked, f"the archive lacks {name}", again)
        try:
            return archive.read(name)
        except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, RuntimeError, ValueError) as error:
            raise CheckpointError(asked, f"{name} in it is damaged", again) from error

    if f"{prefix}byteorder" in members and member(f"{prefix}byteorder").decode("latin-1") != sys.byteorder:
        raise CheckpointError(
            asked, "it was written on a machine of the other byte order", "save it again on this machine"
        )
    storages: dict[str, bytearray] = {}

    def content(storage: Storage) -> bytearray:
        if storage.key not in storages:
            storages[storage.key] = bytearray(member(f"{prefix}data/{storage.key}"))
        return storages[storage.key]

    return read_pickle(io.BytesIO(member(pickles[0])), asked), lambda record: _tensor(
        record, content(record.storage), asked
    )


def open_legacy(whole: io.BufferedReader, asked: str) -> tuple[Any, Fetch]:
    """The same, from the format before torch 1.6: five pickles in a row, then the storages."""
    # In memory, where a pickle that claims gigabytes gets no more than there is.
    file = io.BytesIO(whole.read())
    if read_pickle(file, asked) != MAGIC:
        raise CheckpointError(
            asked, "it is a plain pickle that torch.save did not write", "name a checkpoint that Ultralytics wrote"
        )
    read_pickle(file, asked)
    system = read_pickle(file, asked)
    if not (isinstance(system, dict) and system.get("little_endian") is (sys.byteorder == "little")):
        raise CheckpointError(
            asked, "it was written on a machine of the other byte order", "save it again on this machine"
        )
    root = read_pickle(file, asked)
    keys = read_pickle(file, asked)
    start, size = file.tell(), file.seek(0, io.SEEK_END)
    file.seek(start)
    storages: dict[str, bytearray] = {}

    def content(storage: Storage) -> bytearray:
        # The storages follow one another without a table, and only the pickle knows how wide their elements are.
        if not storages:
            widths = {record.storage.key: record.storage.kind.itemsize for record in _tensors(root)}
            for key in keys if isinstance(keys, list) else []:
                head = file.read(8)
                length = int.from_bytes(head, "little") * widths.get(key, 0)
                if len(head) < 8 or length > size - file.tell() or key not in widths:
                    raise CheckpointError(asked, "the file is cut short or damaged", "copy or download it again")
                storages[key] = bytearray(file.read(length))
        return storages.get(storage.key, bytearray())

    return root, lambda record: _tensor(record, content(record.storage), asked)


def _tensors(root: Any) -> list[TensorRecord]:
    """Every tensor in a pickle's content."""
    found, seen, pending = [], set(), [root]
    while pending:
        value = pending.pop()
        if isinstance(value, TensorRecord):
            found.append(value)
        elif id(value) not in seen and isinstance(value, (dict, list, tuple, Record)):
            seen.add(id(value))
            if isinstance(value, Record):
                pending += [value.arguments, value.state]
            else:
                pending += value.values() if isinstance(value, dict) else value
    return found


def _tensor(record: TensorRecord, data: bytearray, asked: str) -> torch.Tensor:
    """The tensor that a record describes; it shares the storage's memory."""
    kind = record.storage.kind
    if len(data) < record.storage.length * kind.itemsize:
        raise CheckpointError(asked, "a tensor in it has fewer bytes than it claims", "copy or download the file again")
    dtype: torch.dtype = getattr(torch, kind.dtype)
    try:
        if not data or 0 in record.size:
            return torch.empty(record.size, dtype=dtype)
        return torch.frombuffer(data, dtype=dtype).as_strided(record.size, record.stride, record.offset)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(
            asked, "a tensor in it has an impossible shape", "copy or download the file again"
        ) from error
