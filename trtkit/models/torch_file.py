"""The two file formats of `torch.save`: a zip archive, and, before torch 1.6, a sequence of pickles."""

from __future__ import annotations

import io
import struct
import sys
import zipfile
from collections.abc import Callable
from typing import Any

import torch

from trtkit.errors import CheckpointError
from trtkit.models.unpickler import PICKLE_LIMIT, Record, Storage, TensorRecord, read_pickle

__all__ = ["TensorReader", "read_legacy", "read_zip"]

MAGIC = 0x1950A86A20F9469CFC6C
AGAIN = "copy or download it again"

TensorReader = Callable[[TensorRecord], torch.Tensor]
"""Reads the tensor of a record from its file."""


def read_zip(file: io.BufferedReader, asked: str) -> tuple[Any, TensorReader]:
    """Read a zip archive of `torch.save`.

    Args:
        file: The archive.
        asked: What was asked for, for errors.

    Returns:
        The pickle's content, and the function that reads its tensors.

    Raises:
        UnsafeCheckpointError: The pickle names something other than tensors, containers and known classes.
        CheckpointError: The archive is damaged or was not written by `torch.save`.
    """
    size = file.seek(0, io.SEEK_END)
    try:
        archive = zipfile.ZipFile(file)
    except NotImplementedError as error:
        raise CheckpointError(
            asked, f"it is a zip archive of an unknown kind ({error})", AGAIN, code="checkpoint-foreign", kind="zip"
        ) from error
    except (zipfile.BadZipFile, ArithmeticError, LookupError, OSError, RuntimeError, ValueError, struct.error) as error:
        raise _truncated(asked) from error
    members = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if any(name.endswith("/constants.pkl") for name in members):
        raise CheckpointError(
            asked,
            "it is a TorchScript export, whose layers can't be read",
            "load the checkpoint it was exported from",
            code="checkpoint-torchscript",
        )
    if len(pickles) != 1:
        raise CheckpointError(
            asked,
            "it is a zip archive that torch.save did not write",
            "name an Ultralytics checkpoint",
            code="checkpoint-foreign",
            kind="zip",
        )
    prefix = pickles[0].removesuffix("data.pkl")
    if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
        raise CheckpointError(
            asked,
            "the archive is compressed, which torch.save never does",
            "save the checkpoint with torch.save",
            code="checkpoint-compressed",
        )
    if sum(info.file_size for info in members.values()) > size:
        raise CheckpointError(
            asked, "the archive claims more bytes than the file has", AGAIN, code="checkpoint-oversized-archive"
        )
    if members[pickles[0]].file_size > PICKLE_LIMIT:
        raise CheckpointError(
            asked,
            f"its pickle has {members[pickles[0]].file_size:,} bytes, and a checkpoint's at most {PICKLE_LIMIT:,}",
            "use a checkpoint from a source you trust",
            code="checkpoint-oversized-pickle",
            size=members[pickles[0]].file_size,
        )

    def read_member(name: str) -> bytes:
        if name not in members:
            raise CheckpointError(
                asked, f"the archive lacks {name}", AGAIN, code="checkpoint-member-missing", member=name
            )
        try:
            return archive.read(name)
        except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError, struct.error) as error:
            raise CheckpointError(
                asked, f"{name} in it is damaged", AGAIN, code="checkpoint-member-damaged", member=name
            ) from error

    if f"{prefix}byteorder" in members and read_member(f"{prefix}byteorder").decode("latin-1") != sys.byteorder:
        raise _other_byte_order(asked)
    storages: dict[str, bytearray] = {}

    def read_storage(storage: Storage) -> bytearray:
        if storage.key not in storages:
            storages[storage.key] = bytearray(read_member(f"{prefix}data/{storage.key}"))
        return storages[storage.key]

    root = read_pickle(io.BytesIO(read_member(pickles[0])), asked)
    return root, lambda record: _read_tensor(record, read_storage(record.storage), asked)


