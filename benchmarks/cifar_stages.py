"""The project's own stages on CIFAR-10's JPEG copy in memory: a dense network adapted to it, pruned ones, trained ones.

What a stage makes is kept in the cache by its configuration, its inputs and its seed, and a training that was cut goes on
where it was. The code is not in that key: take a new cache when it has changed.
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from equal_recovery import Preparation
from equal_subjects import SUBJECTS
from real_data import Samples, Sets
from torch import Tensor, nn

from deploycompress.artifact import Artifact, digest_json, read_json, write_json, write_text
from deploycompress.config.schema import InputSpec, ModelConfig, TargetConfig
from deploycompress.contracts import Event, RunContext, Stage
from deploycompress.data.loaders import OrderedLoader, chunks
from deploycompress.data.tasks.classification import Classification
from deploycompress.engine.locks import lock
from deploycompress.engine.store import FileStore
from deploycompress.measure.environment import BF16, cpu_flags, environment
from deploycompress.model import checkpoint
from deploycompress.model.source import SourceModel
from deploycompress.recovery.evaluation import evaluate
from deploycompress.recovery.training import device
from deploycompress.stages.distill import Distill
from deploycompress.stages.prune import Prune
from deploycompress.stages.train import Train

BATCH = 128
CALIBRATION, CALIBRATION_BATCH = (
    2048,
    32,
)  # samples to tell importance from, as in the comparison at equal latency
ADAPTED_SEED = 1000  # of the one dense network that every seed starts from
MODEL = "model"

Recipe = Mapping[str, Any]


def recipe(epochs: int, rate: float, precision: str) -> dict[str, Any]:
    """What every training of a comparison shares: the published one's optimiser, batch and decay, cosine to zero."""
    return {
        "epochs": epochs,
        "lr": rate,
        "optimizer": "sgd",
        "weight_decay": 5e-4,
        "warmup": 0.05,
        "schedule": "cosine",
        "mixed_precision": precision,
        "checkpoint_every": "1 min",
    }


# ---------------------------------------------------------------- data


@dataclass(frozen=True)
class Prepared:
    """Samples as the network reads them, as the project's loaders ask for them."""

    samples: Samples
    preparation: Preparation

    @property
    def labels(self) -> np.ndarray:
        return self.samples.labels.numpy()

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, indices: np.ndarray, rng: np.random.Generator | None) -> tuple[Tensor, Tensor]:
        taken = self.samples.at(torch.from_numpy(indices))
        images = self.preparation.normalise(taken.inputs)
        if rng is not None:
            generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
            images = self.preparation.augment(images, generator)
        return images.contiguous(memory_format=torch.channels_last), taken.labels


@dataclass(frozen=True)
class Images:
    """Train, or its first images, validation and test; calibration is drawn of train by ``seed``."""

    sets: Sets
    preparation: Preparation
    inputs: Mapping[str, InputSpec]
    seed: int
    limit: int | None = None
    digest: str = field(default="", init=False)  # the keys here are made of what is given above

    def loader(self, split: str, epoch: int | None = None) -> OrderedLoader:
        train = self.sets.train.at(torch.arange(self.limit)) if self.limit else self.sets.train
        if split == "calibration":
            order = np.random.default_rng(self.seed).permutation(len(train))[:CALIBRATION]
            return self._loader(train, split, chunks(order, CALIBRATION_BATCH, together=True))
        samples = {"train": train, "val": self.sets.validation, "test": self.sets.test}[split]
        if epoch is None:
            return self._loader(samples, split, chunks(np.arange(len(samples)), BATCH, together=False))
        order = np.random.default_rng([self.seed, epoch]).permutation(len(samples))
        return self._loader(samples, split, chunks(order, BATCH, together=True), (self.seed, epoch))

    def _loader(
        self, samples: Samples, split: str, order: Sequence[np.ndarray], seeds: tuple[int, int] | None = None
    ) -> OrderedLoader:
        return OrderedLoader(Prepared(samples, self.preparation), self.inputs, split, order, seeds)


# ---------------------------------------------------------------- stages


