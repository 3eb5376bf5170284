"""From a trained PyTorch model to the fastest artefact that still meets its measured budget."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    from torch import nn

__version__ = "0.1.0"
__all__ = ["__version__", "load_pruned"]


def load_pruned(
    run_dir: str | os.PathLike[str], step: str | None = None, *, trust_code: bool = False
) -> nn.Module:
    """The network of the last checkpoint in a run directory, for training code of your own.

    ::

        model = deploycompress.load_pruned("runs/mine", trust_code=True)
        model.train()  # it comes in evaluation mode, on the CPU, its parameters ready for any optimizer

    ``run_dir``: what ``run`` wrote, or one checkpoint folder in it (``runs/mine/02-prune/model``). ``step``: the id
    of a step (``"prune"``, ``"distill"``, ``"prune@2"``) instead of the last one that made a checkpoint.

    It is the model that ``model.build`` of the run's ``config.yaml`` makes, with the checkpoint's widths and
    weights. ``trust_code``: whether that may be code of anybody's own, which is right for a run of yours; a run
    directory of somebody else's may name any function there is. The folders in which the run found the code then join
    ``sys.path``, as they do in ``run``. Networks of torchvision, timm and our own examples need none. What comes of
    training it is kept with plain torch: ``torch.save(model.state_dict(), file)``, and later
    ``load_pruned(...).load_state_dict(torch.load(file, weights_only=True))`` on the same checkpoint, whose
    widths the tensors have.

    Raises ``errors.ConfigError`` where there is no such run, checkpoint or step, the model does not build, or code
    that builds it is not trusted;
    ``errors.StageFailed`` where a file is damaged, or the model's code has changed so that the network no longer
    gives what it gave; ``errors.EnvironmentMissing`` where a library that the model needs is not installed.
    """
    # By its name: so that this import stays quick, and no layer below depends on the engine through us.
    loading = importlib.import_module("deploycompress.engine.loading")
    module: nn.Module = loading.load_pruned(run_dir, step, trust_code=trust_code)
    return module
