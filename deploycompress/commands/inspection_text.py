"""An inspection as text of 100 columns: where the time goes, and what could be taken away."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Literal, TypeVar

from deploycompress.commands.inspection_cells import NOTHING, Unit, grid, kind, name, names, share, width
from deploycompress.report.figures import clean

if TYPE_CHECKING:
    from deploycompress.commands.inspection import BlockShare, GroupShare, Inspection, Layer

    Item = TypeVar("Item", Layer, GroupShare, BlockShare)

Sort = Literal["latency", "macs", "params", "order"]

WIDTH = 100
MOST = 0.95  # of a total, that the layers shown make up
LITTLE = 0.01  # of a total: a group or a block with less is not shown
NOT_IN_LAYERS = (
    "activations, pooling, additions, normalisation that was not folded, products of two activations "
    "(attention), changes of layout, what the runtime takes to start each operator, and what else the machine did "
    "while one or the other was measured"
)


def text(found: Inspection, sort: Sort, limit: int | None, *, colour: bool = False) -> str:
    """Layers, groups, blocks and what is left whole.

    Rows are the heaviest by ``sort`` (in their ``order`` by time), as many as matter or ``limit``; times are left
    out where nothing was measured.
    """
    tables = _Tables(found, sort, limit, colour)
    inputs = ", ".join(
        f"{name} {'x'.join(map(str, (found.batch_size, *spec.shape[1:])))} {spec.dtype}"
        for name, spec in found.inputs.items()
    )
    parts = [f"{clean(found.build)} with {inputs}", tables.layers(), _lines(_remarks(found))]
    parts += [tables.groups()] if found.groups else []
    parts += [tables.blocks()] if found.blocks else []
    return "\n\n".join([*parts, _lines(_left_whole(found))])


class _Tables:
    """The three tables: they share their units, and what rows are chosen by."""

    def __init__(self, found: Inspection, sort: Sort, limit: int | None, colour: bool) -> None:
        self.found, self.limit, self.colour = found, limit, colour
        whole = found.whole
        self.total_ms = whole.layers_ms if whole.latency_ms is None else whole.latency_ms
        self.macs, self.params, self.ms = Unit.of(whole.macs), Unit.of(whole.params), Unit("ms", 1.0, 3)
        self.numbers = {group.id: number for number, group in enumerate(found.groups, 1)}
        self.in_order = sort == "order"
        if sort in ("latency", "order"):
            sort = "macs" if whole.layers_ms is None else "latency"
        self.weighed = "latency_ms" if sort == "latency" else sort
        self.words = {"latency": "time", "macs": "MACs", "params": "parameters"}[sort]
        self.total = self.total_ms if sort == "latency" else getattr(whole, sort)

    def layers(self) -> str:
        layers, whole = self.found.layers, self.found.whole
        weights = sorted(map(self._weight, layers), reverse=True)
        before = [0.0, *accumulate(weights)]
        most = sum(reached < MOST * before[-1] for reached in before[:-1])
        shown, others = self._heaviest(layers, most)
        rows = [
            [name(layer.layer), kind(layer), width(layer.c_in), width(layer.c_out), self._ends(layer)]
            for layer in shown
        ]
        rows = [[*row, *self._figures_of([layer])] for row, layer in zip(rows, shown, strict=True)]
        if others:
            rows.append([f"{len(others)} others", "", "", "", "", *self._figures_of(others)])
        macs, params = (sum(getattr(layer, x) for layer in layers) for x in ("macs", "params"))
        apart = self._figures(whole.macs - macs, whole.params - params, _apart_ms(self.found))
        rows.append(["not in layers", "", "", "", "", *apart])
        total = self._figures(whole.macs, whole.params, whole.latency_ms)
        rows.append(["the model", "", "", "", "", *total])
        title = f"Layers{self._chosen(shown, others, f'that make up {MOST:.0%}')}"
        head = ["layer", "kind", "in", "out", "group"]
        return f"{title}\n{self._table(head, rows, left=(0, 1), sums=2 + bool(others))}"

    def groups(self) -> str:
        groups = self.found.groups
        shown, others = self._heaviest(groups, self._not_little(groups))
        rows = [
            [str(self.numbers[g.id]), names(g.layers), str(g.width), grid(g), *self._figures_of([g])]
            for g in shown
        ]
        title = (
            f"Groups of channels that go together{self._chosen(shown, others, f'with at least {LITTLE:.0%}')}. "
            "A layer counts in the group of its inputs and in that of its outputs."
        )
        head = ["group", "made by", "width", "could be"]
        return f"{_lines([title])}\n{self._table(head, rows, left=(1,))}"

    def blocks(self) -> str:
        blocks = self.found.blocks
        shown, others = self._heaviest(blocks, self._not_little(blocks))
        rows = [[name(b.id), str(len(b.layers)), *self._figures_of([b])] for b in shown]
        title = f"Blocks that can be taken out{self._chosen(shown, others, f'with at least {LITTLE:.0%}')}"
        return f"{title}\n{self._table(['block', 'layers'], rows, left=(0,))}"

    # ------------------------------------------------------------ which rows

    def _weight(self, item: Layer | GroupShare | BlockShare) -> float:
        return float(getattr(item, self.weighed) or 0.0)

    def _not_little(self, items: Sequence[Item]) -> int:
        return sum(self._weight(item) >= LITTLE * (self.total or 0.0) for item in items)

    def _heaviest(self, items: Sequence[Item], count: int) -> tuple[list[Item], list[Item]]:
        """``count`` of them, or as many as were asked for; and the others."""
        by_weight = sorted(range(len(items)), key=lambda i: -self._weight(items[i]))
        chosen = by_weight[: count if self.limit is None else self.limit]
        others = by_weight[len(chosen) :]
        return [items[i] for i in (sorted(chosen) if self.in_order else chosen)], [items[i] for i in others]

    def _chosen(self, shown: Sequence[object], others: Sequence[object], why: str) -> str:
        if not others:
            return ""
        why = why.replace("%", " %") if self.limit is None else "with most"
        return f", the {len(shown)} of {len(shown) + len(others)} {why} of the {self.words}"

    # ------------------------------------------------------------ cells

    def _figures_of(self, items: Sequence[Item]) -> list[str]:
        """Of all of them together."""
        known = [item.latency_ms for item in items if item.latency_ms is not None]
        macs, params = (sum(getattr(item, x) for item in items) for x in ("macs", "params"))
        return self._figures(macs, params, sum(known) if known else None)

    def _figures(self, macs: float, params: float, latency_ms: float | None) -> list[str]:
        whole = self.found.whole
        cells = [self.macs(macs), share(macs, whole.macs), self.params(params), share(params, whole.params)]
        if self.total_ms is not None:
            cells += [self.ms(latency_ms), share(latency_ms, self.total_ms)]
        return cells

    def _ends(self, layer: Layer) -> str:
        """The groups that its inputs and outputs are of, by number; ``3+`` where there are more of them."""
        ends = [
            f"{self.numbers[ids[0]]}{'+' if len(ids) > 1 else ''}" if ids else NOTHING
            for ids in (layer.group_in, layer.group_out)
        ]
        return "→".join(ends)

    def _table(
        self, head: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int], sums: int = 0
    ) -> str:
        """Columns ``left`` are aligned left, all others right; the last ``sums`` rows are sums."""
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        units = {"MACs": self.macs.name, "params": self.params.name}
        units |= {} if self.total_ms is None else {"time": self.ms.name}
        titles = [*head, *(title for figure in units for title in (figure, "%"))]
        # No gap before the first; a share stands nearer to its figure.
        gaps = ["", *(" " if title == "%" else "  " for title in titles[1:])]
        table = Table(box=None, pad_edge=False, padding=0, header_style="bold")
        for number, (gap, title) in enumerate(zip(gaps, titles, strict=True)):
            unit = f"\n({units[title]})" if units.get(title) else ""
            justify: Literal["left", "right"] = "left" if number in left else "right"
            table.add_column(Text(f"{gap}{title}{unit}"), justify=justify, no_wrap=True)
        for number, row in enumerate(rows):
            style = "dim" if number >= len(rows) - sums else None
            table.add_row(*(Text(gap + cell) for gap, cell in zip(gaps, row, strict=True)), style=style)
        # Wider than any terminal: a long line is the terminal's to break, and none of it is lost.
        console = Console(file=io.StringIO(), width=4 * WIDTH, force_terminal=self.colour, highlight=False)
        with console.capture() as captured:
            console.print(table)
        return "\n".join(line.rstrip() for line in captured.get().splitlines())


# ---------------------------------------------------------------- sentences


def _remarks(found: Inspection) -> list[str]:
    """What was measured, how the layers together stand to the whole model, and what was not measured."""
    target, whole, apart_ms = found.target, found.whole, _apart_ms(found)
    if target is None:
        return ["MACs are of one sample. Nothing was measured."]
    lines = [
        f"MACs are of one sample. Times are medians of a batch of {found.batch_size}, {target.precision} in "
        f"{target.runtime} on {target.threads} thread{'s' if target.threads > 1 else ''}: each layer by itself, "
        "the model as a whole."
    ]
    if apart_ms is None and whole.layers_ms is not None:
        lines.append("Shares of the time are of all layers together.")
    elif apart_ms is not None and apart_ms >= 0:
        lines.append(f"Not in layers, {apart_ms:.3f} ms: {NOT_IN_LAYERS}.")
    elif apart_ms is not None:
        lines.append(
            f"The layers by themselves take {-apart_ms:.3f} ms more than the whole model, in which they share "
            f"caches and no profiler looks on. So what else takes time there is not known: {NOT_IN_LAYERS}."
        )
    return [*lines, *found.notes]


def _apart_ms(found: Inspection) -> float | None:
    """What the whole model takes beyond its layers."""
    whole_ms, layers_ms = found.whole.latency_ms, found.whole.layers_ms
    return None if whole_ms is None or layers_ms is None else whole_ms - layers_ms


def _left_whole(found: Inspection) -> list[str]:
    """The layers whose output channels stay, by reason, with the MACs that are theirs."""
    macs = {layer.layer: layer.macs for layer in found.layers}
    reasons: dict[str, list[str]] = {}
    for left in found.unpruned:
        reasons.setdefault(left.reason, []).append(left.layer)
    lines = [
        f"Left whole: the output channels of {len(found.unpruned)} layer{'s' * (len(found.unpruned) != 1)}"
    ]
    for reason, layers in reasons.items():
        more = f" and {len(layers) - 1} more" if len(layers) > 1 else ""
        part = share(sum(macs.get(layer, 0.0) for layer in layers), found.whole.macs)
        lines.append(f"  {layers[0] or 'the model'}{more} ({part} % of the MACs): {reason}")
    return lines


def _lines(lines: Sequence[str]) -> str:
    return "\n".join(
        textwrap.fill(
            clean(line), WIDTH, subsequent_indent="    " * line.startswith(" "), break_on_hyphens=False
        )
        for line in lines
    )
