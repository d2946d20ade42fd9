"""Engine files: `4-byte little-endian length + JSON + plan`, with Ultralytics' keys on top and our passport inside."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from trtkit.backends.passport import Passport
from trtkit.errors import EngineError
from trtkit.files import hash_of, write_bytes, writing
from trtkit.sources.card import Card

__all__ = ["EngineFile", "read_engine", "strip_engine", "wrap_engine", "write_engine"]

KEY = "trtkit"
# Plans start with a letter and "trt": "ptrt" and "ftrt" are TensorRT's, "vtrt" is TensorRT-RTX's.
MARK, RTX_MARK = b"trt", b"vtrt"
LONGEST_HEADER = 64 * 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineFile:
    """An engine file that was read.

    Attributes:
        path: The file.
        metadata: Ultralytics' keys; empty for a bare plan.
        passport: Ours, or None for engines of others.
        plan: What TensorRT deserialises.
        backend: "tensorrt" or "tensorrt_rtx", by the passport or by the plan's first bytes.
    """

    path: Path
    metadata: Mapping[str, Any]
    passport: Passport | None
    plan: bytes = dataclasses.field(repr=False)
    backend: str

    def card(self, *, task: str | None = None, names: Mapping[int, str] | None = None) -> Card:
        """The model's description.

        Args:
            task: Overrides the file's; a bare plan needs it.
            names: Class names, where the file has none.

        Raises:
            EngineError: The task is unknown, or the metadata does not parse.
        """
        known = {key: value for key, value in self.metadata.items() if key != KEY}
        if task is not None:
            known["task"] = task
        if names is not None:
            known["names"] = dict(names)
        if "task" not in known:
            raise EngineError(
                f"open {self.path}", "it is a bare plan and tells no task", "pass task=, such as task='detect'"
            )
        known.setdefault("names", {})
        try:
            return Card.from_metadata(known)
        except (KeyError, ValueError, TypeError) as error:
            raise EngineError(
                f"open {self.path}", f"its metadata does not parse ({error})", "export the model again"
            ) from error


def write_engine(
    path: str | Path,
    plan: bytes,
    metadata: Mapping[str, Any] | Card,
    passport: Passport | None,
    *,
    overwrite: bool = True,
) -> Path:
    """Write an engine file, whole or not at all.

    Args:
        path: The file.
        plan: From `Built`.
        metadata: Ultralytics' keys (`Card.to_metadata`), or a card.
        passport: Where it comes from; None writes a file as Ultralytics does.
        overwrite: Replace the file if it exists.

    Raises:
        OutputError: The file can't be written, or exists.
    """
    header = dict(metadata.to_metadata() if isinstance(metadata, Card) else metadata)
    if passport is not None:
        header[KEY] = passport.to_dict()
        if passport.dla is not None:
            # Ultralytics' loader picks the core by this key.
            header["dla"] = str(passport.dla)
    text = json.dumps(header, ensure_ascii=False, default=str).encode()
    with writing(path, overwrite=overwrite) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(4, "little"))
        file.write(text)
        file.write(plan)
    return Path(path)


def read_engine(path: str | Path) -> EngineFile:
    """Read an engine of ours, of Ultralytics', or a bare plan, without TensorRT.

    Args:
        path: The file.

    Raises:
        EngineError: The file is missing, empty, cut short, changed, or no engine at all.
    """
    path = Path(path)
    asked = f"open {path}"
    if not path.is_file():
        raise EngineError(asked, "the file does not exist", "check the path")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(4)
        if start[1:] == MARK:
            return EngineFile(path=path, metadata={}, passport=None, plan=start + file.read(), backend=_backend(start))
        metadata = _header(file, start, size, asked)
        plan = file.read()
    passport = None
    if KEY in metadata:
        try:
            passport = Passport.from_dict(metadata[KEY])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise EngineError(asked, f"its passport does not parse ({error})", "export the model again") from error
        if len(plan) != passport.plan_size:
            raise EngineError(
                asked,
                f"it is cut short: {len(plan):,} of {passport.plan_size:,} bytes of the plan are there",
                "copy it again",
            )
        if hash_of(plan) != passport.plan_hash:
            raise EngineError(
                asked, "its plan is not the one its passport was made for", "copy it again, or export again"
            )
    elif not plan:
        raise EngineError(asked, "it is cut short: there is no plan behind the header", "copy it again")
    backend = passport.backend if passport is not None else _backend(plan[:4])
    return EngineFile(path=path, metadata=metadata, passport=passport, plan=plan, backend=backend)


def strip_engine(path: str | Path, output: str | Path, *, overwrite: bool = False) -> Path:
    """Write an engine file's bare plan, as `trtexec` and Triton take it.

    Args:
        path: The engine.
        output: The plan.
        overwrite: Replace the output if it exists.

    Raises:
        EngineError: `path` is no engine.
        OutputError: The plan can't be written.
    """
    return write_bytes(output, read_engine(path).plan, overwrite=overwrite)


def wrap_engine(
    plan: str | Path,
    output: str | Path,
    card: Card,
    passport: Passport | None = None,
    *,
    overwrite: bool = False,
    **args: Any,
) -> Path:
    """Write a bare plan as an engine file with a description.

    Args:
        plan: A bare plan, or an engine whose header is replaced.
        output: The engine.
        card: What the model does.
        passport: Where it comes from, if known; its plan hash and size must be those of `plan`.
        overwrite: Replace the output if it exists.
        **args: Further keys of `Card.to_metadata`, such as batch=8.

    Raises:
        EngineError: `plan` is no engine.
        OutputError: The output can't be written.
    """
    return write_engine(output, read_engine(plan).plan, card.to_metadata(**args), passport, overwrite=overwrite)


def _backend(mark: bytes) -> str:
    return "tensorrt_rtx" if mark == RTX_MARK else "tensorrt"


def _header(file: BinaryIO, start: bytes, size: int, asked: str) -> dict[str, Any]:
    """The JSON behind the length that the file starts with."""
    length = int.from_bytes(start, "little")
    if len(start) < 4 or size == 0:
        raise EngineError(asked, f"it holds {size} bytes", "name an engine file")
    foreign = EngineError(
        asked, "it is no TensorRT engine", "name a .engine file that trtkit or Ultralytics wrote, or a plan"
    )
    if not 2 <= length <= LONGEST_HEADER or file.read(1) != b"{":
        raise foreign
    if length > size - 4:
        raise EngineError(asked, "it is cut short inside its header", "copy it again")
    file.seek(-1, os.SEEK_CUR)
    with contextlib.suppress(ValueError):
        value = json.loads(file.read(length).decode("utf-8"))
        if isinstance(value, dict):
            return value
    raise foreign
