"""The sparsify stage: single weights that matter least become zero; every layer keeps its shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from deploycompress.artifact import Artifact
from deploycompress.config.base import StrictModel
from deploycompress.config.quantities import Ratio
from deploycompress.contracts import Event, Inputs, Note, Outcome, RunContext, Stage
from deploycompress.errors import StageFailed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deploycompress.pruning.groups import Unpruned

TOLERANCE = 1e-4  # of max|y|: what was saved against what is loaded
NO_SPEED = (
    "a runtime has to skip zeros for them to make a model faster, and most do not; the benchmark measures it"
)


class Sparsify(Stage):
    """Unstructured zeros, or two of every four weights: the form that sparse tensor cores take."""

    accepts = frozenset({"checkpoint"})
    produces = frozenset({"checkpoint"})
    libraries = ("torch", "numpy")
    compresses = True

    class Config(StrictModel):
        pattern: Literal["unstructured", "2:4"] = "unstructured"
        sparsity: Ratio | None = Field(None, description="Share of the weights that become zero: 80%")
        scope: Literal["global", "layer"] | None = Field(
            None,
            description="Weights compete in the whole network (global, the default), or within their layer",
        )
        exclude: tuple[str, ...] = Field((), description="Layers that stay, by pattern: head, layer4.*")

        @model_validator(mode="after")
        def _sparsity_fits_the_pattern(self) -> Any:
            if self.pattern == "2:4" and (self.sparsity is not None or self.scope is not None):
                raise ValueError("pattern 2:4 is 50% in every layer by itself; leave sparsity and scope out")
            if self.pattern == "unstructured" and self.sparsity is None:
                raise ValueError("expected a sparsity, the share of the weights that become zero: 80%")
            if self.sparsity is not None and self.sparsity.value >= 1:
                raise ValueError("sparsity 100% leaves no weight; expected less")
            return self

    def run(self, inputs: Inputs, workdir: Path, context: RunContext) -> Outcome:
        from deploycompress.model import checkpoint
        from deploycompress.model.build_name import build_of
        from deploycompress.model.sparse import share_of_zeros
        from deploycompress.pruning.excluded import require_layers
        from deploycompress.pruning.notes import left_whole
        from deploycompress.recovery.evaluation import evaluate

        module = checkpoint.load(inputs["source"][0].path, context.model)
        if self.config.exclude:  # of the whole network: an earlier step may have taken layers out
            whole_network = context.model.named(build_of(module)).build()
            require_layers(self.config.exclude, whole_network, "sparsify.exclude")
        masks, whole = self._masks(module)
        if not masks:
            reasons = "; ".join(f"{u.layer}: {u.reason}" for u in whole[:3]) or "it has no such layer"
            raise StageFailed(
                f"no weight can become zero: {reasons}; change pattern or exclude, or leave sparsify out"
            )
        self._close(module, masks)
        checkpoint.save(module, workdir / "model", context.model)
        layers = [
            {"layer": _layer(name), "weights": mask.numel(), "sparsity": share_of_zeros([mask])}
            for name, mask in masks.items()
        ]
        metrics = {
            "sparsity": share_of_zeros(masks.values()),
            "sparsity_of_all_parameters": share_of_zeros(module.parameters()),
        }
        figures, _ = evaluate(module, context.model, context.data.loader("val"), context.task)
        metrics |= {f"val_{name}": value for name, value in figures.items()}
        context.emit(Event("decision", "sparsified", metrics))
        return Outcome(
            (Artifact.of("", "checkpoint", workdir / "model"),),
            metrics,
            notes=(Note("decision", NO_SPEED), *_empty(layers), *left_whole(whole)),
            details={"sparsity": layers, "unpruned": [{"layer": u.layer, "reason": u.reason} for u in whole]},
        )

    def ensures(self, inputs: Inputs, outcome: Outcome, context: RunContext) -> Mapping[str, float]:
        """The checkpoint, loaded again, has the zeros, and gives what the source gives with them."""
        import torch

        from deploycompress.graph.feeds import parity_feeds
        from deploycompress.model import checkpoint
        from deploycompress.model.parity import compare, to_numpy, worst

        expected = checkpoint.load(inputs["source"][0].path, context.model)
        loaded = checkpoint.load(outcome.artifacts[0].path, context.model)
        masks, _ = self._masks(expected)
        self._close(expected, masks)
        for name, mask in masks.items():
            if bool(loaded.get_parameter(name)[~mask].any()):
                raise StageFailed(f"{name} has weights that should be zero; run again to make the step anew")
        with torch.no_grad():
            parity = worst(
                [
                    compare(*(to_numpy(context.model.call(m, feed)) for m in (expected, loaded)))
                    for feed in parity_feeds(context.model, context.data.loader("val"))
                ]
            )
        if parity.relative > TOLERANCE:
            raise StageFailed(
                f"the sparse model that was saved differs from its source with the same weights set to zero by "
                f"{parity.relative:.2g} of the largest output, expected at most {TOLERANCE:g}; report this"
            )
        return {"checkpoint_relative": parity.relative}

    def _masks(self, module: nn.Module) -> tuple[dict[str, Tensor], tuple[Unpruned, ...]]:
        from deploycompress.pruning.sparsity import by_magnitude, find_weights, two_of_four

        found = find_weights(module, self.config.exclude)
        if self.config.pattern == "2:4":
            masks, whole = two_of_four(found)
            return masks, (*found.whole, *whole)
        return by_magnitude(found.tensors, self.config.sparsity.value, self.config.scope), found.whole

    def _close(self, module: nn.Module, masks: Mapping[str, Tensor]) -> None:
        from deploycompress.model.sparse import mark_sparse
        from deploycompress.pruning.sparsity import close

        close(module, masks)
        mark_sparse(module, masks)


def _layer(parameter: str) -> str:
    return parameter.rpartition(".")[0] or parameter


def _empty(layers: Sequence[Mapping[str, Any]]) -> Iterator[Note]:
    for row in layers:
        if row["sparsity"] == 1:
            message = "no weight is left in this layer; use scope: layer, or exclude it"
            yield Note("warning", message, row["layer"])
