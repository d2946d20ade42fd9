"""Base of what verbs return: a frame, a figure, provenance, and files with a format version and hashes."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import platform
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from trtkit.errors import ResultError, TrtkitError
from trtkit.files import hash_file, hash_parts, read_json
from trtkit.html import render
from trtkit.progress import available_cores
from trtkit.version import FORMAT_VERSION, __version__
from trtkit.writing import atomic_folder, find_published, publish_interrupted, write_json

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import polars as pl
    from typing_extensions import Self

__all__ = [
    "Provenance",
    "Result",
    "SavedResult",
    "describe_machine",
    "package_versions",
    "processor_name",
    "rename_version_1",
    "rename_version_1_keys",
]

MAX_CELLS = 150_000_000
"""Rows times columns of the largest table that is read, 1.2 GB of numbers; a small file may claim any number."""

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
"""Packages whose versions a result records: they can change its numbers."""


def package_versions() -> dict[str, str]:
    """Versions of trtkit, Python and `VERSIONED_PACKAGES` by package name; packages not installed are left out."""
    versions = {"trtkit": __version__, "python": platform.python_version()}
    for name in VERSIONED_PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def describe_machine() -> dict[str, Any]:
    """Operating system, processor and cores; a runner on a GPU adds the GPU's name, driver and clocks."""
    return {"system": platform.platform(), "processor": processor_name(), "cores": available_cores()}


def processor_name() -> str:
    """The processor's model name if the system tells it, else its architecture."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        return platform.processor() or platform.machine()
    return platform.processor() or platform.machine()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a result was made from.

    Attributes:
        model_hash: SHA-256 of the weights and architecture, or of the file that ran.
        data_hash: SHA-256 of the images and labels, or None if no data was used.
        runner: Name of the runner, e.g. "ONNX Runtime 1.32.0 CPU" or "TensorRT 8.6.0 NVIDIA H100".
        versions: Package versions by name.
        machine: CPU, cores, GPU, driver and clocks as far as they are known.
        settings: Every argument that shaped the result.
        seed: Seed of all random choices, or None.
        created: UTC time, ISO 8601.
    """

    model_hash: str
    data_hash: str | None = None
    runner: str = ""
    versions: Mapping[str, str] = dataclasses.field(default_factory=package_versions)
    machine: Mapping[str, Any] = dataclasses.field(default_factory=describe_machine)
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


@dataclasses.dataclass(kw_only=True)
class SavedResult:
    """The content of a saved result, as its files have it.

    Attributes:
        version: Format version; 1 is what trtkit 0.1.0 wrote.
        tables: Frames by name.
        facts: As `Result.facts`.
        provenance: As `Provenance.to_dict`.
        has_hash: Whether the files are those that were saved; trtkit 0.1.0 wrote no hashes.
    """

    version: int
    tables: dict[str, pl.DataFrame]
    facts: dict[str, Any]
    provenance: dict[str, Any]
    has_hash: bool = False


