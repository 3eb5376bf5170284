"""What a configuration asks the arbiter for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from deploycompress.config.base import StrictModel

if TYPE_CHECKING:
    from deploycompress.graph.compilers.recipe import Recipe


class Wanted(StrictModel):
    """One runtime's candidates, narrowed down by what is given."""

    runtime: str
    precision: Literal["fp32", "fp16", "bf16", "int8"] | None = None
    scheme: str | None = Field(
        default=None, description="Of INT8: u8s8, s8s8, dynamic, and so on; also where its weights get 7 bits"
    )
    threads: tuple[Annotated[int, Field(ge=1)], ...] = ()
    options: dict[str, str | bool | int] = Field(
        default={}, description="The runtime's own: {spinning: false, graph_level: extended}"
    )

    def fits(self, recipe: Recipe) -> bool:
        return (
            self.runtime == recipe.runtime
            and self.precision in (None, recipe.precision)
            and self.scheme in (None, recipe.scheme, recipe.scheme.removesuffix("_reduced"))
        )
