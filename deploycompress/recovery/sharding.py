"""Where the layers of a teacher lie that does not fit one device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import get_max_memory
from torch import nn

from deploycompress.errors import EnvironmentMissing
from deploycompress.recovery.layers import blocks

FREE_SHARE = 0.5  # of what is free, where no limit is given: the student trains in the rest
Place = int | str  # an accelerator's number, cpu, mps or disk


def shard(module: nn.Module, memory: Mapping[str, float] | None, folder: Path) -> dict[Place, int]:
    """Spread ``module`` over devices, in place, by Accelerate; gives back how many bytes of it lie where.

    ``memory``: bytes by device, an accelerator by its number, ``cpu`` or ``mps``; None: half of what is free on each.
    Accelerators are filled first, then the host's memory; what is left is written into ``folder``. Layers that are not
    on an accelerator are brought to the first one, where there is one, each time they run. Outputs are on the inputs'
    device. It is for answers only: most of its parameters are on no device while it does not run, and have no gradient.

    A block of which the network has several stays in one place, since what it adds to its input would else be on
    another device. Raises EnvironmentMissing for an accelerator that is not there.
    """
    limits = _free() if memory is None else {_place(name): int(most) for name, most in memory.items()}
    _require(limits)
    whole = sorted({type(module.get_submodule(path)).__name__ for path in blocks(module)})
    module.eval().requires_grad_(False)
    # Cleaned, a map of a network that lies in one place names it "", under which dispatch_model finds no weight.
    places: dict[str, Place] = infer_auto_device_map(
        module, limits, no_split_module_classes=whole, clean_result=False
    )
    found = _bytes(module, places)
    # A block is loaded as a whole: it may use a layer's weight without calling the layer (multi-head attention does).
    loaded = [*whole, nn.MultiheadAttention.__name__]
    dispatch_model(
        module, places, _main(limits), offload_dir=folder, preload_module_classes=loaded, force_hooks=True
    )
    return found


def _free() -> dict[Place, int]:
    return {place: int(FREE_SHARE * free) for place, free in get_max_memory().items()}


def _place(name: str) -> Place:
    return int(name) if name.isdigit() else name


def _require(limits: Mapping[Place, int]) -> None:
    count = torch.accelerator.device_count()
    for place in limits:
        if place != "cpu" and (not isinstance(place, int) or place >= count):
            if place == "mps" and torch.backends.mps.is_available():
                continue
            raise EnvironmentMissing(
                f"distill.teacher_memory names the accelerator {place}, and this machine has {count}; expected numbers "
                "below that, or cpu: change it, or set auto"
            )


def _main(limits: Mapping[Place, int]) -> Place:
    """Where layers run that lie in the host's memory or in a file."""
    numbers = [place for place in limits if isinstance(place, int)]
    return min(numbers) if numbers else "mps" if "mps" in limits else "cpu"


def _bytes(module: nn.Module, places: Mapping[str, Place]) -> dict[Place, int]:
    found: dict[Place, int] = {}
    for name, tensor in module.state_dict().items():
        place = next(at for path, at in places.items() if not path or f"{name}.".startswith(f"{path}."))
        found[place] = found.get(place, 0) + tensor.numel() * tensor.element_size()
    return found
