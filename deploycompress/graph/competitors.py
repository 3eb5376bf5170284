"""Models that the user might ship instead: networks and ONNX files, brought into the form that is measured."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from deploycompress.artifact import Artifact
from deploycompress.config.schema import Network
from deploycompress.contracts import Note, Outputs, RunContext
from deploycompress.errors import ConfigError, DeployCompressError, StageFailed
from deploycompress.registry import RUNTIMES
from deploycompress.writing import saving

if TYPE_CHECKING:
    from torch import Tensor, nn

PLACE = "benchmark.competitors"  # in the configuration
WEIGHTS_OF = {"torchvision": "weights", "timm": "pretrained"}  # the argument that loads them


def require_openable(competitors: Mapping[str, Network | Path], runtime: str) -> None:
    """Raises ConfigError where the target's runtime opens nothing that a competitor can be; no framework is loaded."""
    opens = RUNTIMES.load(runtime).accepts
    for name, given in competitors.items():
        if "onnx" in opens or ("checkpoint" in opens and isinstance(given, Network)):
            continue
        what = "an ONNX file" if isinstance(given, Path) else "a network"
        raise ConfigError(
            f"{PLACE}.{name}: the target's runtime {runtime} opens {', '.join(sorted(opens))}, and {what} is not "
            "measured there; leave the competitor out"
        )


def make(
    competitors: Mapping[str, Network | Path], folder: Path, taken: set[str], context: RunContext
) -> tuple[list[Artifact], list[Note]]:
    """An artefact for each competitor, in ``folder``: exported, or copied with the model's names for its inputs.

    ``taken``: ids of the run's own artefacts. Raises ConfigError where one does not take the model's inputs or
    answers in another form than the model does.
    """
    made, notes = [], []
    for name, given in competitors.items():
        if name in taken:
            raise ConfigError(f"{PLACE}.{name}: an artefact of this run has that name; choose another")
        try:
            artifact, said = _made(name, given, folder / name, context)
        except ConfigError as error:
            told = re.sub(r"\bmodel\.(build|args|weights)\b", rf"{PLACE}.{name}.\1", str(error))
            raise ConfigError(told if PLACE in told else f"{PLACE}.{name}: {told}") from error
        except StageFailed as error:
            raise ConfigError(
                f"{PLACE}.{name}: {error}; a competitor can also be given as an .onnx file"
            ) from error
        made.append(artifact)
        notes += said
    return made, notes


def _made(name: str, given: Network | Path, folder: Path, context: RunContext) -> tuple[Artifact, list[Note]]:
    import torch

    from deploycompress.graph.execution import inspect_onnx, precision_of
    from deploycompress.graph.feeds import take
    from deploycompress.model import checkpoint
    from deploycompress.model.source import load_weights

    folder.mkdir(parents=True)
    feed = take(context.data.loader("val"), 2)
    if isinstance(given, Path):
        path = _copied(given, folder / "model.onnx", context)
        _require_fit(_answers(path, context), context)
        return Artifact.of(name, "onnx", path, precision=precision_of(inspect_onnx(path))), []
    network = context.model.other(given)
    module = network.build()
    if given.weights is not None:
        load_weights(module, given.weights)
    try:
        with torch.no_grad():
            outputs = network.call(module, feed)
    except DeployCompressError:
        raise
    except Exception as error:  # the user's code, or a library's
        raise _inputs_misfit(f"{type(error).__name__}: {_first_line(error)}", feed) from error
    _require_fit(outputs, context)
    notes = _untrained(name, given)
    if "onnx" not in RUNTIMES.load(context.target.runtime).accepts:
        checkpoint.save(module, folder / "model", context.model)
        return Artifact.of(name, "checkpoint", folder / "model"), notes
    return _exported(name, module, folder, context), notes


