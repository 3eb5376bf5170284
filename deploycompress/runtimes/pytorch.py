"""PyTorch: runs a checkpoint's network as it is, or compiled, on one device with a fixed number of threads.

It travels to devices inside the runner: the standard library, numpy and torch, Python 3.8 syntax. A checkpoint is a
description of widths and not a program, so the function that puts the network together is named in the options, and
with it all that it needs has to be installed where the job runs.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import time
from pathlib import Path
from typing import Any, Callable, ClassVar, Dict, Iterator, Mapping

import numpy as np

TORCH_TYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
# For a processor weights are laid out anew when they are known to stay; for CUDA one graph is launched for all kernels.
TORCH_COMPILED: Dict[str, Dict[str, Any]] = {
    "cpu": {"options": {"freezing": True}},
    "cuda": {"mode": "reduce-overhead"},
}


class PyTorch:
    """Options: ``threads`` (1), ``provider`` ("cpu", "cuda", "cuda:1"), ``computes_in`` ("fp32"; "fp16", "bf16"),
    ``compiled`` (false: eager), and ``network``.

    That is what ``contracts.Model.recipe`` gives: the function under ``loader`` ("module:function") is given the
    checkpoint's folder and the rest, and gives back the network, its inputs by name (type and shape), and how it is
    called on named tensors.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"checkpoint"})
    libraries: ClassVar[tuple[str, ...]] = ("torch", "numpy")

    def missing(self) -> str | None:
        if importlib.util.find_spec("torch") is None:
            return "PyTorch is not installed; install it with: pip install torch"
        return None

    @contextlib.contextmanager
    def open(self, path: Path, options: Mapping[str, Any]) -> Iterator[TorchSession]:
        """Raises RuntimeError when the device is not there or the network cannot be put together."""
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(int(options.get("threads", 1)))
        try:
            yield TorchSession(path, options)
        finally:
            torch.set_num_threads(before)

    def profile(
        self, path: Path, options: Mapping[str, Any], feed: Mapping[str, np.ndarray], calls: int
    ) -> dict[str, dict[str, Any]]:
        """Layer without layers inside it, by its path -> what it is and takes.

        ``op``: its class; ``provider``: the device; ``precision`` of its output; ``ns``: nanoseconds of each call.
        What is computed between layers, additions for example, is in no row. Raises NotImplementedError for a compiled
        network, and RuntimeError as ``open`` does.
        """
        if options.get("compiled", False):
            raise NotImplementedError("a compiled network has no layers of its own")
        with self.open(path, options) as session:
            found = session.watch()
            call = session.bind(feed)
            for _ in range(calls):
                call()
                session.note()
        return {path: row for path, row in found.items() if row["ns"]}


