"""Images in a folder for each class, as files or in an archive."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from deploycompress.data.images import ImageConfig, Pictures, cores, require_pillow
from deploycompress.data.labelled import Files, FolderConfig, labelled
from deploycompress.data.tree import Tree, open_tree
from deploycompress.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
EXPECTED = "train/CLASS/IMAGE, with val/ and test/ where there are any, or CLASS/IMAGE alone"


class ImageFolder:
    """``train/CLASS/*.jpg`` and so on; classes are numbered in the order of their names, as torchvision does."""

    class Config(ImageConfig, FolderConfig):
        pass

    def __init__(self, config: ImageFolder.Config) -> None:
        self.config = config

    def files(self) -> tuple[Path, ...]:
        """Every file below the root, or the archive. Raises ConfigError when there is none."""
        return self._tree().files()

    def splits(self) -> Mapping[str, Pictures]:
        require_pillow("image_folder")
        tree = self._tree()
        found = labelled(tree, SUFFIXES, self.config)
        return {split: self._pictures(tree, files, split) for split, files in found.items()}

    def _tree(self) -> Tree:
        return open_tree(self.config.root, "image_folder", EXPECTED)

    def _pictures(self, tree: Tree, files: Files, split: str) -> Pictures:
        return Pictures(
            lambda index: decoded(tree, files.names[index]),
            files.labels,
            len(files.names),
            self.config,
            changed=split == "train",
            classes=files.classes,
            threads=cores(),
        )


def decoded(tree: Tree, name: str) -> Image:
    """Raises ConfigError naming a file that is no whole image."""
    from PIL import Image as pillow

    try:
        image = pillow.open(io.BytesIO(tree.read(name)))
        image.load()  # a cut file is found here
    except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
        raise ConfigError(
            f"{tree.place(name)} cannot be decoded as an image: {error}; copy it again, or remove it"
        ) from error
    return image
