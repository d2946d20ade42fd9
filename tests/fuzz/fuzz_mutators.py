"""Seeded damage to files: any bytes, and the structures inside (pickle, protobuf, JSON, YAML, parquet, PNG, JPEG)."""

from __future__ import annotations

import io
import json
import pickletools
import random
import re
import struct
import sys
import zipfile
import zlib
from typing import Any

import onnx

ODD_VALUES: list[Any] = [
    None, True, -1, 0, 2**31, 2**63, -(2**70), 1e308, float("nan"), float("inf"), "", "1e999", "\0", "\ud800",
    "x" * 5000,
    [], {}, [[]], {"a": 1}, [None], ["a", 1], "../../x", "[" * 5000, "!!int x", "{1: 2}", 0.5, "640", [640], [-1, 0],
]  # fmt: skip
"""Values that a reader may not expect where it finds them."""

YAML_LINES = [
    "nc: 100000000", "nc: .inf", "nc: [1]", "nc: !!int x", "date: 2001-99-99", "names: 5", "names: {a: b}",
    "names: {0: [x]}", "names: [[a], {b: c}]", "flip_idx: 3", "kpt_oks_sigmas: 5", "kpt_shape: [a, b]",
    "kpt_shape: [100000000, 3]", "kpt_shape: 17", 'names: ["a\\0b"]', "path: " + "p" * 300, "path: /dev/zero",
    "train: /dev/zero", "val: /dev/zero", "val: null", "val: 5", "val: [1, {a: b}]", "val: " + "v" * 300,
    "channels: -1",
    "channels: .nan", "channels: 1e99", "x: " + "[" * 5000, "? [a, b]\n: c", "<<: *missing", "- a", "%YAML 9.9",
    "---\n---",
    "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "\n".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]" for i in range(9))
    + "\nnames: *j",
    "a: &a [*a]\nnames: *a", "!!python/object/apply:os.system [true]", "0x: 0b", "val: \"\\uD800\"", "val: \"a\\0b\"",
]  # fmt: skip


def damage_bytes(dice: random.Random, data: bytes) -> bytes:
    """Truncate, flip, zero, insert, duplicate, swap or append."""
    size = max(len(data), 1)
    start, end = sorted((dice.randrange(size), dice.randrange(size)))
    length = min(end - start, 4096) or 1
    block = data[start : start + length]
    kind = dice.randrange(9)
    if kind == 0:
        return data[:start]
    if kind == 1:
        flipped = bytearray(data)
        for _ in range(dice.choice((1, 1, 4, 64)) if data else 0):
            flipped[dice.randrange(size)] ^= 1 << dice.randrange(8)
        return bytes(flipped)
    if kind == 2:
        return data[:start] + bytes(len(block)) + data[start + length :]
    if kind == 3:
        return data[:start] + dice.randbytes(dice.choice((1, 4, 100))) + data[start:]
    if kind == 4:
        return data[: start + length] + block + data[start + length :]
    if kind == 5:
        return data[end:] + data[:end]
    if kind == 6:
        return data + dice.randbytes(dice.choice((1, 100, 5000)))
    if kind == 7:
        number = dice.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\0\0\0\x80"))
        return data[:start] + number + data[start + 4 :]
    return data[:start] + data[start + length :]


def damage_text(dice: random.Random, data: bytes, pieces: list[str]) -> bytes:
    """Replace, insert or drop a line or a word."""
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    index = dice.randrange(len(lines))
    piece = dice.choice(pieces)
    kind = dice.randrange(4)
    if kind == 0:
        lines[index] = piece
    elif kind == 1:
        lines.insert(index, piece)
    elif kind == 2:
        lines[index] = re.sub(r"[^\s:]+$", lambda _: piece, lines[index])
    else:
        words = lines[index].split(" ")
        words[dice.randrange(len(words))] = piece
        lines[index] = " ".join(words)
    return "\n".join(lines).encode("utf-8", "surrogateescape" if piece.isascii() else "surrogatepass")


def damage_json(dice: random.Random, data: bytes) -> bytes:
    """Replace, remove or rename a value anywhere, or nest without end."""
    if dice.random() < 0.05:
        depth = dice.choice((1000, 100_000))
        return dice.choice((b"[" * depth, b'{"facts":' * depth, b"[" * depth + b"]" * depth))
    value = json.loads(data)
    places: list[tuple[Any, Any]] = []

    def walk(item: Any) -> None:
        for key in item if isinstance(item, dict) else range(len(item)) if isinstance(item, list) else ():
            places.append((item, key))
            walk(item[key])

    walk(value)
    for _ in range(dice.choice((1, 1, 2))):
        # Places near the root are few and matter most.
        owner, key = dice.choice(places[: dice.choice((10, 40, len(places)))])
        if isinstance(owner, dict) and key not in owner:
            continue
        kind = dice.randrange(5)
        if kind == 0 and isinstance(owner, dict):
            del owner[key]
        elif kind == 1 and isinstance(owner, dict):
            owner[key + "x"] = owner.pop(key)
        else:
            owner[key] = dice.choice(ODD_VALUES)
    return json.dumps(value).replace("Infinity", "1e999").encode("utf-8", "surrogatepass")


