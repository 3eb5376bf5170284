"""Boxes around objects, as Pascal VOC's XML writes them."""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree import ElementTree

import numpy as np

from deploycompress.data.tree import Tree
from deploycompress.errors import ConfigError

CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class Annotation:
    """What is marked in one image; ``file`` and ``image`` are names in the tree."""

    file: str
    image: str
    size: tuple[int, int] | None  # width, height; None where the file does not say
    boxes: np.ndarray  # [n, 4] float64, corners in the image's pixels
    labels: tuple[str, ...]  # class names


class _PlainTree(ElementTree.TreeBuilder):
    """Elements and text alone: a document type may define entities that grow without end."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ConfigError(f"it has a document type, {name!r}; expected elements alone")


def parsed(content: bytes, file: str, image: str, tree: Tree) -> Annotation:
    """Raises ConfigError naming the file, and the object in it that cannot be read."""
    place = tree.place(file)
    try:
        root = ElementTree.fromstring(content, ElementTree.XMLParser(target=_PlainTree()))
    except (ElementTree.ParseError, ConfigError, ValueError, LookupError) as error:
        raise ConfigError(f"{place} cannot be read as XML: {error}; copy it again, or remove it") from error
    objects = root.findall("object")
    boxes = [_corners(element, f"{place}, object {number}") for number, element in enumerate(objects, 1)]
    labels = [(element.findtext("name") or "").strip() for element in objects]
    if "" in labels:
        raise ConfigError(f"{place}, object {labels.index('') + 1}: no <name>; expected the name of a class")
    return Annotation(file, image, _size(root), np.array(boxes, np.float64).reshape(-1, 4), tuple(labels))


def whole_boxes(boxes: np.ndarray, size: tuple[int, int] | None) -> tuple[np.ndarray, np.ndarray]:
    """(boxes cut to the image, which of those given they are): those that keep an area.

    ``boxes``: [n, 4]; ``size``: width and height of the image, None: unknown.
    """
    limit = np.array([*size, *size]) if size is not None else np.inf
    inside = np.clip(boxes, 0, limit)
    whole = np.flatnonzero((inside[:, 2:] > inside[:, :2]).all(1))
    return inside[whole], whole


def _corners(element: ElementTree.Element, where: str) -> list[float]:
    texts = {name: element.findtext(f"bndbox/{name}") for name in CORNERS}
    try:
        corners = [float(texts[name] or "") for name in CORNERS]
    except ValueError as error:
        raise ConfigError(f"{where}: the box is {_told(texts)}; expected four numbers: repair it") from error
    if not np.isfinite(corners).all():
        raise ConfigError(f"{where}: the box is {_told(texts)}; expected four finite numbers: repair it")
    return corners


def _told(texts: dict[str, str | None]) -> str:
    return ", ".join(f"{name} {'missing' if text is None else repr(text)}" for name, text in texts.items())


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    """Width and height; some tools write none, or 0."""
    texts = [root.findtext(f"size/{name}") or "" for name in ("width", "height")]
    if not all(text.strip().isdecimal() and int(text) > 0 for text in texts):
        return None
    return int(texts[0]), int(texts[1])
