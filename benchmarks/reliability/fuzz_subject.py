"""What every fuzzed kind of file has: good examples, how one is damaged, and the product's own reader of it."""

from __future__ import annotations

import json
import random
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from fuzz_mutation import changed_bytes, changed_data

from deploycompress.errors import DeployCompressError


class Subject(ABC):
    """``refuses``: what the reader may raise; anything else is a finding. Its files lie in ``folder``."""

    refuses: tuple[type[DeployCompressError] | type[ValueError], ...]

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def good(self) -> list[Any]:
        """The examples as they are, none of which is refused."""

    @abstractmethod
    def input(self, chance: random.Random) -> Any:
        """A damaged file, or several by name."""

    @abstractmethod
    def read(self, given: Any) -> None:
        """Give it to the product."""

    def json_text(self, document: Any, chance: random.Random) -> bytes:
        """A JSON document, damaged in its structure three times of four, else in its bytes."""
        if chance.random() < 0.75:
            return json.dumps(changed_data(document, chance, type(self).__name__)).encode()
        return changed_bytes(json.dumps(document).encode(), chance)
