"""Rows of a table: numbers, categories and a label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from deploycompress.contracts import Split
from deploycompress.data.samples import Indices
from deploycompress.data.tables import Column, Table, TableConfig, class_numbers, files_of, read_tables
from deploycompress.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})


class CsvTable:
    """The ``numeric`` columns as float32 [batch, columns], standardised by mean and deviation of train; the
    ``categorical`` ones as int64 [batch, columns] with ids from 1 in the order of their sorted values in train, 0 for
    any other. Either is left out where it has no columns; in the order of model.inputs the numbers come first.
    """

    class Config(TableConfig):
        numeric: tuple[Column, ...] = Field((), description="Columns of numbers")
        categorical: tuple[Column, ...] = Field((), description="Columns of categories")
        logarithm: bool = Field(
            False,
            description="Of every number x: sign(x) log(1 + |x|), for counts, before it is standardised",
        )
        min_count: Annotated[int, Field(ge=1)] = Field(
            1, description="A category that is rarer in train has id 0, as an unknown one"
        )
        label: Column = Field("label", description="The column that is predicted")
        label_kind: Literal["class", "number"] = Field("class", description="number: regression, as float32")
        missing: Literal["refuse", "fill"] = Field(
            "refuse", description="fill: a missing number is the mean of train, a missing category has id 0"
        )

        @model_validator(mode="after")
        def _has_inputs(self) -> CsvTable.Config:
            used = (*self.numeric, *self.categorical)
            if not used:
                raise ValueError("no columns to predict from; expected numeric or categorical to name some")
            if self.label in used or len(set(used)) < len(used):
                raise ValueError(
                    "a column is named twice; expected each in numeric, categorical or label, once"
                )
            return self

    def __init__(self, config: CsvTable.Config) -> None:
        self.config = config

    def files(self) -> tuple[Path, ...]:
        """The file of each split. Raises ConfigError when there is none."""
        return tuple(files_of(self.config).values())

    def splits(self) -> Mapping[str, Rows]:
        tables = read_tables(self.config)
        if "train" not in tables:
            raise ConfigError(f"{self.config.root}: no row is in the train split; expected some")
        classes, targets = self._targets(tables)
        numbers = {split: self._numbers(table) for split, table in tables.items()}
        ids = {split: self._ids(table, tables["train"]) for split, table in tables.items()}
        with np.errstate(invalid="ignore"):
            mean = np.nan_to_num(_mean(numbers["train"]))
            std = np.nan_to_num(np.sqrt(_mean((numbers["train"] - mean) ** 2)))
        std[std == 0] = 1.0  # a constant column says nothing, and stays at zero
        return {
            split: Rows(
                np.nan_to_num((numbers[split] - mean) / std).astype(np.float32),
                ids[split],
                targets[split],
                classes,
            )
            for split in tables
        }

    def _targets(
        self, tables: Mapping[Split, Table]
    ) -> tuple[tuple[str, ...] | None, dict[Split, np.ndarray]]:
        label = self.config.label
        if self.config.label_kind == "class":
            classes, numbers = class_numbers(tables, label)
            return classes, {split: np.array(values, np.int64) for split, values in numbers.items()}
        return None, {
            split: _column(table, label, fill=False).astype(np.float32) for split, table in tables.items()
        }

    def _numbers(self, table: Table) -> np.ndarray:
        """[rows, numeric columns] float64, NaN where a value is missing and may be."""
        columns = [_column(table, c, fill=self.config.missing == "fill") for c in self.config.numeric]
        values = np.stack(columns, axis=1) if columns else np.zeros((len(table), 0))
        return np.sign(values) * np.log1p(np.abs(values)) if self.config.logarithm else values

    def _ids(self, table: Table, train: Table) -> np.ndarray:
        """[rows, categorical columns] int64."""
        found = np.zeros((len(table), len(self.config.categorical)), np.int64)
        for at, column in enumerate(self.config.categorical):
            cells = table.cells(column)
            if self.config.missing == "refuse":
                _refuse_missing(table, column, [cell.lower() in MISSING for cell in cells])
            counts = Counter(cell for cell in train.cells(column) if cell.lower() not in MISSING)
            known = sorted(cell for cell, count in counts.items() if count >= self.config.min_count)
            ids = {value: number for number, value in enumerate(known, start=1)}
            found[:, at] = [ids.get(cell, 0) for cell in cells]
        return found


@dataclass(frozen=True)
class Rows:
    """Converted rows in memory."""

    numbers: np.ndarray  # [rows, columns] float32
    ids: np.ndarray  # [rows, columns] int64
    targets: np.ndarray  # [rows]
    classes: tuple[str, ...] | None

    @property
    def labels(self) -> np.ndarray | None:
        return None if self.classes is None else self.targets

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, indices: Indices, rng: np.random.Generator | None) -> tuple[tuple[Tensor, ...], Tensor]:
        import torch

        inputs = tuple(torch.from_numpy(part[indices]) for part in (self.numbers, self.ids) if part.shape[1])
        return inputs, torch.from_numpy(self.targets[indices])


def _column(table: Table, column: Column, *, fill: bool) -> np.ndarray:
    """[rows] float64; NaN where a value is missing. Raises ConfigError where it must not be, or is no number."""
    cells = table.cells(column)
    absent = [cell.lower() in MISSING for cell in cells]
    if not fill:
        _refuse_missing(table, column, absent)
    values = np.full(len(cells), np.nan)
    for row, cell in enumerate(cells):
        if absent[row]:
            continue
        try:
            values[row] = float(cell)
        except ValueError as error:
            raise ConfigError(
                f"{table.cell(row, column)}: received {cell!r}; expected a number: name the column in "
                "data.categorical, or repair the cell"
            ) from error
        if not np.isfinite(values[row]):
            raise ConfigError(f"{table.cell(row, column)}: received {cell!r}; expected a finite number")
    return values


def _refuse_missing(table: Table, column: Column, absent: list[bool]) -> None:
    if any(absent):
        raise ConfigError(
            f"{table.cell(absent.index(True), column)}: the value is missing ({sum(absent)} such rows): fill it in, "
            "leave the row out, or set data.missing: fill for inputs"
        )


def _mean(values: np.ndarray) -> np.ndarray:
    """Of each column, over what is not missing; NaN where all is."""
    there = ~np.isnan(values)
    return np.where(there, values, 0).sum(0) / there.sum(0)  # type: ignore[no-any-return]
