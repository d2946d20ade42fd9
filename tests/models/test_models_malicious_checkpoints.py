"""Checkpoints that try to run code; a canary file shows whether they did."""

from __future__ import annotations

import contextlib
import copyreg
import io
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_checkpoints import make_call, read_members, write_archive
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from trtkit.errors import CheckpointError, UnsafeCheckpointError
from trtkit.models import load, torch_file, unpickler
from trtkit.models.layers import describe_activation, parse_activation
from trtkit.models.unpickler import Record, SafeOrderedDict, TensorRecord, read_pickle


def run(program: bytes) -> Any:
    return read_pickle(io.BytesIO(program), "load x.pt")


def assert_unsafe(path: Path, program: bytes, name: str) -> None:
    with pytest.raises(UnsafeCheckpointError) as error:
        load(write_archive(path, program))
    assert (error.value.code, error.value.fields["name"]) == ("checkpoint-unsafe-name", name)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


def test_the_attack_works_on_plain_pickle(canary: Path) -> None:
    pickle.loads(make_call("os", "system", f"touch {canary}"))
    assert canary.exists()


def test_system_call(tmp_path: Path, canary: Path) -> None:
    assert_unsafe(tmp_path / "x.pt", make_call("os", "system", f"touch {canary}"), "os.system")
    assert not canary.exists()


