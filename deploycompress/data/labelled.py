"""Which files of a tree are samples, of which class, in which split."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, get_args

import numpy as np
from pydantic import Field, field_validator

from deploycompress.config.base import StrictModel
from deploycompress.config.schema import DataConfig
from deploycompress.contracts import Split
from deploycompress.data.tree import Tree
from deploycompress.errors import ConfigError

SYNONYMS: Mapping[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "calibration": "calibration",
}
Conditions = dict[str, tuple[str | int, ...]]  # field of the pattern -> its values


class Folders(StrictModel):
    """Which folder of root is which split."""

    train: str | None = None
    val: str | None = None
    test: str | None = None
    calibration: str | None = None


class HeldOut(StrictModel):
    """Which files are in which split, by the fields of their names; the others are in train."""

    val: Conditions = {}
    test: Conditions = {}
    calibration: Conditions = {}


class FolderConfig(DataConfig):
    """Where the class of a file stands: in the name of its folder, or by ``pattern`` in its own."""

    folders: Folders = Field(
        Folders(), description="Which folder of root is which split, where it is not called so: {test: val}"
    )
    pattern: str | None = Field(
        None,
        description="The file names without suffix, with the class as {label}: '{label}_{speaker}_{take}'",
    )
    held_out: HeldOut = Field(
        HeldOut(),
        description="Splits by the other fields of the pattern: {test: {take: [0, 1, 2, 3, 4]}}",
    )

    @field_validator("pattern")
    @classmethod
    def _has_label(cls, pattern: str | None) -> str | None:
        if pattern is not None and fields_of(pattern).count("label") != 1:
            raise ValueError(
                f"received {pattern!r}; expected {{label}} in it, once, as in '{{label}}_{{take}}'"
            )
        if pattern is not None and len(set(fields_of(pattern))) != len(fields_of(pattern)):
            raise ValueError(f"received {pattern!r}; expected each field once")
        return pattern


@dataclass(frozen=True)
class Files:
    """The samples of one split: names in the tree, and the position of the class of each in ``classes``."""

    names: tuple[str, ...]
    labels: np.ndarray  # [files] int64
    classes: tuple[str, ...]


def labelled(tree: Tree, suffixes: Sequence[str], config: FolderConfig) -> dict[Split, Files]:
    """The files with one of ``suffixes``, by split; the classes are the sorted names of all splits.

    Without a pattern: ``train/CLASS/...`` for each split, or ``CLASS/...`` alone, which is all train. Raises
    ConfigError naming a file without a class, and a class folder without a file.
    """
    where = f"data source {config.source}, data.root {tree.root}"
    names = [name for name in tree.names if PurePosixPath(name).suffix.lower() in suffixes]
    if not names:
        raise ConfigError(
            f"{where}: received {len(tree.names)} files; expected some ending in {' '.join(suffixes)}"
        )
    if config.pattern is None:
        found = _by_folder(tree, names, config, where, suffixes)
    else:
        found = _by_pattern(names, config.pattern, config, where)
    classes = tuple(sorted({label for pairs in found.values() for _, label in pairs}))
    if len(classes) < 2:
        raise ConfigError(
            f"{where}: received one class, {classes[0]!r}; expected at least two, each in a folder of its own, or a "
            "data.pattern for file names that hold the class"
        )
    number = {label: index for index, label in enumerate(classes)}
    return {
        split: Files(
            tuple(name for name, _ in pairs),
            np.array([number[label] for _, label in pairs], np.int64),
            classes,
        )
        for split, pairs in found.items()
    }


Pairs = dict[Split, list[tuple[str, str]]]  # split -> (file, class)


def _by_folder(
    tree: Tree, names: list[str], config: FolderConfig, where: str, suffixes: Sequence[str]
) -> Pairs:
    tops = {name.split("/")[0] for name in (*tree.folders, *names)}
    if absent := [folder for folder in _given(config.folders).values() if folder not in tops]:
        raise ConfigError(
            f"{where}: no folder {absent[0]!r}, which data.folders names; received {', '.join(sorted(tops))}"
        )
    of_top = {top: SYNONYMS[top.lower()] for top in sorted(tops) if top.lower() in SYNONYMS}
    of_top |= {folder: split for split, folder in _given(config.folders).items()}
    if "train" not in of_top.values():  # a class may be called "test"
        of_top = {}
    depth = 1 if of_top else 0
    found: Pairs = defaultdict(list)
    for name in names:
        parts = name.split("/")
        if of_top and parts[0] not in of_top:
            continue  # beside the splits: what else a data set brings along
        if len(parts) < depth + 2:
            raise ConfigError(
                f"{where}: {name} lies in no class folder; expected {'SPLIT/' * depth}CLASS/{parts[-1]}"
            )
        found[of_top[parts[0]] if of_top else "train"].append((name, parts[depth]))
    _no_empty_class(tree, found, of_top, depth, where, suffixes)
    return found


def _no_empty_class(
    tree: Tree, found: Pairs, of_top: Mapping[str, Split], depth: int, where: str, suffixes: Sequence[str]
) -> None:
    filled = {"/".join(name.split("/")[: depth + 1]) for pairs in found.values() for name, _ in pairs}
    for folder in tree.folders:
        parts = folder.split("/")
        if len(parts) == depth + 1 and (not of_top or parts[0] in of_top) and folder not in filled:
            raise ConfigError(
                f"{where}: the class folder {folder} has no file ending in {' '.join(suffixes)}: add some, or remove it"
            )


def _given(chosen: Folders | HeldOut) -> dict[Split, Any]:
    """What was said of each split, without those of which nothing was."""
    return {split: value for split in get_args(Split) if (value := getattr(chosen, split, None))}


# ---------------------------------------------------------------- by file name


def fields_of(pattern: str) -> list[str]:
    """The names in braces, in order."""
    return re.findall(r"\{(\w+)\}", pattern)


def _by_pattern(names: list[str], pattern: str, config: FolderConfig, where: str) -> Pairs:
    known = fields_of(pattern)
    for split, conditions in _given(config.held_out).items():
        if unknown := [field for field in conditions if field not in known]:
            raise ConfigError(
                f"{where}: data.held_out.{split} names the field {unknown[0]!r}; the pattern {pattern!r} has "
                f"{', '.join(known)}"
            )
    pieces = re.split(r"\{(\w+)\}", pattern)  # text and field names by turns
    expression = re.compile("".join(f"(?P<{p}>.+?)" if i % 2 else re.escape(p) for i, p in enumerate(pieces)))
    found: Pairs = defaultdict(list)
    for name in names:
        match = expression.fullmatch(PurePosixPath(name).stem)
        if match is None:
            raise ConfigError(
                f"{where}: the name of {name} does not fit data.pattern {pattern!r}: rename it, or change the pattern"
            )
        found[_split(match.groupdict(), config)].append((name, match["label"]))
    for split in _given(config.held_out):
        if not found[split]:
            raise ConfigError(f"{where}: data.held_out.{split} fits none of the {len(names)} files")
    return found


def _split(fields: Mapping[str, str], config: FolderConfig) -> Split:
    for split, conditions in _given(config.held_out).items():
        if all(fields[field] in map(str, values) for field, values in conditions.items()):
            return split
    return "train"
