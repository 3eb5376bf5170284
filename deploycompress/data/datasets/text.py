"""Sentences with a class each, in a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import Field

from deploycompress.data.tables import Column, TableConfig, class_numbers, files_of, read_tables
from deploycompress.data.words import Sentences, TextConfig, encoder, tokenizer_files
from deploycompress.errors import ConfigError


class Text:
    """A column of text and one of classes; ids int64 [batch, length], and their mask where it is asked for."""

    class Config(TextConfig, TableConfig):
        text: Column = Field("text", description="The column with the sentences")
        label: Column = Field("label", description="The column with the classes")

    def __init__(self, config: Text.Config) -> None:
        self.config = config

    def files(self) -> tuple[Path, ...]:
        """The file of each split, and the tokenizer's. Raises ConfigError when there is none."""
        return (*files_of(self.config).values(), *tokenizer_files(self.config.tokenizer))

    def splits(self) -> Mapping[str, Sentences]:
        tables = read_tables(self.config)
        if "train" not in tables:
            raise ConfigError(f"{self.config.root}: no row is in the train split; expected some")
        texts = {split: table.cells(self.config.text) for split, table in tables.items()}
        for split, cells in texts.items():
            if "" in cells:
                place = tables[split].cell(cells.index(""), self.config.text)
                raise ConfigError(
                    f"{place}: no text ({cells.count('')} such rows); fill it in, or leave the row out"
                )
        classes, labels = class_numbers(tables, self.config.label)
        encode = encoder(self.config, texts["train"])
        return {
            split: Sentences(
                encode(cells), np.array(labels[split], np.int64), self.config, encode.pad, classes
            )
            for split, cells in texts.items()
        }