def _exported(name: str, module: nn.Module, folder: Path, context: RunContext) -> Artifact:
    """Exported and simplified like the run's own, so that nothing but the network makes the difference."""
    from deploycompress.graph.execution import inspect_onnx
    from deploycompress.graph.export import export_onnx
    from deploycompress.graph.feeds import parity_feeds
    from deploycompress.graph.simplify import TOOLS, simplify_onnx
    from deploycompress.model.parity import to_numpy

    feeds = parity_feeds(context.model, context.data.loader("val"))
    path = folder / "model.onnx"
    with TemporaryDirectory(dir=folder, prefix=".export-") as scratch:
        raw = Path(scratch) / "model.onnx"
        export_onnx(module, context.model, raw, feeds=feeds)
        simplify_onnx(raw, path, [to_numpy(feed) for feed in feeds], () if context.rehearsal else TOOLS)
    return Artifact.of(name, "onnx", folder if inspect_onnx(path)["external"] else path)


def _copied(given: Path, path: Path, context: RunContext) -> Path:
    """The file under the model's names for its inputs, by order where it has others."""
    import onnx_ir

    from deploycompress.graph.execution import inspect_onnx

    described = inspect_onnx(given)
    if described["external"]:
        raise ConfigError(
            f"{given.name} keeps tensors in {', '.join(described['external'])}, whose change would go unnoticed; save "
            "it as one file"
        )
    own, theirs = list(context.model.inputs), list(described["inputs"])
    if not set(theirs) <= set(own) and len(theirs) != len(own):
        raise ConfigError(
            f"{given.name} wants the inputs {', '.join(theirs)}; expected those of model.inputs, {', '.join(own)}"
        )
    model = onnx_ir.load(given)
    if not set(theirs) <= set(own):
        by_name = {value.name: value for value in model.graph.inputs}
        for wanted, name in zip(theirs, own, strict=True):
            by_name[wanted].name = name
    with saving(path):
        onnx_ir.save(model, path)
    return path


def _answers(path: Path, context: RunContext) -> dict[str, Tensor]:
    """What the file gives on real samples, as many as it takes at once."""
    import torch

    from deploycompress.graph.execution import fixed_batch_of, run_onnx
    from deploycompress.graph.feeds import take
    from deploycompress.model.parity import to_numpy

    feed = take(context.data.loader("val"), fixed_batch_of(path) or 2)
    try:
        (outputs,) = run_onnx(path, [to_numpy(feed)])
    except StageFailed as error:
        raise _inputs_misfit(" ".join(str(error).split())[:300], feed) from error
    return {name: torch.from_numpy(array) for name, array in outputs.items()}


def _require_fit(outputs: Mapping[str, Tensor], context: RunContext) -> None:
    """Raises ConfigError where the main output has other dimensions, or another number of classes, than the model's."""
    import torch

    batch = next(iter(context.data.loader("val")))
    count = min(Outputs(outputs).main.shape[0], next(iter(batch.inputs.values())).shape[0])
    batch = batch.rows(0, count)
    outputs = {name: tensor[:count] for name, tensor in outputs.items()}
    with torch.no_grad():
        ours = Outputs(context.model.call(context.model.build(), batch.inputs)).main
    theirs = Outputs(outputs).main
    # Classes or values: behind the batch; of [batch, tokens, classes] they are the last.
    axis = -1 if ours.ndim == 3 else min(1, ours.ndim - 1)
    if theirs.ndim != ours.ndim or theirs.shape[axis] != ours.shape[axis]:
        raise ConfigError(
            f"it gives {list(theirs.shape)} where the model gives {list(ours.shape)}, so no metric would compare them; "
            "give it as many outputs as the model has (num_classes, often), and the weights that go with them"
        )
    context.task.check(Outputs(outputs), batch)


def _untrained(name: str, given: Network) -> list[Note]:
    """Of a library's network that nobody gave weights; a function of the user's may load its own."""
    argument = WEIGHTS_OF.get(given.build.partition(":")[0])
    if given.weights is not None or argument is None or given.args.get(argument):
        return []
    return [Note("warning", "a competitor without weights: only its speed and size mean anything", name)]


def _inputs_misfit(reason: str, feed: Mapping[str, Any]) -> ConfigError:
    received = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in feed.items())
    return ConfigError(f"it does not take the model's inputs ({received}): {reason}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
