"""Damaged pipeline.yaml and architecture.json."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

from fuzz_mutation import changed_bytes, changed_data
from fuzz_subject import Subject

from deploycompress.artifact import read_json
from deploycompress.errors import ConfigError, StageFailed

SMALL = """\
name: small
model: {build: deploycompress.examples.cnn:build, args: {width: 4}, inputs: {image: {shape: [batch, 1, 28, 28]}}}
task: &task classification
data: {source: digits, image_size: 28, batch_size: 64}
target: {device: local, runtime: onnxruntime, threads: 2}
stages:
  - train: {epochs: 12, lr: 1e-2}
  - repeat: 2
    stages: [{prune: {target: {macs: 20%}, criterion: taylor}}, {distill: {epochs: 8, loss: [kd, {attention: {weight: 100}}]}}]
    schedule: linear
  - export
  - quantize: {precision: int8, timeout: 5 min}
  - benchmark: {mode: quick}
gates:
  accuracy: {max_drop: 1 pp, on_inconclusive: warn}
  latency_p50: {min_speedup: 3.0}
"""
PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"


class Pipeline(Subject):
    """pipeline.yaml, through ``--set`` too; what is accepted reads back as it was."""

    refuses = (ConfigError,)
    SETS = (
        "prune.x.y.z=1",
        "stages.0=3",
        "stages=4",
        "a@b=1",
        "prune@2.target.macs=1",
        "model={}",
        "x",
        "seed=[&a 1, *a]",
    )

    def __init__(self, folder: Path) -> None:
        from deploycompress.config.yaml_file import parse

        super().__init__(folder)
        self.texts = [SMALL.encode()]
        for path in sorted(PIPELINES.glob("*.yaml")):
            if "data: {source: digits" in (text := path.read_text()) or "source: digits" in text:
                self.texts.append(re.sub(r"(?m)^#.*\n|\s+#.*$", "", text).encode())
        self.data = [parse(text.decode(), "seed").data for text in self.texts]

    def good(self) -> list[Any]:
        return [(text, []) for text in self.texts]

    def input(self, chance: random.Random) -> tuple[bytes, list[str]]:
        sets = chance.sample(self.SETS, chance.choice((0, 0, 0, 1, 2)))
        if chance.random() < 0.5:
            return changed_bytes(chance.choice(self.texts), chance), sets
        data = changed_data(chance.choice(self.data), chance, "pipeline")
        return json.dumps(data, ensure_ascii=False).encode(errors="surrogatepass"), sets  # JSON is YAML

    def read(self, given: tuple[bytes, list[str]]) -> None:
        from deploycompress.config.reader import dump, read

        place = self.folder / "pipeline.yaml"
        place.write_bytes(given[0])
        config = read(place, given[1])
        (self.folder / "again.yaml").write_text(dump(config), encoding="utf-8")
        assert read(self.folder / "again.yaml") == config, "what was written of it reads back otherwise"


class Checkpoint(Subject):
    """architecture.json beside good weights: what loads is the model that was saved, or is refused."""

    refuses = (StageFailed, ConfigError)

    def __init__(self, folder: Path) -> None:
        import torch

        from deploycompress.config.schema import InputSpec, ModelConfig
        from deploycompress.model import checkpoint
        from deploycompress.model.source import SourceModel
        from deploycompress.pruning.apply import apply
        from deploycompress.pruning.discovery import find_groups
        from deploycompress.pruning.groups import choose, on_grid

        super().__init__(folder)
        torch.set_num_threads(1)
        inputs = {"image": InputSpec(shape=("batch", 1, 8, 8))}
        build, args = "deploycompress.examples.cnn:build", {"width": 8, "image_size": 8}
        self.model = SourceModel(ModelConfig(build=build, args=args, weights=None, inputs=inputs), 0)
        module = self.model.build()
        groups = on_grid(find_groups(module, self.model).groups, 2)
        scores = {group.id: torch.arange(group.width, dtype=torch.float32) for group in groups}
        apply(module, groups, choose(groups, scores, {group.id: group.grid[0] for group in groups}))
        self.kept = folder / "model"
        checkpoint.save(module, self.kept, self.model)
        self.document = read_json(self.kept / checkpoint.ARCHITECTURE)

    def good(self) -> list[Any]:
        return [json.dumps(self.document).encode()]

    def input(self, chance: random.Random) -> bytes:
        return self.json_text(self.document, chance)

    def read(self, given: bytes) -> None:
        from deploycompress.model import checkpoint

        (self.kept / checkpoint.ARCHITECTURE).write_bytes(given)
        checkpoint.load(self.kept, self.model)
