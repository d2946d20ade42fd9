"""What every result object can do: show itself as a frame and a figure, and be saved and loaded whole."""

from __future__ import annotations

import abc
import dataclasses
import datetime
import html
import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from trtkit.errors import DataError
from trtkit.files import atomic_write, read_json, write_json
from trtkit.version import __version__

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import polars as pl
    from typing_extensions import Self

__all__ = ["Provenance", "Result", "package_versions"]


# Where a number comes from: the model, the data, the machine, the versions and the settings behind it.


VERSIONED_PACKAGES = (
    "tensorrt",
    "tensorrt-rtx",
    "torch",
    "onnx",
    "onnxruntime",
    "onnxslim",
    "numpy",
    "opencv-python",
    "polars",
)


def package_versions() -> dict[str, str]:
    """Versions of trtkit, Python and the packages that shape a result, by package name; absent ones are left out."""
    found = {"trtkit": __version__, "python": platform.python_version()}
    for name in VERSIONED_PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a result was made from.

    Attributes:
        model_hash: SHA-256 of the weights and architecture, or of the file that ran.
        data_hash: SHA-256 of the images and labels, or None where no data was used.
        runner: The name of what ran, e.g. "ONNX Runtime 1.32.0 CPU" or "TensorRT 8.6.0 NVIDIA H100".
        versions: Package versions by name.
        machine: CPU, cores, GPU, driver and clocks as far as they are known.
        settings: Every argument that shaped the result.
        seed: The seed of whatever was random, or None.
        created: UTC time, ISO 8601.
    """

    model_hash: str
    data_hash: str | None = None
    runner: str = ""
    versions: Mapping[str, str] = dataclasses.field(default_factory=package_versions)
    machine: Mapping[str, Any] = dataclasses.field(default_factory=lambda: describe_machine())
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seed: int | None = None
    created: str = dataclasses.field(
        default_factory=lambda: datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Provenance:
        """The inverse of `to_dict`."""
        return cls(**value)


def describe_machine() -> dict[str, Any]:
    """This machine's processor and cores; a runner on a GPU adds the GPU's name, driver and clocks."""
    return {
        "system": platform.platform(),
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def processor_name() -> str:
    """The processor's model name where the system tells it, its architecture otherwise."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        return platform.processor() or platform.machine()
    return platform.processor() or platform.machine()


class Result(abc.ABC):
    """Base of the frozen dataclasses that verbs return.

    A subclass names its `kind`, keeps an `provenance`, and says which polars frames (`tables`) and which JSON facts make it
    up; saving and loading follow from these.
    """

    kind: ClassVar[str]
    provenance: Provenance

    @abc.abstractmethod
    def frame(self) -> pl.DataFrame:
        """The result as one polars frame."""

    @abc.abstractmethod
    def plot(self) -> go.Figure:
        """The result as one plotly figure."""

    @abc.abstractmethod
    def tables(self) -> Mapping[str, pl.DataFrame]:
        """The frames that hold the whole result, by name."""

    @abc.abstractmethod
    def facts(self) -> Mapping[str, Any]:
        """What no frame holds, JSON-ready; the origin is added by `save`."""

    @classmethod
    @abc.abstractmethod
    def restore(cls, tables: Mapping[str, pl.DataFrame], facts: Mapping[str, Any], provenance: Provenance) -> Self:
        """The inverse of `tables` and `facts`."""

    def save(self, folder: str | Path) -> Path:
        """Write `<kind>.json` and one `<kind>.<table>.parquet` for each table into `folder`.

        A table that has the kind's own name is `<kind>.parquet`.

        Returns:
            The folder.

        Raises:
            OutputError: The folder can't be written, or the disk is full.
        """
        folder = Path(folder)
        tables = self.tables()
        for name, table in tables.items():
            with atomic_write(folder / self._file(name)) as temporary:
                table.write_parquet(temporary)
        # The JSON comes last: a folder that has it has everything.
        write_json(
            folder / f"{self.kind}.json",
            {
                "kind": self.kind,
                "tables": list(tables),
                "facts": dict(self.facts()),
                "origin": self.provenance.to_dict(),
            },
        )
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            DataError: The folder holds no result of this kind.
        """
        import polars as pl

        path = Path(folder) / f"{cls.kind}.json"
        if not path.is_file():
            raise DataError(
                f"load a {cls.kind} from {folder}", f"there is no {path.name}", "name a folder that .save() wrote"
            )
        whole = read_json(path)
        tables = {name: pl.read_parquet(Path(folder) / cls._file(name)) for name in whole["tables"]}
        return cls.restore(tables, whole["facts"], Provenance.from_dict(whole["origin"]))

    @classmethod
    def _file(cls, table: str) -> str:
        return f"{cls.kind}.parquet" if table == cls.kind else f"{cls.kind}.{table}.parquet"

    def _repr_html_(self) -> str:
        import polars as pl

        said = "".join(f"<p>{html.escape(line.strip())}</p>" for line in repr(self).splitlines())
        with pl.Config(
            float_precision=4,
            fmt_str_lengths=60,
            tbl_rows=12,
            tbl_cols=-1,
            tbl_hide_column_data_types=True,
            tbl_hide_dataframe_shape=True,
        ):
            table = self.frame()._repr_html_()
        # polars quotes every string, which says nothing in a column of names.
        table = (
            table.replace("<td>&quot;", "<td>").replace("&quot;</td>", "</td>").replace("<td>null</td>", "<td>–</td>")
        )
        ran = html.escape(f"{self.kind} by {self.provenance.runner}, {self.provenance.created[:10]}")
        return f"<div>{said}<div style='overflow-x:auto'>{table}</div><p><small>{ran}</small></p></div>"
