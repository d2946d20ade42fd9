"""A restricted unpickler for `torch.save` files: it builds records, and never imports or calls what a pickle names.

A pickle is a program whose instructions may call any function it names. This unpickler resolves a name to an inert
stand-in that records its arguments and state, to one of a few functions here, or not at all, so that running the
program only makes lists, dictionaries and records.

`torch.load(weights_only=True)` with stub classes can't replace it (torch 2.13): it reads neither pickle protocol 4 nor
modules in files from before torch 1.6. It ends the process with a segmentation fault on a deeply nested dictionary key
and accepts a tensor of 10^12 elements over 16 bytes. Its list of allowed names belongs to the process, so stubs must be
known before reading, and names that other code allows are called.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from trtkit.errors import CheckpointError, UnsafeCheckpointError

__all__ = [
    "Record",
    "SafeOrderedDict",
    "Storage",
    "StorageType",
    "TensorRecord",
    "read_pickle",
]

# The opcodes of `torch.save` at protocols 2 to 4. Excluded: EXT* (names from a registry of the process), PERSID, INST
# and OBJ (protocol 0), BYTEARRAY8 (allocates the length it claims), ADDITEMS and FROZENSET (hash deep values).
OPCODES = (
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1",
    "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES", "BINSTRING",
    "SHORT_BINSTRING", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "LIST", "APPEND",
    "APPENDS", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "EMPTY_SET", "BINPUT", "LONG_BINPUT", "MEMOIZE",
    "BINGET", "LONG_BINGET", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "NEWOBJ", "NEWOBJ_EX", "BINPERSID",
)  # fmt: skip
STAND_IN_MODULES = re.compile(
    r"(ultralytics|torch\.nn|torchvision|torch\.optim|models|utils|datetime|argparse|PIL)(\.[A-Za-z_0-9.]+)?"
)
STAND_IN_NAMES = {
    "__builtin__": {"set", "frozenset"},
    "builtins": {"set", "frozenset"},
    "_codecs": {"encode"},
    "collections": {"defaultdict"},
    "numpy": {"dtype", "ndarray"},
    "numpy.core.multiarray": {"scalar", "_reconstruct"},
    "numpy._core.multiarray": {"scalar", "_reconstruct"},
    "pathlib": {"Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath"},
    "pathlib._local": {"Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath"},
    "torch": {"device"},
    "types": {"SimpleNamespace"},
}
DTYPES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1,
    "bool": 1,
}  # fmt: skip
STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "UntypedStorage": "uint8",
}  # fmt: skip
WRAPPERS = {
    "torch._dynamo.": (
        "a module that torch.compile wrapped",
        "save the module inside it, torch.save({'model': model._orig_mod}, path)",
    ),
    "super_gradients.": (
        "a YOLO-NAS model of SuperGradients",
        "run `yolo export model=X.pt format=onnx` where Ultralytics is installed, and load that ONNX file",
    ),
    "ultralytics.models.": (
        "a whole YOLO object with its callbacks",
        "save the model alone, as the object's own save(path) does",
    ),
}
"""What people save by mistake, by the beginning of a name in its pickle: what it is, and what to save instead."""

PICKLE_LIMIT = 8 << 20
"""Most bytes of a pickle: a byte of it can claim an object of 200 bytes."""

WORK_LIMIT = 1_000_000
"""Most steps of a pickle: opcodes, arguments of calls, and comparisons of keys that may collide. The largest network,
YOLOv9e-seg (1,261 modules), takes 212,937, and 520,421 with its average (EMA) and the state of the optimizer in one
file. Sharing lets a small pickle ask for any number."""

HASHED_AS_THEMSELVES = 1 << 60
"""Integers below are their own hash in Python; larger ones can be chosen to share one."""

SCALARS = (str, int, float, bool, bytes, type(None))


class Record:
    """The inert stand-in for an object in a pickle: its constructor's arguments and its state."""

    __slots__ = ("arguments", "state")
    qualified_name: ClassVar[str] = ""
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any, **keywords: Any) -> Record:  # noqa: D102
        self = object.__new__(cls)
        self.arguments = (*arguments, keywords) if keywords else arguments
        self.state = {}
        return self

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    @property
    def attributes(self) -> dict[str, Any]:
        """The state as a dictionary; {} if the state is something else."""
        state = self.state[0] if isinstance(self.state, tuple) and self.state else self.state
        return {key: state[key] for key in dict.__iter__(state)} if isinstance(state, dict) else {}

    @property
    def kind(self) -> str:
        """The last part of the class name, such as "Detect"."""
        return self.qualified_name.rpartition(".")[2]