class TorchSession:
    """A network on its device, in its precision."""

    def __init__(self, path: Path, options: Mapping[str, Any]) -> None:
        import torch

        self._torch = torch
        self._device = _torch_device(str(options.get("provider", "cpu")))
        self._type = getattr(torch, TORCH_TYPES[options.get("computes_in", "fp32")])
        self._network, self._inputs, self._run = _torch_network(path, options["network"])
        self._network = self._network.eval().to(self._device, self._type)
        self._called = self._network
        self._compiled = bool(options.get("compiled", False))
        if self._compiled:
            self._called = torch.compile(self._network, **TORCH_COMPILED[self._device.type])
        self._shapes: set[tuple[Any, ...]] = set()
        self._feed: dict[str, Any] = {}
        self._outputs: dict[str, Any] = {}
        self._rows: dict[str, dict[str, Any]] = {}
        self._spent: dict[str, list[int]] = {}  # of each layer, in the call that is on its way

    @property
    def inputs(self) -> Mapping[str, Any]:
        """Name -> (element type such as "float32", shape with names for dynamic dimensions)."""
        return dict(self._inputs)

    def bind(self, feed: Mapping[str, np.ndarray]) -> Callable[[], None]:
        """Inputs in host memory; the call copies them to the device, and what comes out back to the host.

        A compiled network is compiled here, where the shapes are new. Raises RuntimeError when that fails.
        """
        self._feed = {name: self._torch.from_numpy(np.ascontiguousarray(feed[name])) for name in self._inputs}
        if self._device.type == "cuda":
            self._feed = {name: tensor.pin_memory() for name, tensor in self._feed.items()}
        shapes = tuple(tuple(tensor.shape) for tensor in self._feed.values())
        if self._compiled and shapes not in self._shapes:
            try:
                self._call()
            except Exception as error:  # one class for each part of the compiler
                reason = (str(error).strip().splitlines() or ["no message"])[0]
                raise RuntimeError(
                    f"torch.compile does not compile it: {type(error).__name__}: {reason}"
                ) from error
            self._shapes.add(shapes)
        return self._call

    def _call(self) -> None:
        with self._torch.inference_mode():
            given = {name: self._placed(tensor) for name, tensor in self._feed.items()}
            outputs = self._run(self._called, given)
            self._outputs = {name: self._returned(tensor) for name, tensor in outputs.items()}

    def _placed(self, tensor: Any) -> Any:
        wanted = self._type if tensor.is_floating_point() else tensor.dtype
        return tensor.to(self._device, wanted, non_blocking=True)

    def _returned(self, tensor: Any) -> Any:
        wanted = self._torch.float32 if tensor.is_floating_point() else tensor.dtype
        return tensor.to("cpu", wanted)  # waits for the device

    def fetch(self) -> Mapping[str, np.ndarray]:
        """The outputs of the last call, by name; copies. Floating-point ones are in float32."""
        return {name: np.array(tensor.numpy()) for name, tensor in self._outputs.items()}

    def watch(self) -> dict[str, dict[str, Any]]:
        """A row for each layer, which ``note`` fills in after every call from now on."""
        found: dict[str, dict[str, Any]] = self._rows
        names = {dtype: name for name, dtype in TORCH_TYPES.items()}
        for path, layer in self._network.named_modules():
            if next(layer.children(), None) is None:
                row = {"op": type(layer).__name__, "provider": self._device.type, "role": "", "precision": ""}
                found[path or row["op"]] = {**row, "ns": []}
                self._time(layer, path or row["op"], names)
        return found

    def note(self) -> None:
        """Sums up what each layer took in the last call, in which it may have been used several times."""
        for path, spent in self._spent.items():
            self._rows[path]["ns"].append(sum(spent))
        self._spent.clear()

    def _time(self, layer: Any, path: str, names: Mapping[str, str]) -> None:
        row = self._rows[path]
        began: list[int] = []

        def before(*_: Any) -> None:
            self._wait()
            began.append(time.perf_counter_ns())

        def after(_layer: Any, _inputs: Any, output: Any) -> None:
            self._wait()
            self._spent.setdefault(path, []).append(time.perf_counter_ns() - began.pop())
            told = str(getattr(output, "dtype", "")).replace("torch.", "")
            row["precision"] = names.get(told, told)

        layer.register_forward_pre_hook(before)
        layer.register_forward_hook(after)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            self._torch.cuda.synchronize(self._device)


def _torch_device(provider: str) -> Any:
    import torch

    kind = provider.partition(":")[0]
    if kind not in TORCH_COMPILED:
        raise RuntimeError(f"PyTorch runs on {' or '.join(TORCH_COMPILED)} here, not on {provider}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"PyTorch {torch.__version__} finds no CUDA device here")
    return torch.device(provider)


def _torch_network(path: Path, network: Mapping[str, Any]) -> Any:
    """The network, its inputs and its call. Raises RuntimeError with the reason of whoever makes it."""
    # In front, as in the process that told of them: a module of the user's may have the name of an installed one.
    sys.path[:0] = [folder for folder in network["search_path"] if folder not in sys.path]
    module, _, function = network["loader"].partition(":")
    try:
        load = getattr(importlib.import_module(module), function)
        return load(path if path.is_dir() else path.parent, network)
    except Exception as error:
        raise RuntimeError(
            f"the network is not put together here: {type(error).__name__}: {error}"
        ) from error