def test_object_that_reduces_to_a_system_call(tmp_path: Path, canary: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {canary}",)

    path = tmp_path / "x.pt"
    torch.save({"model": Attack()}, path)
    with pytest.raises(UnsafeCheckpointError) as error:
        load(path)
    assert error.value.code == "checkpoint-unsafe-name"
    assert error.value.fields["name"] == "posix.system"
    assert not canary.exists()


def test_system_call_in_a_legacy_file(tmp_path: Path, canary: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(make_call("os", "system", f"touch {canary}"))
    with pytest.raises(UnsafeCheckpointError) as error:
        load(path)
    assert error.value.code == "checkpoint-unsafe-name"
    assert error.value.fields["name"] == "os.system"
    assert not canary.exists()


@pytest.mark.parametrize("name", ["eval", "exec", "compile", "__import__", "open", "getattr", "setattr", "type", "map"])
@pytest.mark.parametrize("module", ["builtins", "__builtin__"])
def test_builtins(tmp_path: Path, canary: Path, module: str, name: str) -> None:
    program = make_call(module, name, f"open({str(canary)!r}, 'w')", "x")
    expected = f"{'builtins' if name == 'getattr' else module}.{name}"
    assert_unsafe(tmp_path / "x.pt", program, expected)
    assert not canary.exists()


DANGEROUS = [
    "torch.load",
    "torch.hub.load",
    "torch.jit.load",
    "torch.storage._load_from_bytes",
    "torch._utils._import_dotted_name",
    "torch._utils._rebuild_device_tensor_from_numpy",
    "torch._utils._rebuild_wrapper_subclass",
    "torch.compile",
    "torch.utils.cpp_extension.load_inline",
    "torch.multiprocessing.reductions.rebuild_storage_fd",
    "torch.serialization.load",
    "functools.partial",
    "operator.attrgetter",
    "operator.methodcaller",
    "importlib.import_module",
    "pydoc.locate",
    "subprocess.Popen",
    "posix.system",
    "nt.system",
    "runpy.run_path",
    "pickle.loads",
    "_pickle.loads",
    "marshal.loads",
    "types.FunctionType",
    "types.CodeType",
    "copyreg._reconstructor",
    "copyreg.__newobj__",
    "codecs.decode",
    "shutil.rmtree",
    "numpy.load",
    "numpy.f2py.compile",
    "numpy.testing._private.utils.runstring",
    "webbrowser.open",
    "socket.create_connection",
    "trtkit.writing.write_bytes",
    "torchx.nn.Module",
    "ultralyticsx.Model",
    "datetimes.x",
    "collections.Counter",
    "pathlib.os.system",
]


@pytest.mark.parametrize("name", DANGEROUS)
def test_names_of_dangerous_functions(tmp_path: Path, canary: Path, name: str) -> None:
    module, _, function = name.rpartition(".")
    assert_unsafe(tmp_path / "x.pt", make_call(module, function, str(canary)), name)
    assert not canary.exists()


def test_names_from_the_stack(tmp_path: Path, canary: Path) -> None:
    program = pickle.dumps(os.system, 4)[:-1] + b"(" + pickle.dumps(f"touch {canary}", 2)[2:-1] + b"tR."
    assert_unsafe(tmp_path / "x.pt", program, "posix.system")
    dotted = b"\x80\x04\x8c\x02os\x8c\x0bpath.system\x93(tR."
    assert_unsafe(tmp_path / "y.pt", dotted, "os.path.system")
    assert not canary.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("ultralytics.nn.tasks", "torch_safe_load"),
        ("ultralytics.utils.checks", "check_requirements"),
        ("ultralytics", "os.system"),
        ("torch.nn.modules.module", "os.system"),
        ("torchvision.io", "read_file"),
        ("PIL.Image", "open"),
        ("pathlib", "Path"),
        ("datetime", "datetime"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("_codecs", "encode"),
    ],
)
def test_known_names_are_inert(canary: Path, module: str, name: str) -> None:
    found = run(make_call(module, name, str(canary)))
    assert isinstance(found, Record)
    assert found.qualified_name == f"{module}.{name}"
    assert found.arguments == (str(canary),)
    assert not canary.exists()


def test_known_packages_are_never_imported(tmp_path: Path, checkpoint: Path) -> None:
    for package in ("ultralytics", "torchvision", "models", "utils", "PIL"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    program = b"\x80\x02" + b"".join(
        make_call(module, "x")[2:-1] for module in ("ultralytics.nn", "torchvision.ops", "models.yolo", "utils", "PIL")
    )
    write_archive(tmp_path / "x.pt", program + b"N.")
    code = (
        "import sys, pathlib\nfrom trtkit.models import load\nfrom trtkit.errors import CheckpointError\n"
        f"load({str(checkpoint)!r})\n"
        f"try:\n    load({str(tmp_path / 'x.pt')!r})\nexcept CheckpointError:\n    pass\n"
        "assert not {'ultralytics', 'torchvision', 'models', 'utils', 'PIL'} & set(sys.modules), 'imported'\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])}
    subprocess.run([sys.executable, "-c", code], check=True, env=env, timeout=120)
    assert not (tmp_path / "canary").exists()


def test_state_and_items_of_stand_ins_stay_data() -> None:
    # NEWOBJ, then BUILD with a state that looks like an attack, then SETITEM.
    program = (
        b"\x80\x02cultralytics.nn.tasks\nDetectionModel\n)\x81}(X\x0c\x00\x00\x00__setstate__N"
        b"X\x09\x00\x00\x00__class__K\x01ubX\x01\x00\x00\x00aK\x02s."
    )
    found = run(program)
    assert isinstance(found, Record)
    assert found.attributes == {"__setstate__": None, "__class__": 1}
    assert not hasattr(Record, "a")


@pytest.mark.parametrize(
    "target",
    [b"cultralytics.nn.tasks\nX\n", b"ccollections\nOrderedDict\n", b"ctorch\nFloatStorage\n", b"ctorch\nSize\n",
     b"ctorch._utils\n_rebuild_tensor_v2\n", b"]", b"}", b"cbuiltins\ngetattr\n"],
)  # fmt: skip
@pytest.mark.parametrize(
    "state",
    [b"}X\x08\x00\x00\x00functionK\x01s", b"N}X\x08\x00\x00\x00functionK\x01s\x86", b"(K\x01K\x02l"],
)
def test_resolved_names_can_not_be_modified(target: bytes, state: bytes) -> None:
    before = {name: tuple(function) for name, function in unpickler.TENSOR_FUNCTIONS.items()}
    with pytest.raises(CheckpointError) as error:
        run(b"\x80\x02" + target + state + b"b.")
    assert error.value.code == "checkpoint-pickle-damaged"
    assert {name: tuple(function) for name, function in unpickler.TENSOR_FUNCTIONS.items()} == before
    assert not hasattr(Record, "function")
    assert not hasattr(SafeOrderedDict, "function")


def test_ordered_dictionary_keeps_no_attributes() -> None:
    found = run(b"\x80\x02ccollections\nOrderedDict\n)RN}X\x05\x00\x00\x00itemsK\x01s\x86b.")
    assert list(found.items()) == []


def test_getattr_reaches_members_of_stand_ins_only() -> None:
    program = b"\x80\x02cbuiltins\ngetattr\n(ctorchvision.transforms\nInterpolationMode\nX\x08\x00\x00\x00BILINEARtR."
    assert run(program).qualified_name == "torchvision.transforms.InterpolationMode.BILINEAR"
    with pytest.raises(UnsafeCheckpointError) as error:
        run(b"\x80\x02cbuiltins\ngetattr\n(ccollections\nOrderedDict\nX\x08\x00\x00\x00fromkeystR.")
    assert error.value.code == "checkpoint-unsafe-name"
    assert error.value.fields["name"] == "builtins.getattr"


INSTANCE = b"cultralytics.nn.modules.conv\nConv\n)\x81"
TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
    b"X\x03\x00\x00\x00cpuK\x04tQK\x00(K\x04t(K\x01t\x89NtR"
)


def take_attribute(owner: bytes, name: str) -> bytes:
    """A pickle of `getattr(owner, name)`, without its end."""
    return b"\x80\x02cbuiltins\ngetattr\n(" + owner + pickle.dumps(name, 2)[2:-1].split(b"q\x00")[0] + b"tR"


def test_getattr_of_an_object_reaches_its_fused_forward_only() -> None:
    found = run(take_attribute(INSTANCE, "forward_fuse") + b".")
    assert (type(found).__mro__[1], found.arguments) == (Record, ())
    assert found.qualified_name == "ultralytics.nn.modules.conv.Conv.forward_fuse"
    # The record is no function: calling it ends the program.
    with pytest.raises(CheckpointError) as error:
        run(take_attribute(INSTANCE, "forward_fuse") + b"(K\x01tR.")
    assert error.value.code == "checkpoint-pickle-damaged"


@pytest.mark.parametrize(
    "name",
    [
        "forward",
        "__class__",
        "__reduce__",
        "__init__",
        "state",
        "__setstate__",
        "attributes",
        "forward_fuse.__globals__",
    ],
)
def test_getattr_of_another_attribute_of_an_object(name: str) -> None:
    with pytest.raises(UnsafeCheckpointError) as error:
        run(take_attribute(INSTANCE, name) + b".")
    assert (error.value.code, error.value.fields["name"]) == ("checkpoint-unsafe-name", "builtins.getattr")


@pytest.mark.parametrize(
    "owner",
    [b"ccollections\nOrderedDict\n)R", TENSOR, b"]", b"}", b"N", b"ctorch._utils\n_rebuild_tensor_v2\n",
     b"ctorch\nSize\n", b"ctorch\nFloatStorage\n", b"cbuiltins\ngetattr\n", b"X\x01\x00\x00\x00a"],
)  # fmt: skip
def test_getattr_of_the_fused_forward_of_what_is_no_object(owner: bytes) -> None:
    with pytest.raises(UnsafeCheckpointError) as error:
        run(take_attribute(owner, "forward_fuse") + b".")
    assert (error.value.code, error.value.fields["name"]) == ("checkpoint-unsafe-name", "builtins.getattr")


@pytest.mark.parametrize(
    ("program", "name"),
    [
        (make_call("torch._dynamo.eval_frame", "OptimizedModule"), "torch._dynamo.eval_frame.OptimizedModule"),
        (make_call("super_gradients.training.models", "YoloNAS"), "super_gradients.training.models.YoloNAS"),
        (b"\x80\x02cultralytics.models.yolo.model\nYOLO\n)\x81" + b"cbuiltins\nlist\n.", "builtins.list"),
    ],
)
def test_wrapped_models_are_refused_and_named(program: bytes, name: str) -> None:
    with pytest.raises(UnsafeCheckpointError) as error:
        run(program)
    assert (error.value.code, error.value.fields["name"]) == ("checkpoint-unsafe-name", name)
    assert "source you trust" not in str(error.value), "an honest mistake gets what to save instead"


@pytest.mark.parametrize("program", [b"\x80\x02\x82\x01.", b"\x80\x02\x83\x01\x00.", b"\x80\x02\x84\x01\x00\x00\x00."])
def test_names_hidden_in_the_extension_registry(program: bytes, canary: Path) -> None:
    copyreg.add_extension("os", "system", 1)
    try:
        pickle.loads(program)  # fills the cache that the C unpickler uses
        with pytest.raises(CheckpointError) as error:
            run(program[:-1] + b"(" + pickle.dumps(f"touch {canary}", 2)[2:-1] + b"tR.")
        assert error.value.code == "checkpoint-pickle-damaged"
    finally:
        copyreg.remove_extension("os", "system", 1)
    assert not canary.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02P0\n.",  # a persistent id as text
        b"\x80\x02NQ.",
        b"\x80\x02K\x01Q.",
        b"\x80\x02(X\x07\x00\x00\x00storageNX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ.",
        b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x04\x00\x00\x00../xX\x03\x00\x00\x00cpuK\x01tQ.",
        b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuJ\xff\xff\xff\xfftQ.",
    ],
)
def test_odd_persistent_ids(program: bytes) -> None:
    with pytest.raises(CheckpointError) as error:
        run(program)
    assert error.value.code == "checkpoint-pickle-damaged"