class SafeOrderedDict(dict[Any, Any]):
    """An `OrderedDict` whose attributes a pickle can't set."""

    __slots__ = ()

    def __init__(self, pairs: Any = ()) -> None:
        if type(pairs) not in (list, tuple):
            raise TypeError("pairs are not in a list")
        super().__init__()
        for key, value in pairs:
            self[_check_key(key)] = value

    def __setstate__(self, state: Any) -> None:
        pass


# Named tuples, because a pickle can't modify them; BUILD would bypass a frozen dataclass through its __setstate__.
class StorageType(NamedTuple):
    """A storage class such as `torch.HalfStorage`: the type of its elements and their size in bytes."""

    dtype: str
    itemsize: int


class Storage(NamedTuple):
    """A storage outside the pickle: element type, key in the file and number of elements."""

    kind: StorageType
    key: str
    length: int


class TensorRecord(NamedTuple):
    """A strided view of a storage; offset, size and stride count elements."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _TensorFunction(NamedTuple):
    """A function of this module in place of the one that the pickle names."""

    name: str
    function: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)


def read_pickle(file: io.BufferedIOBase, asked: str) -> Any:
    """Run one pickle into plain containers, `Record`, `SafeOrderedDict` and `TensorRecord`.

    Args:
        file: At the start of the pickle; afterwards at its end.
        asked: What was asked for, for errors.

    Raises:
        UnsafeCheckpointError: The pickle names something other than tensors, containers and known classes.
        CheckpointError: The pickle is damaged.
    """
    try:
        return _SafeUnpickler(file, asked).load()
    except UnsafeCheckpointError:
        raise
    except (
        pickle.UnpicklingError, ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError,
        RecursionError, TypeError, ValueError, OSError, struct.error,
    ) as error:  # fmt: skip
        raise CheckpointError(
            asked,
            f"its pickle is damaged or made by hand ({type(error).__name__})",
            "copy or download the file again",
            code="checkpoint-pickle-damaged",
            cause=type(error).__name__,
        ) from error


class _LimitedFile:
    """A file of which at most `PICKLE_LIMIT` bytes can be read."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        self.file = file
        self.left = PICKLE_LIMIT

    def read(self, size: int) -> bytes:
        """As of a binary file."""
        return self._count(self.file.read(min(size, self.left + 1)))

    def readline(self) -> bytes:
        """As of a binary file."""
        return self._count(self.file.readline(self.left + 1))

    def _count(self, data: bytes) -> bytes:
        self.left -= len(data)
        if self.left < 0:
            raise pickle.UnpicklingError("longer than a checkpoint's pickle")
        return data


class _CountingDispatch(dict[int, Callable[..., None]]):
    """The functions of opcodes; each look-up is charged as one step."""

    def __init__(self, functions: dict[int, Callable[..., None]], charge: Callable[[int], None]) -> None:
        super().__init__(functions)
        self.charge = charge

    def __getitem__(self, opcode: int) -> Callable[..., None]:
        self.charge(1)
        return super().__getitem__(opcode)


