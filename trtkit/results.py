"""What every result object can do: show itself as a frame and a figure, and be saved and loaded whole."""

from __future__ import annotations

import abc
import html
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from trtkit.errors import DataError
from trtkit.files import read_json, write_json, writing
from trtkit.origin import Origin

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import polars as pl
    from typing_extensions import Self

__all__ = ["Result"]


class Result(abc.ABC):
    """Base of the frozen dataclasses that verbs return.

    A subclass names its `kind`, keeps an `origin`, and says which polars frames (`tables`) and which JSON facts make it
    up; saving and loading follow from these.
    """

    kind: ClassVar[str]
    origin: Origin

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
    def restore(cls, tables: Mapping[str, pl.DataFrame], facts: Mapping[str, Any], origin: Origin) -> Self:
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
            with writing(folder / self._file(name)) as temporary:
                table.write_parquet(temporary)
        # The JSON comes last: a folder that has it has everything.
        write_json(
            folder / f"{self.kind}.json",
            {"kind": self.kind, "tables": list(tables), "facts": dict(self.facts()), "origin": self.origin.to_dict()},
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
        return cls.restore(tables, whole["facts"], Origin.from_dict(whole["origin"]))

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
        ran = html.escape(f"{self.kind} by {self.origin.runner}, {self.origin.created[:10]}")
        return f"<div>{said}<div style='overflow-x:auto'>{table}</div><p><small>{ran}</small></p></div>"
