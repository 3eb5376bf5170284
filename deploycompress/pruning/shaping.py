"""What training may do to ready a network for pruning, as a configuration says it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from deploycompress.config.base import StrictModel
from deploycompress.config.quantities import Epochs, Ratio, Steps
from deploycompress.contracts import Model
from deploycompress.errors import StageFailed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deploycompress.pruning.groups import ChannelGroup

Factor = Annotated[float, Field(gt=0, allow_inf_nan=False)]
EXCLUDE = Field((), description="Layers whose outputs stay, by pattern, as in prune: layer4.*")


class Regularization(StrictModel):
    """A penalty beside the loss that draws whole channels towards zero."""

    kind: Literal["group_lasso", "growing"]
    strength: Factor = Field(1e-4, description="Weight of the penalty; of a growing one what it grows by")
    share: Ratio | None = Field(None, description="growing: share of every group's channels that will go")
    every: Steps | None = Field(None, description="growing: how often it grows: 10 steps, the default")
    ceiling: Factor | None = Field(None, description="growing: its weight at most; 1.0, the default")
    exclude: tuple[str, ...] = EXCLUDE

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Regularization:
        given = [name for name in ("share", "every", "ceiling") if getattr(self, name) is not None]
        if self.kind == "group_lasso" and given:
            raise ValueError(
                f"group_lasso takes no {given[0]}: it draws on every channel; kind: growing does"
            )
        if self.kind == "growing" and self.share is None:
            raise ValueError("growing needs a share, of every group's channels that will go: 50%")
        return self


class SoftPrune(StrictModel):
    """Weak channels are zeroed between epochs and go on training."""

    share: Ratio
    every: Epochs | None = Field(None, description="How often: 1 epoch, the default")
    exclude: tuple[str, ...] = EXCLUDE

    @model_validator(mode="after")
    def _leaves_something(self) -> SoftPrune:
        if self.share.value >= 1:
            raise ValueError("share 100% leaves no channel; expected less")
        return self


@dataclass(frozen=True)
class Shaping:
    """Hooks of a training: a penalty for each step, and what is done after an epoch (how many are done)."""

    penalty: Callable[[], Mapping[str, Tensor]] | None = None
    after_epoch: Callable[[int], None] | None = None


def open_shaping(
    module: nn.Module,
    model: Model,
    epochs: int,
    regularization: Regularization | None,
    soft_prune: SoftPrune | None,
) -> Shaping:
    """The hooks that the settings ask for, over the dependency groups of ``module``.

    Raises StageFailed where there is no group to work on.
    """
    penalty: Any = None
    after_epoch: Any = None
    if regularization is not None:
        from deploycompress.pruning.regularization import GroupLasso, GrowingPenalty

        share = regularization.share.value if regularization.share else None
        groups = _groups(module, model, regularization.exclude, "regularization", share)
        if regularization.kind == "group_lasso":
            penalty = GroupLasso(module, groups, regularization.strength)
        else:
            assert share is not None
            penalty = GrowingPenalty(
                module,
                groups,
                share,
                regularization.strength,
                int(regularization.every.value) if regularization.every else 10,
                regularization.ceiling or 1.0,
            )
    if soft_prune is not None:
        from deploycompress.pruning.soft import SoftPruning

        groups = _groups(module, model, soft_prune.exclude, "soft_prune", soft_prune.share.value)
        every = int(soft_prune.every.value) if soft_prune.every else 1
        after_epoch = SoftPruning(module, groups, soft_prune.share.value, every, epochs)
    return Shaping(penalty, after_epoch)


def _groups(
    module: nn.Module, model: Model, exclude: Sequence[str], option: str, share: float | None
) -> tuple[ChannelGroup, ...]:
    """``share``: of each group's channels that the option is for; None for all of them."""
    import torch

    from deploycompress.pruning.discovery import find_groups
    from deploycompress.pruning.excluded import require_layers
    from deploycompress.pruning.groups import on_grid
    from deploycompress.pruning.norms import weakest

    if exclude != EXCLUDE:
        require_layers(exclude, module, f"{option}.exclude")

    found = find_groups(module, model, exclude)
    if not found.groups:
        reasons = "; ".join(f"{u.layer}: {u.reason}" for u in found.unpruned[:3])
        raise StageFailed(f"{option}: no channels of the model can be pruned ({reasons}); leave {option} out")
    groups = on_grid(found.groups, align=1)
    if share is not None and not any(len(weakest(g, torch.zeros(g.width), share)) for g in groups):
        widest = max(group.width for group in groups)
        raise StageFailed(
            f"{option}: a share of {share:.3g} is less than half a channel of every group, of which the widest has "
            f"{widest}; raise the share, or leave {option} out"
        )
    return groups