class Result(abc.ABC):
    """Base of the frozen dataclasses that verbs return.

    A subclass sets its `kind`, has a `provenance`, and splits into polars frames (`tables`) and JSON-ready `facts`;
    saving and loading follow from these.
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
        """What no frame holds, JSON-ready; `save` adds the provenance."""

    @classmethod
    @abc.abstractmethod
    def restore(cls, tables: Mapping[str, pl.DataFrame], facts: Mapping[str, Any], provenance: Provenance) -> Self:
        """The inverse of `tables` and `facts`."""

    @classmethod
    def upgrade(cls, saved: SavedResult) -> SavedResult:
        """Convert what an older version of trtkit saved to the present names.

        A subclass calls this and then renames what is its own; `SavedResult.version` says which version wrote it.

        Args:
            saved: A result of a format version before `FORMAT_VERSION`; may be changed in place.

        Returns:
            What `restore` and `Provenance.from_dict` take.
        """
        saved.tables = {rename_version_1(name): _rename_columns(table) for name, table in saved.tables.items()}
        saved.facts = {rename_version_1(name): value for name, value in saved.facts.items()}
        for name in ("metric", "metrics", "all_metrics"):
            if name in saved.facts:
                saved.facts[name] = _rename_metrics(saved.facts[name])
        return saved

    def save(self, folder: str | Path) -> Path:
        """Write `<kind>.json` and one `<kind>.<table>.parquet` for each table into `folder`.

        A table with the name of the kind is `<kind>.parquet`. The JSON has `format_version`, every table's SHA-256 and
        one of itself. All files are replaced together: a crash leaves the old result or the new one.

        Returns:
            The folder.

        Raises:
            OutputError: The folder can't be written, or the disk is full.
        """
        publish_interrupted(folder)
        with atomic_folder(folder, remove=self.list_files(folder)) as staging:
            self.write_files(staging)
        return Path(folder)

    def write_files(self, folder: Path) -> None:
        """Write the files of the result; `save` publishes them together. A subclass may add others.

        Args:
            folder: From `atomic_folder`.
        """
        tables = self.tables()
        for name, table in tables.items():
            table.write_parquet(folder / self._table_file(name))
        content = {
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "tables": {name: hash_file(folder / self._table_file(name)) for name in tables},
            "facts": dict(self.facts()),
            "provenance": self.provenance.to_dict(),
        }
        write_json(folder / f"{self.kind}.json", {**content, "hash": _hash_content(content)})

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what `save` wrote, in this version of trtkit or an older one.

        Raises:
            ResultError: The folder has no result of this kind, a table is missing or changed, or a newer version of
                trtkit wrote it.
        """
        folder = Path(folder)
        saved = cls._read(folder)
        with _damage_refused(f"load a {cls.kind} from {folder}", folder / f"{cls.kind}.json"):
            if saved.version < FORMAT_VERSION:
                saved = cls.upgrade(saved)
            result = cls.restore(saved.tables, saved.facts, Provenance.from_dict(saved.provenance))
            result = result.read_files(folder, saved.facts)
            repr(result)
            if not saved.has_hash:
                result._try_displays()
            return result

    @classmethod
    def load_provenance(cls, folder: str | Path) -> Provenance:
        """Read the provenance alone, without the tables.

        Raises:
            ResultError: As `load`, tables apart.
        """
        folder = Path(folder)
        saved = cls._read(folder, tables=False)
        with _damage_refused(f"load a {cls.kind} from {folder}", folder / f"{cls.kind}.json"):
            if saved.version < FORMAT_VERSION:
                # Upgrades name tables, which are not read here; the provenance's own names are enough.
                saved = cls.upgrade(cls._read(folder))
            provenance = Provenance.from_dict(saved.provenance)
            repr(provenance)
            return provenance

    def read_files(self, folder: Path, facts: Mapping[str, Any]) -> Self:
        """Add what a subclass's `write_files` wrote beside tables and facts.

        Args:
            folder: The folder of the result.
            facts: As `Result.facts`.
        """
        return self

    def _try_displays(self) -> None:
        """Make everything that is shown of a result; whatever this raises, `load` raises as a `ResultError`.

        Only for results without hashes, where nothing else tells damaged files from whole ones.
        """
        self.frame()
        self.plot()
        self._repr_html_()

    @classmethod
    def list_files(cls, folder: str | Path) -> list[str]:
        """Names of the files beside the JSON of the result that a folder has, as far as that JSON can be read."""
        try:
            return [cls._table_file(name) for name in read_json(Path(folder) / f"{cls.kind}.json")["tables"]]
        except (OSError, ValueError, KeyError, TypeError):
            return []

    @classmethod
    def _read(cls, folder: Path, *, tables: bool = True) -> SavedResult:
        publish_interrupted(folder)
        path = folder / f"{cls.kind}.json"
        asked = f"load a {cls.kind} from {folder}"
        with _damage_refused(asked, path):
            path = find_published(folder, path.name)
            if not path.is_file():
                raise ResultError(
                    asked,
                    f"there is no {path.name}",
                    "pass a folder that .save() wrote",
                    code="result-missing",
                    path=str(path),
                )
            content = read_json(path)
            version = int(content.get("format_version", 1))
        if version > FORMAT_VERSION:
            raise ResultError(
                asked,
                f"it has format version {version}, this trtkit reads up to {FORMAT_VERSION}",
                "update trtkit",
                code="result-newer",
                path=str(path),
                version=version,
            )
        with _damage_refused(asked, path):
            has_hash = "hash" in content
            if has_hash and content.pop("hash") != _hash_content(content):
                raise ResultError(
                    asked,
                    f"{path.name} is not what was saved (its SHA-256 differs)",
                    "restore the file, or compute the result again",
                    code="result-changed",
                    path=str(path),
                )
            hashes = dict(content["tables"]) if version > 1 else dict.fromkeys(content["tables"])
            saved = SavedResult(
                version=version,
                tables={},
                facts=dict(content["facts"]),
                provenance=dict(content["provenance" if version > 1 else "origin"]),
                has_hash=has_hash,
            )
        if tables:
            saved.tables = {name: cls._read_table(folder, name, sha256, asked) for name, sha256 in hashes.items()}
        return saved

    @classmethod
    def _read_table(cls, folder: Path, name: str, sha256: str | None, asked: str) -> pl.DataFrame:
        import polars as pl

        path = folder / cls._table_file(name)
        fields = {"path": str(path), "table": name}
        with _damage_refused(asked, path, table=name):
            path = find_published(folder, path.name)
            if not path.is_file():
                raise ResultError(
                    asked,
                    f"its table {path.name} is missing",
                    "save the result again",
                    code="result-table-missing",
                    **fields,
                )
            if sha256 is not None and hash_file(path) != sha256:
                raise ResultError(
                    asked,
                    f"{path.name} is not the table that was saved (its SHA-256 differs)",
                    "restore the file, or compute the result again",
                    code="result-table-changed",
                    **fields,
                )
            cells = pl.scan_parquet(path).select(pl.len()).collect().item() * len(pl.read_parquet_schema(path))
            if cells > MAX_CELLS:
                raise ValueError(f"it claims {cells:,} cells, more than {MAX_CELLS:,}")
            return pl.read_parquet(path)

    @classmethod
    def _table_file(cls, table: str) -> str:
        return f"{cls.kind}.parquet" if table == cls.kind else f"{cls.kind}.{table}.parquet"

    def _repr_html_(self) -> str:
        import polars as pl
        from markupsafe import Markup

        with pl.Config(
            float_precision=4,
            fmt_str_lengths=60,
            tbl_rows=12,
            tbl_cols=-1,
            tbl_hide_column_data_types=True,
            tbl_hide_dataframe_shape=True,
        ):
            table = self.frame()._repr_html_()
        # polars puts strings into quotes and writes null and empty lists; a table for reading has none of them.
        nothing = "<td>–</td>"
        for old, new in (
            ("<td>&quot;", "<td>"),
            ("&quot;</td>", "</td>"),
            ("<td>null</td>", nothing),
            ("<td>[]</td>", nothing),
        ):
            table = table.replace(old, new)
        return render(
            "templates/result.html.j2",
            lines=[line.strip() for line in repr(self).splitlines()],
            table=Markup(table),
            kind=self.kind,
            runner=self.provenance.runner,
            created=self.provenance.created[:10],
        )


