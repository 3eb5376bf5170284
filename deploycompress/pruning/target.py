"""What a pruned model may cost, as a configuration says it."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field, model_validator

from deploycompress.config.base import StrictModel
from deploycompress.config.quantities import Quantity, Ratio, Remaining, RemainingBytes, RemainingCount


class Target(StrictModel):
    """What may remain; of several all must hold."""

    latency: Remaining | None = Field(
        None, description="Latency that remains, measured at the pipeline's target: 50%, or 3 ms"
    )
    macs: RemainingCount | None = Field(None, description="Multiply-accumulates that remain: 50%, or 40 M")
    params: RemainingCount | None = Field(None, description="Parameters that remain: 50%, or 1.5 M")
    size: RemainingBytes | None = Field(
        None, description="Bytes of parameters and buffers that remain: 25%, 300 KB"
    )
    ratio: Ratio | None = Field(None, description="Share of the channels that is removed: 0.3")

    @model_validator(mode="after")
    def _one_at_least(self) -> Target:
        if not any(getattr(self, name) for name in type(self).model_fields):
            raise ValueError("expected at least one of latency, macs, params, size, ratio")
        return self

    def limits(self, original: Mapping[str, float]) -> dict[str, float]:
        """The most that each cost may be; ``original``: the unpruned model's macs, params, size, channels and,
        where a latency is asked for, latency in milliseconds.
        """
        found = {
            name: _absolute(quantity, original[name])
            for name in ("macs", "params", "size")
            if (quantity := getattr(self, name)) is not None
        }
        if self.ratio is not None:
            found["channels"] = (1 - self.ratio.value) * original["channels"]
        if self.latency is not None:
            found["latency"] = self.latency_ms(original["latency"])
        return found

    def latency_ms(self, unpruned_ms: float) -> float:
        """The most that the latency may be; of a share, of ``unpruned_ms``."""
        assert self.latency is not None
        return _absolute(self.latency, unpruned_ms)

    def counted(self) -> Target | None:
        """What of it can be counted, without a latency; None where that is nothing."""
        left = {name: getattr(self, name) for name in type(self).model_fields if name != "latency"}
        return self.model_copy(update={"latency": None}) if any(left.values()) else None

    def rehearsed(self) -> Target:
        """The same with MACs in place of the latency, which a rehearsal does not measure."""
        if self.latency is None:
            return self
        share = self.latency if self.latency.dimension == "percent" else Quantity.parse("50%", "percent")
        return self.model_copy(update={"latency": None, "macs": self.macs or share})


def _absolute(quantity: Quantity, full: float) -> float:
    return quantity.value * full if quantity.dimension == "percent" else quantity.value
