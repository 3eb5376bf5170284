"""What a pruned model may cost, as a configuration says it."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field, model_validator

from deploycompress.config.base import StrictModel
from deploycompress.config.quantities import Quantity, Ratio, RemainingBytes, RemainingCount


class Target(StrictModel):
    """What may remain; of several all must hold."""

    macs: RemainingCount | None = Field(None, description="Multiply-accumulates that remain: 50%, or 40 M")
    params: RemainingCount | None = Field(None, description="Parameters that remain: 50%, or 1.5 M")
    size: RemainingBytes | None = Field(
        None, description="Bytes of parameters and buffers that remain: 25%, 300 KB"
    )
    ratio: Ratio | None = Field(None, description="Share of the channels that is removed: 0.3")

    @model_validator(mode="after")
    def _one_at_least(self) -> Target:
        if not any(getattr(self, name) for name in type(self).model_fields):
            raise ValueError("expected at least one of macs, params, size, ratio")
        return self

    def limits(self, original: Mapping[str, float]) -> dict[str, float]:
        """The most that each cost may be; ``original``: the unpruned model's macs, params, size and channels."""
        found = {
            name: _absolute(quantity, original[name])
            for name in ("macs", "params", "size")
            if (quantity := getattr(self, name)) is not None
        }
        if self.ratio is not None:
            found["channels"] = (1 - self.ratio.value) * original["channels"]
        return found


def _absolute(quantity: Quantity, full: float) -> float:
    return quantity.value * full if quantity.dimension == "percent" else quantity.value