def test_nested_persistent_ids_are_data() -> None:
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
    nested = b"\x80\x02(X\x07\x00\x00\x00storage" + storage + b"X\x01\x00\x00\x000NK\x01tQ."
    with pytest.raises(CheckpointError) as error:
        run(nested)
    assert error.value.code == "checkpoint-pickle-damaged"


def tensor(size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, length: int = 4) -> bytes:
    def number(value: int) -> bytes:
        return pickle.dumps(value, 2)[2:-1]

    storage = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
        + number(length)
        + b"tQ"
    )
    shape = b"(" + b"".join(map(number, size)) + b"t(" + b"".join(map(number, stride)) + b"t"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + shape + b"\x89NtR."


def test_tensor_is_described_and_not_made() -> None:
    found = run(tensor((2, 2), (2, 1)))
    assert isinstance(found, TensorRecord)
    assert (found.size, found.stride, found.offset, found.storage.length) == ((2, 2), (2, 1), 0, 4)


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((10**12,), (0,), 0),  # terabytes out of 16 bytes
        ((5,), (1,), 0),
        ((2, 2), (4, 1), 0),
        ((4,), (1,), 1),
        ((-1,), (1,), 0),
        ((2,), (-1,), 3),
        ((4,), (1,), -1),
        ((1 << 60,), (1,), 0),
        ((1,) * 9, (1,) * 9, 0),
        ((2, 2), (1,), 0),
    ],
)
def test_tensors_beyond_their_storage(size: tuple[int, ...], stride: tuple[int, ...], offset: int) -> None:
    with pytest.raises(CheckpointError) as error:
        run(tensor(size, stride, offset))
    assert error.value.code == "checkpoint-pickle-damaged"