def damage_pickle(dice: random.Random, data: bytes) -> bytes:
    """Drop, repeat, move or replace opcodes, or add a program that asks for time or memory."""
    kind = dice.randrange(8)
    if kind == 0:
        return b"\x80\x02" + dice.choice((b"}", b"]", b"\x8f", b"(", b")", b"N2")) * dice.choice((10**4, 10**6)) + b"."
    if kind == 1:
        count = dice.choice((100, 20_000))
        keys = (index * (2**61 - 1) for index in range(1, count))
        items = b"".join(b"\x8a" + bytes([16]) + key.to_bytes(16, "little", signed=True) + b"N" for key in keys)
        return b"\x80\x02}(" + items + b"u."
    if kind == 2:
        depth = dice.choice((100, 200_000))
        return b"\x80\x02" + dice.choice((b"]" * depth + b"a" * (depth - 1), b"N" + b"\x85" * depth)) + b"."
    if kind == 3:
        pairs = b"(" + b"K\x01K\x02\x86" * 10_000 + b"t\x85q\x01"
        call = b"ccollections\nOrderedDict\nh\x01R0"
        return b"\x80\x02" + pairs + call * dice.choice((10, 5000)) + b"N."
    try:
        positions = [position for _, _, position in pickletools.genops(data)]
    except (ValueError, IndexError):  # what is no pickle any more is damaged as bytes
        return damage_bytes(dice, data)
    parts = [data[start:end] for start, end in zip(positions, [*positions[1:], len(data)], strict=True)]
    for _ in range(dice.choice((1, 1, 3, 10))):
        index = dice.randrange(len(parts))
        if kind == 4:
            parts[index] = b""
        elif kind == 5:
            parts.insert(index, dice.choice(parts))
        elif kind == 6:
            other = dice.randrange(len(parts))
            parts[index], parts[other] = parts[other], parts[index]
        else:
            parts[index] = dice.choice(
                (b"N", b"K\x00", b"J\xff\xff\xff\xff", b"\x8a\x09" + b"\xff" * 8 + b"\x7f", b"}", b"]", b")", b"\x88",
                 b"G\x7f\xf0\0\0\0\0\0\0", b"X\x04\0\0\0dots", b"B\xff\xff\xff\x7f", b"0", b"2", b"\x85",
                 b"cos\nsystem\n")
            )  # fmt: skip
    return b"".join(parts)


def damage_checkpoint(dice: random.Random, data: bytes) -> bytes:
    """Damage the pickle, a storage or the headers of a zip archive, or a pickle of the older format."""
    if not data.startswith(b"PK"):
        return damage_pickle(dice, data[:-1]) if dice.random() < 0.5 else data[:15] + damage_pickle(dice, data[15:])
    if dice.random() < 0.15:
        marks = [match.start() for match in re.finditer(rb"PK(\x01\x02|\x03\x04|\x05\x06)", data)]
        place = dice.choice(marks) + dice.randrange(4, 30)
        return data[:place] + bytes([dice.randrange(256)]) + data[place + 1 :]
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(target, "w") as copied:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl") and dice.random() < 0.9:
                content = damage_pickle(dice, content)
            elif dice.random() < 0.02:
                content = damage_bytes(dice, content)
            copied.writestr(name, content)
    return target.getvalue()