def read_legacy(whole: io.BufferedReader, asked: str) -> tuple[Any, TensorReader]:
    """Read a file of the format before torch 1.6: five pickles in sequence, then the storages.

    Args:
        whole: The file.
        asked: What was asked for, for errors.

    Returns:
        The pickle's content, and the function that reads its tensors.

    Raises:
        UnsafeCheckpointError: A pickle names something other than tensors, containers and known classes.
        CheckpointError: The file is damaged or was not written by `torch.save`.
    """
    # In memory, so that a pickle that claims gigabytes gets no more than the file has.
    file = io.BytesIO(whole.read())
    if read_pickle(file, asked) != MAGIC:
        raise CheckpointError(
            asked,
            "it is a plain pickle that torch.save did not write",
            "name an Ultralytics checkpoint",
            code="checkpoint-foreign",
            kind="pickle",
        )
    read_pickle(file, asked)
    system = read_pickle(file, asked)
    if not (isinstance(system, dict) and system.get("little_endian") is (sys.byteorder == "little")):
        raise _other_byte_order(asked)
    root = read_pickle(file, asked)
    keys = read_pickle(file, asked)
    # Hashing a deep tuple would overflow the stack.
    if not (isinstance(keys, list) and all(type(key) is str for key in keys)):
        raise _truncated(asked)
    start, size = file.tell(), file.seek(0, io.SEEK_END)
    file.seek(start)
    storages: dict[str, bytearray] = {}

    def read_storage(storage: Storage) -> bytearray:
        # The storages follow one another without a table, and only the pickle holds the size of their elements.
        if not storages:
            itemsizes = {record.storage.key: record.storage.kind.itemsize for record in _collect_tensors(root)}
            for key in keys:
                head = file.read(8)
                length = int.from_bytes(head, "little") * itemsizes.get(key, 0)
                if len(head) < 8 or length > size - file.tell() or key not in itemsizes:
                    raise _truncated(asked)
                storages[key] = bytearray(file.read(length))
        return storages.get(storage.key, bytearray())

    return root, lambda record: _read_tensor(record, read_storage(record.storage), asked)


def _truncated(asked: str) -> CheckpointError:
    return CheckpointError(asked, "the file is truncated or damaged", AGAIN, code="checkpoint-truncated")


def _other_byte_order(asked: str) -> CheckpointError:
    return CheckpointError(
        asked,
        "it was written on a machine of the other byte order",
        "save it again on this machine",
        code="checkpoint-byte-order",
    )


def _collect_tensors(root: Any) -> list[TensorRecord]:
    """Every tensor in a pickle's content."""
    tensors, visited, pending = [], set(), [root]
    while pending:
        value = pending.pop()
        if isinstance(value, TensorRecord):
            tensors.append(value)
        elif id(value) not in visited and isinstance(value, (dict, list, tuple, Record)):
            visited.add(id(value))
            if isinstance(value, Record):
                pending += [value.arguments, value.state]
            else:
                pending += value.values() if isinstance(value, dict) else value
    return tensors


def _read_tensor(record: TensorRecord, data: bytearray, asked: str) -> torch.Tensor:
    """The tensor of a record; it shares the storage's memory."""
    kind = record.storage.kind
    if len(data) < record.storage.length * kind.itemsize:
        raise CheckpointError(
            asked, "a tensor in it has fewer bytes than it claims", AGAIN, code="checkpoint-tensor-damaged"
        )
    dtype: torch.dtype = getattr(torch, kind.dtype)
    try:
        if not data or 0 in record.size:
            return torch.empty(record.size, dtype=dtype)
        return torch.frombuffer(data, dtype=dtype).as_strided(record.size, record.stride, record.offset)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(
            asked, "a tensor in it has an impossible shape", AGAIN, code="checkpoint-tensor-damaged"
        ) from error
