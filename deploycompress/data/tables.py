"""Delimited text files, a file for each split or one for all, as columns of text."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from deploycompress.config.schema import DataConfig
from deploycompress.config.wording import listed, nearest
from deploycompress.contracts import Split
from deploycompress.data.labelled import SYNONYMS
from deploycompress.errors import ConfigError

SUFFIXES = (".csv", ".tsv", ".txt")
EXPECTED = (
    f"a file ending in {' '.join(SUFFIXES)}, or a folder with one called train and, where there are any, val (or dev) "
    "and test"
)
Column = str | Annotated[int, Field(ge=0)]  # its name, or its position from 0


class TableConfig(DataConfig):
    """How the files are read."""

    header: bool = Field(
        True, description="Whether the first line names the columns; else they go by number, from 0"
    )
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = Field(
        None, description="null: by the suffix, a tab for .tsv and .txt, else a comma"
    )
    split_column: Column | None = Field(
        None, description="The column that holds train, val or test, where one file has all of them"
    )


@dataclass(frozen=True)
class Table:
    """Rows of text cells, each with the number of its line."""

    path: Path
    columns: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    lines: Sequence[int]

    def __len__(self) -> int:
        return len(self.rows)

    def position(self, column: Column) -> int:
        """Where ``column`` stands. Raises ConfigError naming the nearest one."""
        if isinstance(column, int) and column < len(self.columns):
            return column
        if column in self.columns:
            return self.columns.index(str(column))
        close = nearest(str(column), self.columns)
        question = f"; did you mean {close!r}?" if close else ""
        raise ConfigError(f"{self.path} has no column {column!r}{question} It has {listed(self.columns)}")

    def cells(self, column: Column) -> list[str]:
        position = self.position(column)
        return [row[position].strip() for row in self.rows]

    def cell(self, row: int, column: Column) -> str:
        """For messages: where a value stands."""
        return f"{self.path}:{self.lines[row]}, column {self.columns[self.position(column)]!r}"


def files_of(config: TableConfig) -> dict[Split, Path]:
    """The file of each split; one file alone is train. Raises ConfigError when there is none."""
    root = config.root
    if root is None:
        raise ConfigError(f"data source {config.source} needs data.root: {EXPECTED}")
    if root.is_file():
        return {"train": root}
    found: dict[Split, Path] = {}
    for path in sorted(root.iterdir()) if root.is_dir() else []:
        split = SYNONYMS.get(path.stem.lower())
        if path.suffix.lower() not in SUFFIXES or split is None:
            continue
        if split in found:
            raise ConfigError(
                f"data.root {root}: both {found[split].name} and {path.name} are the {split} split"
            )
        found[split] = path
    if "train" not in found:
        raise ConfigError(f"data.root {root}: no train file; expected {EXPECTED}")
    return found


def read_tables(config: TableConfig) -> Mapping[Split, Table]:
    """The table of each split, in memory. Raises ConfigError naming file and line."""
    tables = {split: _read(path, config) for split, path in files_of(config).items()}
    if config.split_column is None:
        return tables
    if len(tables) > 1:
        raise ConfigError(
            f"data.split_column: {config.root} has a file for each split already; leave one of both out"
        )
    return _parted(tables["train"], config.split_column)


def _parted(table: Table, column: Column) -> dict[Split, Table]:
    rows: dict[Split, list[int]] = {}
    for row, value in enumerate(table.cells(column)):
        split = SYNONYMS.get(value.lower())
        if split is None:
            raise ConfigError(f"{table.cell(row, column)}: received {value!r}; expected train, val or test")
        rows.setdefault(split, []).append(row)
    return {
        split: Table(table.path, table.columns, [table.rows[r] for r in at], [table.lines[r] for r in at])
        for split, at in rows.items()
    }


def _read(path: Path, config: TableConfig) -> Table:
    delimiter = config.delimiter or ("," if path.suffix.lower() == ".csv" else "\t")
    quoted = delimiter != "\t"  # else a sentence may begin with a quote
    try:
        text = path.read_bytes().decode("utf-8-sig")
        csv.field_size_limit(2**31 - 1)  # a cell may hold a whole document
        reader = csv.reader(
            io.StringIO(text, newline=""),
            delimiter=delimiter,
            strict=True,
            quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        )
        numbered = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(
            f"{path} cannot be read as a table in UTF-8: {error}; save it again as one"
        ) from error
    if len(numbered) <= config.header:
        raise ConfigError(f"{path} has no rows; expected at least one{' below its header' * config.header}")
    width = len(numbered[0][1])
    names = tuple(c.strip() for c in numbered[0][1]) if config.header else tuple(map(str, range(width)))
    if len(set(names)) < width:
        raise ConfigError(
            f"{path}: the header {', '.join(names)} names a column twice; expected each name once"
        )
    body = numbered[1:] if config.header else numbered
    for line, row in body:
        if len(row) != width:
            raise ConfigError(
                f"{path}:{line}: received {len(row)} cells; expected {width}, as in the first line, with "
                f"{delimiter!r} between them: repair the line, or set data.delimiter"
            )
    return Table(path, names, [row for _, row in body], [line for line, _ in body])


def class_numbers(
    tables: Mapping[Split, Table], column: Column
) -> tuple[tuple[str, ...], dict[Split, list[int]]]:
    """(class names, their numbers in each split): whole numbers in their own order, other names sorted.

    Raises ConfigError where a label is missing.
    """
    values = {split: table.cells(column) for split, table in tables.items()}
    for split, cells in values.items():
        if "" in cells:
            place = tables[split].cell(cells.index(""), column)
            raise ConfigError(
                f"{place}: no label ({cells.count('')} such rows); fill it in, or leave the row out"
            )
    known = {cell for cells in values.values() for cell in cells}
    numeric = all(cell.lstrip("-").isdecimal() for cell in known)
    classes = tuple(sorted(known, key=lambda cell: (int(cell) if numeric else 0, cell)))
    if len(classes) < 2:
        raise ConfigError(
            f"{next(iter(tables.values())).path}, column {column!r}: received one class, {classes[0]!r}; expected at "
            "least two: name the column with the labels"
        )
    number = {name: index for index, name in enumerate(classes)}
    return classes, {split: [number[cell] for cell in cells] for split, cells in values.items()}