def test_claimed_sizes_take_no_memory() -> None:
    import tracemalloc

    tracemalloc.start()
    for program in (
        b"\x80\x02Nr" + struct.pack("<I", 0xFFFFFFF0) + b".",  # a memo index of four billion
        b"\x80\x02X" + struct.pack("<I", 0xFFFFFFF0) + b"abc.",
        b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"N.",
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 33) + b"abc.",
    ):
        with contextlib.suppress(CheckpointError):
            run(program)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_deep_keys_do_not_overflow_the_stack() -> None:
    deep = b"\x80\x02}" + b")" + b"\x85" * 200_000 + b"Ns."
    with pytest.raises(CheckpointError) as error:
        run(deep)
    assert error.value.code == "checkpoint-pickle-damaged"


@pytest.mark.parametrize("key", [b")" + b"\x85" * 200_000, b"]", b"K\x07"], ids=["deep", "list", "number"])
def test_keys_of_storages_in_a_legacy_file_are_texts(key: bytes) -> None:
    # The fifth pickle lists the storages' keys, which are looked up by hash.
    parts = [pickle.dumps(value, 2) for value in (torch_file.MAGIC, 1001, {"little_endian": sys.byteorder == "little"})]
    data = b"".join([*parts, make_call("torch", "Size"), b"\x80\x02](" + key + b"e."])
    with pytest.raises(CheckpointError) as error:
        torch_file.read_legacy(io.BufferedReader(io.BytesIO(data)), "load x.pt")
    assert error.value.code == "checkpoint-truncated"


def test_odd_options_of_activations_are_not_written_out() -> None:
    laughs: Any = []
    for _ in range(100):
        laughs = [laughs, laughs]
    for value in (laughs, float("nan"), "none of them"):
        text = describe_activation("LeakyReLU", {"negative_slope": value})
        assert text == "LeakyReLU(negative_slope=...)"
        assert parse_activation(text) is None


modules = st.from_regex(r"[a-z_]{1,12}(\.[a-z_]{1,12}){0,2}", fullmatch=True)
KNOWN = {
    "ultralytics",
    "torch",
    "torchvision",
    "models",
    "utils",
    "datetime",
    "argparse",
    "PIL",
    "collections",
    "numpy",
    "pathlib",
    "types",
    "builtins",
    "__builtin__",
    "_codecs",
}


@given(module=modules, name=st.from_regex(r"[A-Za-z_]{1,12}", fullmatch=True))
@example(module="os", name="system")
def test_every_other_module_raises(module: str, name: str) -> None:
    if module.partition(".")[0] not in KNOWN:
        with pytest.raises(UnsafeCheckpointError) as error:
            run(make_call(module, name))
        assert error.value.fields["name"] == f"{module}.{name}"


@given(st.binary(max_size=200))
def test_any_bytes_are_data_or_an_error(data: bytes) -> None:
    with contextlib.suppress(CheckpointError):
        run(b"\x80\x02" + data)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8))
def test_a_damaged_checkpoint_loads_or_raises(checkpoint: Path, tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    inside = read_members(checkpoint)
    program = bytearray(inside["best/data.pkl"])
    for position, value in changes:
        program[position % len(program)] = value
    storages = {name.rpartition("/")[2]: data for name, data in inside.items() if "/data/" in name}
    path = write_archive(tmp_path / "changed.pt", bytes(program), storages)
    with contextlib.suppress(CheckpointError):
        load(path)
