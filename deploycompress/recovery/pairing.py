"""Which layers of two networks belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deploycompress.config.wording import listed, nearest
from deploycompress.errors import ConfigError
from deploycompress.recovery.layers import Layers, Pair

FEW_SIZES = 3  # with fewer sizes than this the blocks of a network form no stages, and some of them are taken
SPREAD = 4  # of such blocks


def pairs_by_path(student: Layers, teacher: Layers, positions: bool = False) -> tuple[Pair, ...]:
    """The ends of stages: of the layers with one path and one size in both networks the last of every size.

    Of these the outermost, and none from inside a block; widths may differ. Where the blocks form no stages, as in a
    transformer, some of them are taken as well, evenly spread (as Sun et al., "Patient Knowledge Distillation for BERT
    Model Compression", 2019, skip layers). ``positions``: only layers with more than one. Raises ConfigError where
    there is none.
    """
    common = [
        path
        for path, layer in student.items()
        if path in teacher and layer.fits(teacher[path])
        if not (layer.inside or teacher[path].inside) and (layer.positions > 1 or not positions)
    ]
    by_size: dict[tuple[int, ...], list[str]] = {}
    for path in common:
        by_size.setdefault(student[path].size, []).append(path)
    chosen = {max(reversed(paths), key=lambda path: -path.count(".")) for paths in by_size.values()}
    blocks = [path for path in common if student[path].block]
    if len({student[path].size for path in blocks}) < FEW_SIZES:
        chosen |= set(_spread(blocks))
    if not chosen:
        raise ConfigError(
            "no layer of the student has the path and the size of one of the teacher's: name pairs, as `layers: "
            f"{{student layer: teacher layer}}`; the student has {_examples(student)}, the teacher {_examples(teacher)}"
        )
    return tuple(Pair(path, path) for path in common if path in chosen)


def named_pairs(names: Mapping[str, str], student: Layers, teacher: Layers) -> tuple[Pair, ...]:
    """Student path -> teacher path, as the user names them. Raises ConfigError for one that is not there or fits."""
    for own, other in names.items():
        for whose, path, layers in (("student", own, student), ("teacher", other, teacher)):
            if path not in layers:
                close = nearest(path, layers)
                question = f"did you mean {close!r}? It" if close else "it"
                raise ConfigError(
                    f"layers: the {whose} has no layer {path!r} that runs once a forward pass and gives out a tensor "
                    f"[batch, width, ...]; {question} has {_examples(layers)}"
                )
        if not student[own].fits(teacher[other]):
            raise ConfigError(
                f"layers: {own} of the student gives out {list(student[own].shape)} and {other} of the teacher "
                f"{list(teacher[other].shape)}; expected sizes that differ in the width at most"
            )
    return tuple(Pair(own, other) for own, other in names.items())


def _spread(paths: Sequence[str]) -> list[str]:
    count = min(SPREAD, len(paths))
    return [paths[(i + 1) * len(paths) // count - 1] for i in range(count)]


def _examples(layers: Layers) -> str:
    return listed(f"{path} {list(layer.shape)}" for path, layer in layers.items()) or "none"
