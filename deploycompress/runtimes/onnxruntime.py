"""ONNX Runtime: opens an ONNX file with one provider and a fixed number of threads.

It travels to devices inside the runner: the standard library, numpy and onnxruntime, Python 3.8 syntax.
The caller has put the file through ``onnx_file.check`` before.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
from pathlib import Path
from typing import Any, Callable, ClassVar, Iterator, Mapping, Optional

import numpy as np

ORT_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
}
ORT_GRAPH_LEVELS = {
    "off": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
ORT_PRECISIONS = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16"}  # others by ONNX Runtime's name
ORT_REFORMATS = {
    "ReorderInput",
    "ReorderOutput",
    "QuantizeLinear",
    "DequantizeLinear",
    "Cast",
    "MemcpyToHost",
    "MemcpyFromHost",
}
ORT_KERNEL = "_kernel_time"  # the profile also has events around a kernel


class OnnxRuntime:
    """Options: ``threads`` (1), ``provider`` ("cpu"), ``spinning`` (true), ``graph_level`` ("all").

    Spinning keeps the threads awake between operators: the lowest latency, at the cost of whoever shares
    the cores.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"onnx", "engine"})
    engine_file: ClassVar[str] = "model.optimized.onnx"
    libraries: ClassVar[tuple[str, ...]] = ("onnxruntime", "numpy")

    def missing(self) -> str | None:
        if importlib.util.find_spec("onnxruntime") is None:
            return "onnxruntime is not installed; install it with: pip install onnxruntime"
        return None

    @contextlib.contextmanager
    def open(self, path: Path, options: Mapping[str, Any]) -> Iterator[OrtSession]:
        """Raises RuntimeError when the provider is not there or the file does not load."""
        yield OrtSession(self._session(path, options))

    def build(self, source: Path, path: Path, options: Mapping[str, Any]) -> dict[str, Any]:
        """Write ``source`` to ``path`` as ONNX Runtime has it after all of its optimisations for this machine.

        Weights are laid out for this processor and operators are fused, so that it loads sooner;
        elsewhere it may be slower or not run. Gives how it is to be run. Raises RuntimeError
        when ONNX Runtime does not load the file.
        """
        provider = options.get("provider", "cpu")
        self._session(source, {"provider": provider}, written=path)
        return {"provider": provider, "options": {"graph_level": "off"}}

    def profile(
        self, path: Path, options: Mapping[str, Any], feed: Mapping[str, np.ndarray], calls: int
    ) -> dict[str, dict[str, Any]]:
        """Operator, by the name it has after ONNX Runtime's optimisation -> what it is and takes.

        ``op``: its type; ``provider``; ``precision`` of its first output; ``role``: "fallback" where another provider
        took it, "reformat" where it only turns one layout or type into another; ``ns``: nanoseconds of each call,
        counted by ONNX Runtime in whole microseconds. Raises RuntimeError as ``open`` does.
        """
        session = self._session(path, options, profiled=True)
        wanted = {i.name: feed[i.name] for i in session.get_inputs()}  # a feed may have more
        for _ in range(calls):
            session.run(None, wanted)
        written = Path(session.end_profiling())
        events = json.loads(written.read_text(encoding="utf-8"))
        written.unlink()
        found: dict[str, dict[str, Any]] = {}
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith(ORT_KERNEL):
                told = event["args"]
                types = [of for output in told.get("output_type_shape", ())[:1] for of in output]
                operator = found.setdefault(
                    event["name"][: -len(ORT_KERNEL)],
                    {
                        "op": told.get("op_name", ""),
                        "provider": told.get("provider", ""),
                        "precision": ORT_PRECISIONS.get(types[0], types[0]) if types else "",
                        "role": _ort_role(told, _ort_provider(options)),
                        "ns": [],
                    },
                )
                operator["ns"].append(1000 * int(event["dur"]))
        return found

    def _session(
        self, path: Path, options: Mapping[str, Any], profiled: bool = False, written: Optional[Path] = None
    ) -> Any:
        import onnxruntime

        onnxruntime.set_default_logger_severity(4)
        provider = _ort_provider(options)
        available = onnxruntime.get_available_providers()
        if provider not in available:
            raise RuntimeError(
                f"onnxruntime {onnxruntime.__version__} has no {provider} here; it has {', '.join(available)}"
            )
        settings = _ort_options(onnxruntime, options)
        settings.enable_profiling = profiled
        if written is not None:
            settings.optimized_model_filepath = str(written)
        try:
            session = onnxruntime.InferenceSession(str(path), settings, providers=_ort_fallback(provider))
        except Exception as error:  # onnxruntime's own classes, one for each status code
            raise RuntimeError(f"ONNX Runtime does not load {path.name}: {error}") from error
        if session.get_providers()[0] != provider:
            # ONNX Runtime goes on with the CPU when a provider does not start.
            raise RuntimeError(
                f"{provider} did not start; ONNX Runtime fell back to {session.get_providers()[0]}"
            )
        return session


class OrtSession:
    """A loaded ONNX file."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._outputs = [output.name for output in session.get_outputs()]
        self._feed: dict[str, np.ndarray] = {}

    @property
    def inputs(self) -> Mapping[str, Any]:
        """Name -> (element type such as "tensor(float)", shape with names for dynamic dimensions)."""
        return {i.name: (i.type, tuple(i.shape)) for i in self._session.get_inputs()}

    def bind(self, feed: Mapping[str, np.ndarray]) -> Callable[[], None]:
        """Binds inputs and outputs in host memory; the call copies to and from the provider's device."""
        binding = self._binding
        binding.clear_binding_inputs()
        binding.clear_binding_outputs()
        self._feed = {name: np.ascontiguousarray(array) for name, array in feed.items()}  # kept: not copied
        for name, array in self._feed.items():
            binding.bind_cpu_input(name, array)
        for name in self._outputs:
            binding.bind_output(name, "cpu")
        return self._call

    def _call(self) -> None:
        self._session.run_with_iobinding(self._binding)

    def fetch(self) -> Mapping[str, np.ndarray]:
        """The outputs of the last call, by name; copies."""
        values = self._binding.copy_outputs_to_cpu()
        return {name: np.array(values[i]) for i, name in enumerate(self._outputs)}


def _ort_provider(options: Mapping[str, Any]) -> str:
    return ORT_PROVIDERS.get(options.get("provider", "cpu"), str(options.get("provider")))


def _ort_role(told: Mapping[str, Any], provider: str) -> str:
    if told.get("op_name") in ORT_REFORMATS:
        return "reformat"
    return "" if told.get("provider") in ("", None, provider) else "fallback"


def _ort_options(onnxruntime: Any, options: Mapping[str, Any]) -> Any:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = int(options.get("threads", 1))
    settings.inter_op_num_threads = 1
    settings.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    level = ORT_GRAPH_LEVELS[options.get("graph_level", "all")]
    settings.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    settings.log_severity_level = 4
    settings.add_session_config_entry(
        "session.intra_op.allow_spinning", "1" if options.get("spinning", True) else "0"
    )
    return settings


def _ort_fallback(provider: str) -> list[str]:
    """The provider, with the CPU behind it for operators that it does not have."""
    return [provider] if provider == "CPUExecutionProvider" else [provider, "CPUExecutionProvider"]
