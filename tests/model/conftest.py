"""Models from small files of user code, as a pipeline.yaml names them."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploycompress.config.schema import InputSpec, ModelConfig

IMAGE = {"image": {"shape": ["batch", 3, 8, 8]}}


@pytest.fixture
def user_model(tmp_path: Path) -> Callable[..., Any]:
    """(code, inputs, args) -> the SourceModel of the ``build`` in that code; the file can be edited."""

    def make(code: str, inputs: Any = None, seed: int = 0, **args: Any) -> Any:
        from deploycompress.model.source import SourceModel

        path = tmp_path / "user_model.py"
        sys.modules.pop("deploycompress_user_user_model", None)  # as in a new process
        path.write_text("import torch\nfrom torch import nn\n" + textwrap.dedent(code))
        specs = {name: InputSpec.model_validate(spec) for name, spec in (inputs or IMAGE).items()}
        return SourceModel(ModelConfig(build=f"{path}:build", args=args, weights=None, inputs=specs), seed)

    return make
