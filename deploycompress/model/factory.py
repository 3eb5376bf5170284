"""From a build reference (``model.build``) to the function that makes the model."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from deploycompress.config import references
from deploycompress.config.wording import unknown
from deploycompress.errors import ConfigError, EnvironmentMissing
from deploycompress.model.code import INSTALLED

# Their auxiliary classifiers only serve training from scratch; a shipped model has none. Their default
# initialisation warns that its default will change, and weights follow anyway.
AUXILIARY = {"googlenet", "inception_v3"}
WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # torch.load's own, whatever its caller asks for


@dataclass(frozen=True)
class Factory:
    """What makes the model: ``module:function``, ``path/file.py:function``, ``torchvision:NAME`` or ``timm:NAME``."""

    reference: str
    make: Callable[[], Any]
    package: str  # the top-level package it comes from

    def __call__(self) -> nn.Module:
        """A new untrained model. Raises ConfigError with the factory's reason."""
        try:
            made = self.make()
        except Exception as error:
            raise ConfigError(
                f"model.build: {self.reference} failed: {type(error).__name__}: {_first_line(error)}; "
                "check model.args"
            ) from error
        if not isinstance(made, nn.Module):
            raise ConfigError(
                f"model.build: {self.reference} gave back {type(made).__name__}; expected a torch.nn.Module"
            )
        return made


def open_factory(reference: str, args: Mapping[str, Any], search_path: Sequence[Path] = ()) -> Factory:
    """Import what ``reference`` names. Raises ConfigError, or EnvironmentMissing for a missing library."""
    library, _, name = reference.partition(":")
    if library == "torchvision":
        return Factory(reference, _torchvision(name, args), library)
    if library == "timm":
        return Factory(reference, _timm(name, args), library)
    function = references.load(reference, search_path)
    if not callable(function):
        raise ConfigError(
            f"model.build: {reference} is a {type(function).__name__}; expected a function or class"
        )
    return Factory(reference, partial(function, **args), str(function.__module__).partition(".")[0])


def installed_version(package: str) -> str | None:
    """``distribution==version`` of a top-level package; None for code that is not installed."""
    module = sys.modules.get(package)
    file = getattr(module, "__file__", None)
    if not file or not INSTALLED & set(Path(file).parts):
        return None
    for distribution in packages_distributions().get(package, ()):
        try:
            return f"{distribution}=={version(distribution)}"
        except PackageNotFoundError:
            continue
    return None


def _torchvision(name: str, args: Mapping[str, Any]) -> Callable[[], Any]:
    models = _library("torchvision.models")
    if name not in models.list_models():
        raise ConfigError(f"model.build: {unknown('torchvision model', name, models.list_models())}")
    builder = models.get_model_builder(name)
    given: dict[str, Any] = {"weights": None}
    if "weights_backbone" in signature(builder).parameters:
        given["weights_backbone"] = None  # would be downloaded
    if name in AUXILIARY:
        given |= {"aux_logits": False, "init_weights": True}
    return partial(_without_pickles, builder, **(given | dict(args)))


def _timm(name: str, args: Mapping[str, Any]) -> Callable[[], Any]:
    timm = _library("timm")
    if not timm.is_model(name):  # this also refuses hf-hub: names, which would be downloaded
        raise ConfigError(f"model.build: {unknown('timm model', name, timm.list_models())}")
    return partial(_without_pickles, timm.create_model, name, **({"pretrained": False} | dict(args)))


def _without_pickles(make: Callable[..., Any], *given: Any, **args: Any) -> Any:
    """What ``make`` gives, and no pickle of what ``weights`` or ``checkpoint_path`` among the arguments name is run.

    torch.hub, by which torchvision downloads, asks for ``weights_only=False``.
    """
    before = os.environ.get(WEIGHTS_ONLY)
    os.environ[WEIGHTS_ONLY] = "1"
    try:
        return make(*given, **args)
    finally:
        if before is None:
            del os.environ[WEIGHTS_ONLY]
        else:
            os.environ[WEIGHTS_ONLY] = before


def _library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise EnvironmentMissing(
            f"model.build needs {package}, which does not import ({_first_line(error)}): "
            f"pip install 'deploycompress[{references.LIBRARIES[package]}]'"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
