"""Teachers: whatever answers a batch, a network, an ONNX file or several of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from deploycompress.contracts import Batch, Model, Outputs
from deploycompress.errors import ConfigError
from deploycompress.graph.execution import fixed_batch_of, inspect_onnx
from deploycompress.recovery.layers import Layers, trace, watched
from deploycompress.runtimes.onnxruntime import OnnxRuntime

Combine = Literal["mean", "confidence"]
# The dimension of the classes in [teachers, batch, tokens, classes]; in all else it is the one behind the batch.
CLASSES_OF_TOKENS = 3


class Teacher(Protocol):
    def layers(self, batch: Batch) -> Layers:
        """What its layers give out, for losses that read features. Raises ConfigError where there are none."""
        ...

    def answer(self, batch: Batch, paths: Sequence[str]) -> Outputs:
        """Outputs on ``batch``, and the features at ``paths``: tensors that a loss may keep for its backward."""
        ...


class NetworkTeacher:
    """A network in evaluation mode, run in inference mode: no gradient, no trace in its statistics.

    Where it is spread over devices, its layers' outputs are too; what it answers is beside the batch, in float32
    also where it computes in less, since losses are taken in it.
    """

    def __init__(self, model: Model, module: nn.Module) -> None:
        self._model, self.module = model, module.eval()

    def layers(self, batch: Batch) -> Layers:
        return trace(self.module, lambda: self._model.call(self.module, batch.inputs))

    def answer(self, batch: Batch, paths: Sequence[str]) -> Outputs:
        with torch.inference_mode(), watched(self.module, paths) as features:
            tensors = self._model.call(self.module, batch.inputs)
        device = next(iter(batch.inputs.values())).device
        # Autograd may keep these for its backward, which it refuses to do with inference tensors.
        return Outputs(
            {name: _float32(tensor).to(device, copy=True) for name, tensor in tensors.items()},
            {path: tensor.to(device, copy=True) for path, tensor in features.items()},
        )


class FileTeacher:
    """An ONNX file in ONNX Runtime on the CPU; its outputs come back as tensors beside the batch.

    Its inputs go by name, or, where it has other names and as many, by order. Raises ConfigError when the file is
    refused, does not load or fixes its batch size.
    """

    def __init__(self, path: Path) -> None:
        described = inspect_onnx(path)
        self._path, self._inputs = path, list(described["inputs"])
        if described["external"]:
            raise ConfigError(
                f"teacher {path.name}: it keeps tensors in {', '.join(described['external'])}, whose change would go "
                "unnoticed; save it as one file, or name the network as {build, weights}"
            )
        fixed = fixed_batch_of(path)
        if fixed is not None:
            raise ConfigError(
                f"teacher {path.name}: it takes batches of {fixed} only; expected a dynamic first dimension: export it "
                "with one"
            )
        self._open = ExitStack()  # the session goes with this object, at the end of the step's process
        try:
            options = {"threads": torch.get_num_threads(), "spinning": False}
            self._session = self._open.enter_context(OnnxRuntime().open(path, options))
        except RuntimeError as error:
            raise ConfigError(f"teacher {path.name}: {error}") from error

    def layers(self, batch: Batch) -> Layers:
        raise ConfigError(
            f"teacher {self._path.name}: an ONNX file gives outputs and no features; choose a loss on outputs, such as "
            "kd, or a teacher of {build, weights}"
        )

    def answer(self, batch: Batch, paths: Sequence[str]) -> Outputs:
        names = [name if name in batch.inputs else None for name in self._inputs]
        if None in names and len(names) == len(batch.inputs):
            names = list(batch.inputs)
        if None in names:
            raise ConfigError(
                f"teacher {self._path.name}: it wants the inputs {', '.join(self._inputs)}; the batch has "
                f"{', '.join(batch.inputs)}: name model.inputs like the file's"
            )
        given = zip(self._inputs, (batch.inputs[str(name)] for name in names), strict=True)
        feed = {name: tensor.detach().cpu().numpy() for name, tensor in given}
        device = next(iter(batch.inputs.values())).device
        try:
            self._session.bind(feed)()
            fetched = self._session.fetch()
        except Exception as error:  # onnxruntime's own classes, one for each status code
            reason = (str(error).strip().splitlines() or ["no message"])[0]
            shapes = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in feed.items())
            raise ConfigError(
                f"teacher {self._path.name} does not run on a batch of {shapes}: {reason}"
            ) from error
        return Outputs({name: torch.from_numpy(np.array(a)).to(device) for name, a in fetched.items()})


class Several:
    """Teachers that answer together: the mean of their outputs, evenly or by how sure each is of each sample.

    The mean of logits is the geometric mean of the distributions: Hinton et al., "Distilling the Knowledge in a
    Neural Network" (2015), section 1. ``confidence``: teacher k of K counts
    ``w_k = (1 - exp(c_k) / sum_j exp(c_j)) / (K - 1)`` for a sample, where ``c_k = -log p_k,y`` is its cross-entropy
    on the label y: Zhang et al., "Confidence-Aware Multi-Teacher Knowledge Distillation" (ICASSP 2022), equation 2.
    Without a class label y is the class that the teacher itself thinks likeliest. Features are the first one's.
    """

    def __init__(self, teachers: Sequence[Teacher], combine: Combine = "mean") -> None:
        self.teachers, self.combine = tuple(teachers), combine

    def layers(self, batch: Batch) -> Layers:
        return self.teachers[0].layers(batch)

    def answer(self, batch: Batch, paths: Sequence[str]) -> Outputs:
        first = self.teachers[0].answer(batch, paths)
        others = [teacher.answer(batch, ()) for teacher in self.teachers[1:]]
        combined = {}
        for number, (name, own) in enumerate(first.tensors.items()):
            named = [other.tensors.get(name) for other in others]
            if number == 0:  # in a file the first may have another name
                named = [o.main if of is None else of for o, of in zip(others, named, strict=True)]
            answers = [own, *(of for of in named if of is not None)]
            alike = len(answers) == len(self.teachers) and len({of.shape for of in answers}) == 1
            if alike or number == 0:  # what they do not share besides, nobody asks them for
                combined[name] = self._combined(answers, batch)
        return Outputs(combined, first.features)

    def _combined(self, answers: Sequence[Tensor], batch: Batch) -> Tensor:
        shapes = [list(answer.shape) for answer in answers]
        if any(shape != shapes[0] for shape in shapes):
            raise ConfigError(
                f"the teachers' outputs are {', '.join(map(str, shapes))}; expected the same shape of all: choose "
                "teachers for the same task"
            )
        if not answers[0].is_floating_point():
            return answers[0]
        stacked = torch.stack(list(answers))
        if self.combine == "mean" or stacked.ndim < 3:
            return stacked.mean(dim=0)
        dim = CLASSES_OF_TOKENS if stacked.ndim == 4 else 2
        last = stacked.movedim(dim, -1)
        return (_confidence(last, batch).unsqueeze(-1) * last).sum(dim=0).movedim(-1, dim - 1)


def _float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _confidence(logits: Tensor, batch: Batch) -> Tensor:
    """[teachers, batch, ..., classes] -> weights [teachers, batch, ...] that add up to 1."""
    log_p = logits.log_softmax(dim=-1)
    doubt = -log_p.amax(dim=-1)
    labels = batch.targets
    if isinstance(labels, Tensor) and labels.shape == logits.shape[1:-1] and not labels.is_floating_point():
        known = (labels >= 0) & (labels < logits.shape[-1])  # others are left out of the loss
        index = labels.long().clamp(0, logits.shape[-1] - 1).expand(len(logits), *labels.shape)
        doubt = torch.where(known, -log_p.gather(-1, index.unsqueeze(-1)).squeeze(-1), doubt)
    return (1 - doubt.softmax(dim=0)) / (len(logits) - 1)


def open_teacher(model: Model, made: Sequence[nn.Module | Path], combine: Combine) -> Teacher:
    """The teacher that networks and ONNX files are together."""
    opened: list[Teacher] = [
        FileTeacher(one) if isinstance(one, Path) else NetworkTeacher(model, one) for one in made
    ]
    return opened[0] if len(opened) == 1 else Several(opened, combine)