class _SafeUnpickler(pickle._Unpickler):  # type: ignore[misc, name-defined, unused-ignore]
    """The standard library's Python unpickler with fewer opcodes and its own name resolution.

    The C unpickler allocates memory by a claimed memo index and resolves extension codes from a registry of the
    process, both before any code of this module runs.
    """

    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]]  # type: ignore[attr-defined, unused-ignore]
        for name in OPCODES
    }

    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: io.BufferedIOBase, asked: str) -> None:
        super().__init__(_LimitedFile(file), encoding="latin-1")
        self.asked = asked
        self.classes: dict[str, type[Record]] = {}
        self.dispatch = _CountingDispatch(type(self).dispatch, self.charge)  # type: ignore[misc]
        self.work = 0

    def charge(self, steps: int) -> None:
        """Count steps of the pickle's program."""
        self.work += steps
        if self.work > WORK_LIMIT:
            raise pickle.UnpicklingError("more steps than a checkpoint needs")

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for `module.name`."""
        qualified_name = f"{module}.{name}"
        if qualified_name in TENSOR_FUNCTIONS:
            return TENSOR_FUNCTIONS[qualified_name]
        if qualified_name == "collections.OrderedDict":
            return SafeOrderedDict
        if qualified_name in ("builtins.getattr", "__builtin__.getattr"):
            return _TensorFunction(qualified_name, self.member)
        if module in ("torch", "torch.storage") and name in STORAGES:
            return StorageType(STORAGES[name], DTYPES[STORAGES[name]])
        if module == "torch" and name in DTYPES:
            return self.stand_in(qualified_name)()
        if name in STAND_IN_NAMES.get(module, ()) or STAND_IN_MODULES.fullmatch(module):
            return self.stand_in(qualified_name)
        raise self.unsafe_name(qualified_name)

    def stand_in(self, qualified_name: str) -> type[Record]:
        """A record class for a name, the same one each time."""
        if qualified_name not in self.classes:
            self.classes[qualified_name] = type(
                "Record", (Record,), {"__slots__": (), "qualified_name": qualified_name}
            )
        return self.classes[qualified_name]

    def member(self, owner: Any, name: Any) -> Record:
        """A record for `getattr(owner, name)`, which some Python versions write for members of an enum class.

        Of objects only `forward_fuse` is accepted, which layers of a fused model hold as their `forward`.
        """
        is_class = isinstance(owner, type) and issubclass(owner, Record)
        is_fused_forward = isinstance(owner, Record) and name == "forward_fuse"
        if not (isinstance(name, str) and (is_class or is_fused_forward)):
            raise self.unsafe_name("builtins.getattr")
        return self.stand_in(f"{owner.qualified_name}.{name}")()

    def unsafe_name(self, qualified_name: str) -> UnsafeCheckpointError:
        """The error for a name that is not allowed."""
        for start, (kind, do) in WRAPPERS.items():
            if any(name.startswith(start) for name in (qualified_name, *self.classes)):
                return UnsafeCheckpointError(
                    self.asked,
                    f"it is {kind} (its pickle asks for {qualified_name}), and nothing of it was run",
                    do,
                    code="checkpoint-unsafe-name",
                    name=qualified_name,
                )
        return UnsafeCheckpointError(
            self.asked,
            f"its pickle asks for {qualified_name}, which no YOLO checkpoint needs, and nothing of it was run",
            "use a checkpoint from a source you trust",
            code="checkpoint-unsafe-name",
            name=qualified_name,
        )

    def persistent_load(self, pid: Any) -> Any:
        """A storage, from torch's tuple ("storage", type, key, device, count).

        The format before torch 1.6 also wraps a module's class with its source code, which is dropped.
        """
        if type(pid) is tuple and len(pid) == 4 and pid[0] == "module":
            return pid[1]
        if not (type(pid) is tuple and len(pid) in (5, 6) and pid[0] == "storage"):
            raise pickle.UnpicklingError("unknown persistent id")
        kind, key, count = pid[1], pid[2], pid[4]
        if not (isinstance(kind, StorageType) and isinstance(key, str) and key.isdecimal() and _is_count(count)):
            raise pickle.UnpicklingError("odd storage")
        return Storage(kind, key, count)

    def load_setitem(self) -> None:
        """SETITEM, for keys that are safe to hash."""
        value, key = self.stack.pop(), self.stack.pop()
        self.insert(self.stack[-1], [key, value])

    def load_setitems(self) -> None:
        """SETITEMS, likewise."""
        items = self.pop_mark()
        self.insert(self.stack[-1], items)

    def load_dict(self) -> None:
        """DICT, likewise."""
        items = self.pop_mark()
        self.append({})
        self.insert(self.stack[-1], items)

    def insert(self, target: Any, items: list[Any]) -> None:
        """Insert alternating keys and values into a dictionary; a record ignores them."""
        if isinstance(target, Record):
            return
        if not isinstance(target, dict):
            raise TypeError("items for an object that is no dictionary")
        for index in range(0, len(items), 2):
            key = _check_key(items[index])
            if _may_collide(key):
                self.charge(len(target))
            target[key] = items[index + 1]

    def load_reduce(self) -> None:
        """REDUCE; the arguments are charged, because a short pickle may pass the same long ones again and again."""
        self.charge(_count_arguments(self.stack[-1]))
        super().load_reduce()  # type: ignore[misc, unused-ignore]

    def load_newobj(self) -> None:
        """NEWOBJ, likewise."""
        self.charge(_count_arguments(self.stack[-1]))
        super().load_newobj()  # type: ignore[misc, unused-ignore]

    def load_newobj_ex(self) -> None:
        """NEWOBJ_EX, likewise."""
        self.charge(_count_arguments(self.stack[-1]) + _count_arguments(self.stack[-2]))
        super().load_newobj_ex()  # type: ignore[misc, unused-ignore]

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.DICT[0]] = load_dict


def _may_collide(key: Any) -> bool:
    """Whether keys like this one can be chosen to have one hash: texts' hashes are random, small integers' differ."""
    return isinstance(key, (tuple, float)) or (isinstance(key, int) and abs(key) >= HASHED_AS_THEMSELVES)


def _count_arguments(arguments: Any) -> int:
    """The arguments of a call, and the elements of the first one, which an `OrderedDict` takes as its pairs."""
    if not isinstance(arguments, (tuple, list, dict)) or not arguments:
        return 0
    first: Any = arguments[0] if isinstance(arguments, (tuple, list)) else None
    # Pairs may collide, too: each is compared with those before it.
    pairs: Any = first if type(first) in (list, tuple) else ()
    collide = sum(type(pair) is tuple and bool(pair) and _may_collide(pair[0]) for pair in pairs)
    return len(arguments) + len(pairs) + collide * collide // 2


def _check_key(key: Any) -> Any:
    """`key` if it is a scalar, a record or a flat tuple: hashing a deep tuple would overflow the stack."""
    if isinstance(key, (*SCALARS, Record)):
        return key
    if type(key) is tuple and all(isinstance(item, SCALARS) for item in key):
        return key
    raise TypeError("odd key of a dictionary")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> TensorRecord:
    """Replaces `torch._utils._rebuild_tensor_v2`: a view inside its storage in which no elements overlap."""
    if not (isinstance(storage, Storage) and type(size) is tuple and type(stride) is tuple):
        raise TypeError("odd tensor")
    if len(size) != len(stride) or len(size) > 8 or not all(_is_count(value) for value in (offset, *size, *stride)):
        raise ValueError("odd shape of a tensor")
    count, last = 1, offset
    for length, step in zip(size, stride, strict=True):
        count *= length
        last += (length - 1) * step
    # A zero stride would turn a few bytes into terabytes.
    if count and (last >= storage.length or count > storage.length):
        raise ValueError("a tensor beyond its storage")
    return TensorRecord(storage, offset, size, stride)


def _rebuild_parameter(data: Any, *rest: Any) -> TensorRecord:
    """Replaces `torch._utils._rebuild_parameter`."""
    if not isinstance(data, TensorRecord):
        raise TypeError("odd parameter")
    return data


def _rebuild_from_type(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """Replaces `torch._tensor._rebuild_from_type_v2`, which wraps one of the others."""
    if not (isinstance(function, _TensorFunction) and function.function in (_rebuild_tensor, _rebuild_parameter)):
        raise TypeError("odd tensor class")
    return function(*arguments)


def _rebuild_size(dimensions: Any = ()) -> tuple[Any, ...]:
    """Replaces `torch.Size`."""
    if type(dimensions) not in (tuple, list):
        raise TypeError("odd size")
    return tuple(dimensions)


REBUILD_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.Size": _rebuild_size,
}
TENSOR_FUNCTIONS = {name: _TensorFunction(name, function) for name, function in REBUILD_FUNCTIONS.items()}
