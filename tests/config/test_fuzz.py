"""Any configuration is read or refused with ConfigError: a sample of broken ones."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest

from deploycompress.config.reader import dump, read
from deploycompress.config.yaml_file import parse
from deploycompress.config.yaml_text import to_yaml
from deploycompress.errors import ConfigError

JUNK: list[Any] = [
    None, True, 0, -1, 3.5, 10**30, "", " ", "x", "a:b", ":", "a.py:b", "../x.py:y", "50%", "5 ms", "1e999 s", "all",
    "last", "model", "prune@2", "@", "\u0000", "é" * 200, [], {}, [[]], {"a": {}}, {"": None}, {"repeat": 2}, "metric:",
    {"repeat": 2, "stages": [{"prune": {"target": {"macs": "5 ms", "ratio": "0%"}}}, "x", {"repeat": 1}]}, ["train"],
    {"id": "train"}, {"from": "x", "id": 3, "timeout": []}, "torchvision:x", "timm:", "x" * 5000, "/", ".", "~",
]  # fmt: skip
SETS = [
    "prune.x.y.z=1",
    "stages.0=3",
    "stages=4",
    "gates=3",
    "a@b=1",
    "prune@2.target.macs=1",
    "model={}",
    "train.id=a b",
    "x",
]


def spots(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(spot for key, value in inner for spot in spots(value, (*path, key)))]


def broken(data: Any, chance: random.Random) -> Any:
    """``data`` with one value or one key replaced, removed or repeated elsewhere."""
    path = chance.choice(spots(data)[1:])
    node = data
    for key in path[:-1]:
        node = node[key]
    match chance.randrange(4):
        case 0:
            del node[path[-1]]
        case 1 if isinstance(node, dict):
            key = chance.choice([j for j in JUNK if isinstance(j, str)])
            node[key] = node.pop(path[-1])
        case _:
            node[path[-1]] = copy.deepcopy(chance.choice(JUNK))
    return data


@pytest.mark.parametrize("seed", range(40))
def test_read_or_refused(good: str, folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    repeated = good.replace(
        "  - distill: {epochs: 8}\n",
        "  - repeat: 2\n    stages: [distill, {prune: {target: {ratio: 0.5}}}]\n",
    )
    for _ in range(5):
        data = parse(chance.choice([good, repeated]), "p").data
        for _ in range(chance.randrange(1, 4)):
            if len(spots(data)) > 1:
                data = broken(data, chance)
        (folder / "p.yaml").write_text(to_yaml(data), encoding="utf-8")
        sets = chance.sample(SETS, chance.randrange(3))
        try:
            config = read(Path("p.yaml"), sets)
        except ConfigError as error:
            assert error.problems and all(problem.message for problem in error.problems)
            assert all(problem.where.startswith(("p.yaml", "--set ")) for problem in error.problems), error
        else:
            (folder / "q.yaml").write_text(dump(config), encoding="utf-8")
            assert read(Path("q.yaml")) == config
