"""Images and their masks, which say the class of every pixel, in two folders."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field, model_validator

from deploycompress.config.wording import listed
from deploycompress.contracts import Split
from deploycompress.data.datasets.image_folder import SUFFIXES, decoded
from deploycompress.data.images import in_eight_bits, require_pillow
from deploycompress.data.labelled import SYNONYMS
from deploycompress.data.samples import Indices
from deploycompress.data.tree import Tree, open_tree
from deploycompress.data.windows import WindowConfig, drawn, read_all
from deploycompress.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

VOID = 255  # the index that the segmentation task leaves out unless it is told another
LOOKED_AT = 16  # masks that are read before training, to see that there is something to learn
EXPECTED = (
    "images/NAME.jpg with masks/NAME.png, the same below train/, val/ and test/ where there are such, or these below "
    "images/ and masks/"
)
Value = Annotated[int, Field(ge=0, le=65535)]


class ImageMask:
    """``images/NAME.*`` with ``masks/NAME.*``; a folder train, val or test above or below these says the split.

    A mask has one channel: class indices, as in PNG files with a palette or in grey. Index 255 is not judged.
    """

    class Config(WindowConfig):
        images: str = Field("images", min_length=1, description="The folder of the images")
        masks: str = Field("masks", min_length=1, description="The folder of the masks")
        mask_ending: str = Field(
            "", description="What a mask's name has more: _mask for a.jpg and a_mask.png"
        )
        values: tuple[Value, ...] | None = Field(
            None,
            description="The masks' values of class 0, 1 and so on: [0, 255] for black and white; null: the values "
            "are the classes, and 255 is not judged",
        )
        void: tuple[Value, ...] = Field((), description="Besides values: those of pixels that are not judged")

        @model_validator(mode="after")
        def _values_differ(self) -> ImageMask.Config:
            if self.images == self.masks:
                raise ValueError(f"images and masks are both {self.images!r}; expected two folders")
            if self.void and self.values is None:
                raise ValueError("void without values; expected values to say which value is which class")
            named = (*(self.values or ()), *self.void)
            if len(set(named)) < len(named) or (
                self.values is not None and not 2 <= len(self.values) <= VOID
            ):
                raise ValueError(
                    f"values are {self.values} and void {self.void}; expected 2 to {VOID} values, each one once"
                )
            return self

    def __init__(self, config: ImageMask.Config) -> None:
        self.config = config

    def files(self) -> tuple[Path, ...]:
        """Every file below the root, or the archive. Raises ConfigError when there is none."""
        return self._tree().files()

    def splits(self) -> Mapping[Split, Masked]:
        require_pillow("image_mask")
        tree = self._tree()
        found = {
            split: Masked(tree, pairs, self.config, changed=split == "train")
            for split, pairs in _pairs(tree, self.config).items()
        }
        if "train" in found:
            found["train"].require_classes()
        return found

    def _tree(self) -> Tree:
        return open_tree(self.config.root, "image_mask", EXPECTED)


Pairs = Sequence[tuple[str, str]]  # names in the tree: image, mask


@dataclass(frozen=True)
class Masked:
    """The pairs of one split, decoded when they are asked for."""

    tree: Tree
    pairs: Pairs
    config: ImageMask.Config
    changed: bool

    def __len__(self) -> int:
        return len(self.pairs)

    def batch(self, indices: Indices, rng: np.random.Generator | None) -> tuple[Tensor, Tensor]:
        """Images [batch, channels, height, width], class indices [batch, height, width] int64."""
        import torch

        changing = rng if self.changed else None
        images, masks = read_all(self._sample, indices.tolist(), changing, self.config)
        return images, torch.from_numpy(np.stack(masks))

    def _sample(self, index: int, rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray]:
        from PIL import Image as pillow

        name, mask_name = self.pairs[index]
        image, mask = decoded(self.tree, name), self._mask(mask_name)
        if mask.shape != (image.height, image.width):
            raise ConfigError(
                f"{self.tree.place(mask_name)} is {mask.shape[1]}x{mask.shape[0]} and its image {name} "
                f"{image.width}x{image.height}; expected the same size"
            )
        window = drawn(image.size, self.config.augment, rng)
        pixels = window.cut(in_eight_bits(image).convert(self.config.mode), self.config.size)
        indices = window.cut(pillow.fromarray(mask), self.config.size, nearest=True)
        return pixels, indices.astype(np.int64)

    def _mask(self, name: str) -> np.ndarray:
        """[height, width] uint8 class indices. Raises ConfigError naming the file."""
        image = decoded(self.tree, name)
        if len(image.getbands()) != 1 or image.mode == "F":
            raise ConfigError(
                f"{self.tree.place(name)} is an image of mode {image.mode}; expected one channel of class indices, as "
                "in a PNG with a palette or in grey (colours cannot be told apart from classes)"
            )
        mask = np.asarray(image).astype(np.int64)
        values = self.config.values
        table = np.full(65536, -1, np.int64)
        if values is None:
            table[: VOID + 1] = np.arange(VOID + 1)
        else:
            table[list(values)] = np.arange(len(values))
            table[list(self.config.void)] = VOID
        inside = np.where((mask >= 0) & (mask < len(table)), mask, 0)
        found = np.where(inside == mask, table[inside], -1)
        if (found < 0).any():
            known = f"0 to {VOID}" if values is None else listed(map(str, [*values, *self.config.void]))
            raise ConfigError(
                f"{self.tree.place(name)} has the value {mask[found < 0][0]} in {int((found < 0).sum())} pixels; "
                f"expected {known}: repair it, or name the value in data.values or data.void"
            )
        return found.astype(np.uint8)

    def require_classes(self) -> None:
        """Raises ConfigError where the first masks have one class alone: black and white ones read as indices."""
        found = {int(v) for _, name in self.pairs[:LOOKED_AT] for v in np.unique(self._mask(name))}
        if len(found - {VOID}) < 2:
            raise ConfigError(
                f"data source image_mask: the first {min(len(self), LOOKED_AT)} masks from "
                f"{self.tree.place(self.pairs[0][1])} on have the indices {listed(map(str, sorted(found)))}, where {VOID} is not "
                "judged; expected at least two classes: for black and white masks set data.values: [0, 255]"
            )


def _pairs(tree: Tree, config: ImageMask.Config) -> dict[Split, Pairs]:
    """Image and mask of the same name, by split. Raises ConfigError naming one that is alone."""
    where = f"data source image_mask, data.root {tree.root}"
    images, masks = (_by_key(tree, folder, where) for folder in (config.images, config.masks))
    if not images:
        raise ConfigError(f"{where}: no image in a folder {config.images!r}; expected {EXPECTED}")
    wanted = {key: key.with_name(key.name + config.mask_ending) for key in images}
    if alone := [key for key, mask in wanted.items() if mask not in masks]:
        raise ConfigError(
            f"{where}: {images[alone[0]]} has no mask ({len(alone)} such images); expected "
            f"{wanted[alone[0]].name}.png in {config.masks!r}: add it, or set data.masks or data.mask_ending"
        )
    known = set(wanted.values())
    if extra := [name for key, name in masks.items() if key not in known]:
        raise ConfigError(
            f"{where}: {extra[0]} has no image ({len(extra)} such masks); expected one of the same name in "
            f"{config.images!r}: add it, or remove the mask"
        )
    found: dict[Split, list[tuple[str, str]]] = defaultdict(list)
    for key, mask in wanted.items():
        said = [SYNONYMS[part.lower()] for part in key.parent.parts if part.lower() in SYNONYMS]
        found[said[0] if said else "train"].append((images[key], masks[mask]))
    return dict(found)


def _by_key(tree: Tree, folder: str, where: str) -> dict[PurePosixPath, str]:
    """What two files of a pair have in common -> the name of the file below ``folder``."""
    found: dict[PurePosixPath, str] = {}
    for name in tree.names:
        path = PurePosixPath(name)
        if folder not in path.parent.parts or path.suffix.lower() not in SUFFIXES:
            continue
        at = path.parts.index(folder)
        key = PurePosixPath(*path.parts[:at], *path.parts[at + 1 :]).with_suffix("")
        if key in found:
            raise ConfigError(
                f"{where}: {found[key]} and {name} have one name; expected one file for each sample"
            )
        found[key] = name
    return found