@dataclass(frozen=True)
class Bench:
    """One network with its data; every stage's product is made once for its key, and kept in ``store``."""

    name: str  # of equal_subjects.SUBJECTS
    data: Path
    sets: Sets
    model: SourceModel
    store: FileStore
    limit: int | None = None  # of the training images

    @classmethod
    def open(cls, name: str, data: Path, cache: Path, limit: int | None = None) -> Bench:
        subject = SUBJECTS[name]
        inputs = {"image": InputSpec(shape=("batch", *subject.shape))}
        model = SourceModel(ModelConfig(build=f"real_networks:{subject.build}", inputs=inputs), 0)
        return cls(name, data, subject.sets(data, cache), model, FileStore(cache / "store"), limit)

    def adapted(self, settings: Recipe) -> Artifact:
        """The published weights, fine-tuned on all training images: what everything starts from, and the teacher.

        With no epoch the published weights themselves.
        """
        weights = SUBJECTS[self.name].weights
        assert weights is not None
        dense = self.model.build()
        dense.load_state_dict(dict(weights(self.data)))
        whole = replace(self, limit=None)
        published = whole.kept(
            "published", {}, lambda folder: checkpoint.save(dense, folder / MODEL, self.model)
        )
        if not settings["epochs"]:
            return published
        return whole.made(Train(Train.Config.model_validate(settings)), {"source": published}, ADAPTED_SEED)

    def pruned(self, source: Artifact, config: Mapping[str, Any], seed: int) -> Artifact:
        """By the prune stage."""
        return self.made(Prune(Prune.Config.model_validate(config)), {"source": source}, seed)

    def distilled(
        self, source: Artifact, teacher: Artifact, config: Mapping[str, Any], seed: int
    ) -> Artifact:
        """By the distill stage; with ``alpha: 0`` that is fine-tuning on the labels, and all else alike."""
        stage = Distill(Distill.Config.model_validate(config))
        return self.made(stage, {"source": source, "teacher": teacher}, seed)

    def network(self, artifact: Artifact) -> nn.Module:
        return checkpoint.load(artifact.path, self.model)

    def figures(self, artifact: Artifact, split: str) -> tuple[float, np.ndarray]:
        """Accuracy, and whether each sample is right."""
        network = self.network(artifact).to(device())
        found, scores = evaluate(network, self.model, self.images(0).loader(split), Classification())
        assert scores is not None
        return found["accuracy"], scores

    def images(self, seed: int) -> Images:
        return Images(self.sets, SUBJECTS[self.name].preparation, self.model.inputs, seed, self.limit)

    def made(self, stage: Stage, inputs: Mapping[str, Artifact], seed: int) -> Artifact:
        """What ``stage`` makes of ``inputs``; Interrupted leaves a checkpoint of a training behind."""
        kind = type(stage).__name__.lower()
        config = stage.config.model_dump(mode="json")
        key = {"config": config, "seed": seed, "inputs": {name: a.sha256 for name, a in inputs.items()}}
        step = digest_json({"kind": kind, **self._key(key)})
        context = RunContext(
            model=self.model, data=self.images(seed), task=Classification(), target=TargetConfig(), gates={},
            store=self.store, seed=seed, rehearsal=False, emit=say, stopping=lambda: bool(STOPPING), step=step,
        )  # fmt: skip
        given = {name: (artifact,) for name, artifact in inputs.items()}

        def make(folder: Path) -> None:
            stage.ensures(given, stage.run(given, folder, context), context)

        made = self.kept(kind, key, make)
        self.store.drop_checkpoints(step)
        return made

    def kept(self, kind: str, key: Mapping[str, Any], make: Callable[[Path], None]) -> Artifact:
        """The checkpoint that ``make`` writes, as MODEL, into the folder it is given: once for ``key``."""
        folder = self.store.folder(kind, self._key(key), make)
        return Artifact.of(kind, "checkpoint", folder / MODEL)

    def _key(self, key: Mapping[str, Any]) -> dict[str, Any]:
        return {"network": self.name, "limit": self.limit, **key}


# ---------------------------------------------------------------- around it

STOPPING: list[int] = []  # signals that have come


def parser(description: str, results: Path) -> argparse.ArgumentParser:
    """The options that these benchmarks share."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--data", type=Path, default=os.environ.get("DEPLOYCOMPRESS_DATA"))
    made.add_argument("--cache", type=Path, required=True, help="keeps decoded data and every checkpoint")
    made.add_argument("--network", choices=("resnet20", "resnet56"), default="resnet20")
    made.add_argument("--rate", type=float, default=0.02, help="highest learning rate")
    made.add_argument(
        "--precision", choices=("bf16", "no"), default=_fastest(), help="of products in training"
    )
    made.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--output", type=Path, default=results)
    return made


def _fastest() -> str:
    """Of the precisions, here: a processor without bf16 emulates it, twelve times slower."""
    return "bf16" if torch.cuda.is_available() or BF16 & set(cpu_flags()) else "no"


def begin(arguments: argparse.Namespace) -> None:
    """SIGINT and SIGTERM end a training after its step, with a checkpoint; the same command goes on from there."""
    if arguments.data is None or not Path(arguments.data).is_dir():
        raise SystemExit("this needs real data: give its folder by --data or DEPLOYCOMPRESS_DATA")
    torch.set_num_threads(arguments.threads)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: STOPPING.append(number))


def say(event: Event) -> None:
    if event.kind != "progress" or event.message.startswith("epoch"):
        print("   ", event.message, {k: round(v, 4) for k, v in event.figures.items()}, flush=True)


def unfinished(output: Path, keys: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that have no row in ``output`` yet."""
    rows = read_json(output)["rows"] if output.exists() else []
    return [key for key in keys if not any(key.items() <= row.items() for row in rows)]


def add(output: Path, row: Mapping[str, Any], markdown: Callable[[Sequence[Mapping[str, Any]]], str]) -> None:
    """Keep a finished row, and the table of all beside it; commands that run at once may share ``output``."""
    print({name: value for name, value in row.items() if name != "correct"}, flush=True)
    with lock(output.with_suffix(".lock"), wait_s=None):
        known = read_json(output)["rows"] if output.exists() else []
        write_json(output, {"rows": [*known, row], "environment": environment()})
        write_text(output.with_suffix(".md"), markdown([*known, row]))
