"""Images with boxes in the folders of Pascal VOC, as files or in an archive."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from deploycompress.config.wording import listed
from deploycompress.contracts import Split
from deploycompress.data.boxes import Annotation, parsed, whole_boxes
from deploycompress.data.datasets.image_folder import SUFFIXES, decoded
from deploycompress.data.images import in_eight_bits, require_pillow
from deploycompress.data.samples import Indices
from deploycompress.data.tree import Tree, open_tree
from deploycompress.data.windows import WindowConfig, drawn, read_all
from deploycompress.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

ANNOTATIONS, IMAGES, LISTS = "Annotations", "JPEGImages", "ImageSets/Main"
LISTED: tuple[Split, ...] = ("train", "val", "test")
EXPECTED = (
    f"{ANNOTATIONS}/NAME.xml and {IMAGES}/NAME.jpg, with the names of each split in {LISTS}/train.txt, val.txt and "
    "test.txt where there are any"
)


class Voc:
    """``JPEGImages``, ``Annotations`` and ``ImageSets/Main``; boxes as corners in the pixels the network reads.

    The classes are numbered from 1, sorted by name or as ``classes`` says: 0 is the background, as torchvision's
    detectors count. Corners are read as they are written, and objects marked as difficult count like the others.
    """

    class Config(WindowConfig):
        classes: tuple[str, ...] | None = Field(
            None, min_length=1, description="Their names, numbered from 1; null: all that occur, sorted"
        )
        broken_boxes: Literal["refuse", "skip"] = Field(
            "refuse", description="Those without an area or outside the image"
        )

    def __init__(self, config: Voc.Config) -> None:
        self.config = config

    def files(self) -> tuple[Path, ...]:
        """Every file below the root, or the archive. Raises ConfigError when there is none."""
        return self._tree().files()

    def splits(self) -> Mapping[str, Boxed]:
        require_pillow("voc")
        tree = self._tree()
        folder = _folder(tree)
        images = _by_stem(tree, folder / IMAGES, SUFFIXES)
        marked = _by_stem(tree, folder / ANNOTATIONS, (".xml",))
        lists = _lists(tree, folder, marked)
        read = {
            name: self._annotation(tree, marked, images, name) for names in lists.values() for name in names
        }
        if self.config.broken_boxes == "refuse":
            _refuse_broken(tree, read.values())
        classes = self._classes(tree, read.values())
        return {
            split: Boxed(tree, tuple(read[name] for name in names), classes, self.config, split == "train")
            for split, names in lists.items()
        }

    def _tree(self) -> Tree:
        return open_tree(self.config.root, "voc", EXPECTED)

    def _annotation(
        self, tree: Tree, marked: Mapping[str, str], images: Mapping[str, str], name: str
    ) -> Annotation:
        if name not in images:
            raise ConfigError(
                f"{tree.place(marked[name])} has no image {name} in {IMAGES}: add it, or remove the annotation"
            )
        return parsed(tree.read(marked[name]), marked[name], images[name], tree)

    def _classes(self, tree: Tree, annotations: Iterable[Annotation]) -> tuple[str, ...]:
        found = {label: a for a in annotations for label in a.labels}
        if not found:
            raise ConfigError(
                f"data source voc, data.root {tree.root}: no annotation has an object; expected some"
            )
        classes = self.config.classes or tuple(sorted(found))
        if unknown := sorted(set(found) - set(classes)):
            raise ConfigError(
                f"{tree.place(found[unknown[0]].file)}: received the class {unknown[0]!r}; expected {listed(classes)}, "
                "as data.classes says: add it there, or repair the annotation"
            )
        return classes


@dataclass(frozen=True)
class Boxed:
    """The images of one split, decoded when they are asked for, with their boxes."""

    tree: Tree
    annotations: Sequence[Annotation]
    classes: tuple[str, ...]
    config: Voc.Config
    changed: bool

    def __len__(self) -> int:
        return len(self.annotations)

    def batch(
        self, indices: Indices, rng: np.random.Generator | None
    ) -> tuple[Tensor, list[dict[str, Tensor]]]:
        """Images [batch, channels, height, width]; ``boxes`` [n, 4] float32 and ``labels`` [n] int64 of each."""
        return read_all(self._sample, indices.tolist(), rng if self.changed else None, self.config)

    def _sample(self, index: int, rng: np.random.Generator | None) -> tuple[np.ndarray, dict[str, Tensor]]:
        import torch

        marked = self.annotations[index]
        image = decoded(self.tree, marked.image)
        if marked.size is not None and marked.size != image.size:
            raise ConfigError(
                f"{self.tree.place(marked.file)} is for an image of {marked.size[0]}x{marked.size[1]}, but "
                f"{marked.image} is {image.width}x{image.height}; expected the same size: the boxes would be wrong"
            )
        boxes, whole = whole_boxes(marked.boxes, image.size)
        if self.config.broken_boxes == "refuse" and len(whole) < len(marked.boxes):
            _refuse_broken(self.tree, [marked], image.size)
        window = drawn(image.size, self.config.augment, rng)
        found, kept = window.boxes(boxes, self.config.size)
        numbers = [self.classes.index(marked.labels[i]) + 1 for i in whole[kept]]
        return window.cut(in_eight_bits(image).convert(self.config.mode), self.config.size), {
            "boxes": torch.from_numpy(found.astype(np.float32)),
            "labels": torch.tensor(numbers, dtype=torch.int64),
        }


def _refuse_broken(
    tree: Tree, annotations: Iterable[Annotation], size: tuple[int, int] | None = None
) -> None:
    """Raises ConfigError naming boxes that no network can learn."""
    broken: list[str] = []
    for marked in annotations:
        _, whole = whole_boxes(marked.boxes, size or marked.size)
        for i in sorted(set(range(len(marked.boxes))) - set(whole.tolist())):
            corners = " ".join(f"{corner:g}" for corner in marked.boxes[i])
            broken.append(f"{marked.file}: {marked.labels[i]} at {corners}")
    if broken:
        raise ConfigError(
            f"data.root {tree.root}: {len(broken)} boxes have no area in their image: {listed(broken)}; expected "
            "corners xmin ymin xmax ymax with xmin < xmax and ymin < ymax: repair them, or set data.broken_boxes: skip"
        )


# ---------------------------------------------------------------- which file is what


def _folder(tree: Tree) -> PurePosixPath:
    """Where Annotations lies. Raises ConfigError unless there is one such folder."""
    found = [PurePosixPath(name).parent for name in tree.folders if PurePosixPath(name).name == ANNOTATIONS]
    if len(found) != 1:
        what = f"{len(found)} folders {ANNOTATIONS}" if found else f"no folder {ANNOTATIONS}"
        raise ConfigError(f"data.root {tree.root}: {what}; voc expects one set of {EXPECTED}")
    return found[0]


def _by_stem(tree: Tree, folder: PurePosixPath, suffixes: Sequence[str]) -> dict[str, str]:
    """Name without folder and suffix -> name in the tree."""
    inside = [PurePosixPath(name) for name in tree.names if PurePosixPath(name).parent == folder]
    return {path.stem: str(path) for path in inside if path.suffix.lower() in suffixes}


def _lists(tree: Tree, folder: PurePosixPath, marked: Mapping[str, str]) -> dict[Split, list[str]]:
    """The names of each split, all in train without lists. Raises ConfigError for one that is in two of them."""
    texts = _by_stem(tree, folder / LISTS, (".txt",))
    if "train" not in texts and "trainval" in texts:
        texts = {**texts, "train": texts["trainval"]}
    if not any(split in texts for split in LISTED):
        return {"train": sorted(marked)}
    found: dict[Split, list[str]] = {}
    seen: dict[str, Split] = {}
    for split in LISTED:
        if split not in texts:
            continue
        text = tree.read(texts[split]).decode("utf-8-sig", errors="replace")
        found[split] = [line.strip() for line in text.splitlines() if line.strip()]
        for name in found[split]:
            if name not in marked:
                raise ConfigError(
                    f"{tree.place(texts[split])} lists {name!r}, which has no {ANNOTATIONS}/{name}.xml: add it, or take "
                    "the line out"
                )
            if name in seen:
                raise ConfigError(
                    f"{tree.place(texts[split])} lists {name!r}, which is in {seen[name]} already; expected each image "
                    "once, in one split"
                )
            seen[name] = split
    return found