def damage_onnx(dice: random.Random, data: bytes) -> bytes:
    """Change fields of the protobuf message."""
    proto = onnx.ModelProto.FromString(data)
    graph = proto.graph
    for _ in range(dice.choice((1, 1, 2, 4))):
        node, tensor = dice.choice(graph.node), dice.choice(graph.initializer)
        number = dice.choice((-1, 0, 1, 2, 7, 10**5, 2**31, 2**62, -(2**63)))
        kind = dice.randrange(17)
        if kind == 0:
            tensor.dims[:] = [*tensor.dims, number] if dice.random() < 0.5 else [number]
        elif kind == 1:
            tensor.data_type = dice.choice((0, *range(1, 26), 99))
        elif kind == 2:
            tensor.raw_data = damage_bytes(dice, tensor.raw_data)
        elif kind == 3 and node.input:
            node.input[dice.randrange(len(node.input))] = dice.choice(
                (dice.choice(graph.node).output[0], "nothing", "")
            )
        elif kind == 4:
            node.op_type = dice.choice((*(item.op_type for item in graph.node), "If", "Loop", "Scan", "Odd", ""))
        elif kind == 5 and node.attribute:
            attribute = dice.choice(node.attribute)
            attribute.type, attribute.i, attribute.f = dice.choice((1, 2, 3, 4, 5, 7, 99 % 15)), number % 2**62, 0.5
            if dice.random() < 0.5:
                attribute.ints[:] = [number] * dice.choice((0, 1, 5))
        elif kind == 6:
            graph.input[0].type.tensor_type.elem_type = dice.choice((0, 1, 7, 10, 99))
        elif kind in (7, 8):
            dimensions = dice.choice((graph.input[0], graph.output[0])).type.tensor_type.shape.dim
            if dimensions and dice.random() < 0.5:
                dice.choice(dimensions).dim_value = number
            elif dimensions:
                del dimensions[dice.randrange(len(dimensions))]
        elif kind in (9, 10, 11) and proto.metadata_props:
            entry = dice.choice(proto.metadata_props)
            odd = dice.choice(
                (*ODD_VALUES, "[1]", "{", "(" * 300, "-" * 3000, "1" * 5000, "1e999", "b'\\xff'", "[1e999, 1]")
            )
            if entry.key == "trtkit" and dice.random() < 0.8:
                entry.value = damage_json(dice, entry.value.encode()).decode("utf-8", "replace")
            else:
                entry.value = str(odd).encode("utf-8", "replace").decode()
        elif kind == 12:
            proto.opset_import[0].version = number
        elif kind == 13:
            graph.output[0].name = dice.choice(("nothing", "", dice.choice(graph.node).output[0]))
        elif kind == 14 and len(graph.node) > 1:
            del graph.node[dice.randrange(len(graph.node))]
        elif kind == 15:
            graph.node.add().CopyFrom(node)
        else:
            tensor.name = dice.choice(("", "images", "output0", dice.choice(graph.initializer).name))
    changed: bytes = proto.SerializeToString()
    if dice.random() < 0.15:
        name = dice.choice((b"stem", b"head", b"images", b"output0", b"detect", b"Sigmoid"))
        changed = changed.replace(name, b"\xff\xfe" + name[2:], dice.choice((1, -1)))
    return changed


def damage_engine(dice: random.Random, data: bytes) -> bytes:
    """Damage the JSON header, with its length kept right or not."""
    length = int.from_bytes(data[:4], "little")
    header = damage_json(dice, data[4 : 4 + length]) if data[4:5] == b"{" else data[4 : 4 + length]
    if dice.random() < 0.1:
        length = dice.choice((0, 1, 2**31, 2**32 - 1, len(header) + 10, len(header) - 1))
    else:
        length = len(header)
    return length.to_bytes(4, "little") + header + data[4 + int.from_bytes(data[:4], "little") :]


def damage_image(dice: random.Random, data: bytes) -> bytes:
    """Change sizes and types in the header of a PNG (with its checksum) or a JPEG."""
    side = dice.choice((0, 1, 30_000, 65_535, 2**31 - 1))
    if data.startswith(b"\x89PNG"):
        header = bytearray(data[16:29])
        place = dice.randrange(5)
        if place < 2:
            header[place * 4 : place * 4 + 4] = struct.pack(">I", side)
        elif place == 2:
            header[:8] = struct.pack(">II", side, side)
        else:
            header[8 + dice.randrange(5)] = dice.randrange(256)
        return data[:16] + bytes(header) + struct.pack(">I", zlib.crc32(b"IHDR" + bytes(header))) + data[33:]
    frame = re.search(rb"\xff[\xc0-\xc2]..", data, re.DOTALL)
    if frame is None:
        return damage_bytes(dice, data)
    place = frame.end() + 1 + 2 * dice.randrange(2)
    return data[:place] + struct.pack(">H", min(side, 65_535)) + data[place + 2 :]


def damage_table(dice: random.Random, data: bytes) -> bytes:
    """Drop, rename, convert or empty columns of a parquet file."""
    import polars as pl

    table = pl.read_parquet(io.BytesIO(data))
    if not table.columns:
        return data
    column = dice.choice(table.columns)
    kind = dice.randrange(5)
    if kind == 0:
        table = table.drop(column)
    elif kind == 1:
        table = table.rename({column: column + "x"})
    elif kind == 2:
        table = table.with_columns(pl.lit(dice.choice(["a", 1, None, 0.5, float("nan"), [1]])).alias(column))
    elif kind == 3:
        table = table.clear()
    else:
        table = pl.concat([table, table.reverse()])
    target = io.BytesIO()
    table.write_parquet(target)
    return target.getvalue()


assert sys.byteorder == "little", "the seeds are of a little-endian machine"