def _hash_content(content: Mapping[str, Any]) -> str:
    return hash_parts(json.dumps(content, sort_keys=True, default=str))


@contextlib.contextmanager
def _damage_refused(asked: str, path: Path, **fields: Any) -> Iterator[None]:
    """Raise whatever a damaged file makes Python or polars raise as a `ResultError`."""
    try:
        yield
    except TrtkitError:
        raise
    except BaseException as error:
        # polars' panics are no `Exception`.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ResultError(
            asked,
            f"{path.name} is damaged ({type(error).__name__}: {str(error)[:200]})",
            "save the result again",
            code="result-damaged",
            path=str(path),
            **fields,
        ) from error


# Names of format version 1, in what trtkit 0.1.0 saved.

_VERSION_1 = {
    "beneath": "label_class",
    "fixed": "static_batch",
    "hurt": "score_drop",
    "measurable": "significant",
    "right": "correct",
    "truths": "labels",
}


def rename_version_1(name: str) -> str:
    """The present name of a table, column, metric or fact of format version 1."""
    name = _VERSION_1.get(name, name).replace("picture", "image")
    return re.sub(r"\bcoco/(?=A[PR])", "pycocotools/", name)


def rename_version_1_keys(values: Mapping[str, Any], renames: Mapping[str, str]) -> dict[str, Any]:
    """A mapping with some keys renamed, in the same order.

    Args:
        values: Facts or settings.
        renames: New names by old name; keys that are not there are ignored.
    """
    return {renames.get(name, name): value for name, value in values.items()}


def _rename_columns(table: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

    table = table.rename({name: rename_version_1(name) for name in table.columns})
    if table.schema.get("metric") == pl.String:
        table = table.with_columns(pl.col("metric").map_elements(rename_version_1, return_dtype=pl.String))
    return table


def _rename_metrics(value: Any) -> Any:
    if isinstance(value, str):
        return rename_version_1(value)
    if isinstance(value, Mapping):
        return {rename_version_1(name): inner for name, inner in value.items()}
    return [_rename_metrics(inner) for inner in value] if isinstance(value, (list, tuple)) else value
