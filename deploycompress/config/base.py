"""The strict, frozen base of every configuration model."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class StrictModel(BaseModel):
    """Refuses unknown keys and is never changed after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
