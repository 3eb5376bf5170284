"""OpenVINO: opens an ONNX file or OpenVINO's own on one device, in a fixed precision and with a fixed number of threads.

It travels to devices inside the runner: the standard library, numpy and openvino, Python 3.8 syntax.
The caller has put an ONNX file through ``onnx_file.check`` before.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import sys
from pathlib import Path
from typing import Any, Callable, ClassVar, Iterator, Mapping

import numpy as np

# OpenVINO reports its import to its makers, from a process that it forks: nobody asked for that, it would run beside what
# is measured, and it stays for ever where it is forked while another thread reads.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

# What floating-point operators compute in. Left to itself, OpenVINO takes bfloat16 where the processor has it.
OV_PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
OV_HEAD_BYTES = 64  # in which a model.xml has begun


class OpenVino:
    """Options: ``threads`` (1), ``provider`` ("cpu", "gpu", "npu"), ``computes_in`` ("fp32"; "bf16", "fp16").

    And ``static_shapes`` (false): the model is compiled for the shapes of the first feed, and again where others come:
    it plans better for shapes that it knows.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"onnx", "openvino"})
    libraries: ClassVar[tuple[str, ...]] = ("openvino", "numpy")

    def missing(self) -> str | None:
        if importlib.util.find_spec("openvino") is None:
            return "OpenVINO is not installed; install it with: pip install 'deploycompress[openvino]'"
        return None

    @contextlib.contextmanager
    def open(self, path: Path, options: Mapping[str, Any]) -> Iterator[OvSession]:
        """Raises RuntimeError when the device is not there or the file does not load."""
        yield OvSession(path, options)

    def profile(
        self, path: Path, options: Mapping[str, Any], feed: Mapping[str, np.ndarray], calls: int
    ) -> dict[str, dict[str, Any]]:
        """Operator, by the name that OpenVINO gives it -> what it is and takes, of those that run.

        ``op``: its type; ``provider``: the kernel; ``precision`` of its computation, as the kernel's name tells it;
        ``role``: "fallback" where that is the plain reference one, "reformat" where it only turns one layout or type
        into another; ``ns``: nanoseconds of each call. Raises RuntimeError as ``open`` does.
        """
        session = OvSession(path, options, {"PERF_COUNT": True})
        call = session.bind(feed)
        found: dict[str, dict[str, Any]] = {}
        for _ in range(calls):
            call()
            for told in session.request.profiling_info:
                if str(told.status).endswith("EXECUTED"):
                    kernel, _, precision = told.exec_type.rpartition("_")
                    operator = found.setdefault(
                        told.node_name,
                        {
                            "op": told.node_type,
                            "provider": kernel or told.exec_type,
                            "precision": _ov_precision(precision),
                            "role": _ov_role(told.node_type, told.exec_type),
                            "ns": [],
                        },
                    )
                    operator["ns"].append(int(1e9 * told.real_time.total_seconds()))
        return found


class OvSession:
    """A model that was read, compiled where its shapes are known, with one inference request."""

    def __init__(self, path: Path, options: Mapping[str, Any], more: Mapping[str, Any] | None = None) -> None:
        self._compile = _ov_compiler(path, options, more or {})
        self._shapes: dict[str, tuple[int, ...]] | None = None
        self.request: Any = None
        self._feed: dict[str, Any] = {}
        if options.get("static_shapes", False):
            self._model = _ov_read(path)
        else:
            self._model = self._compile({})
            self.request = self._model.create_infer_request()
        self._static = self.request is None

    @property
    def inputs(self) -> Mapping[str, Any]:
        """Name -> (element type such as "f32", shape with -1 for dynamic dimensions)."""
        return {
            _ov_name(i): (
                i.get_element_type().get_type_name(),
                tuple(d.get_length() if d.is_static else -1 for d in i.get_partial_shape()),
            )
            for i in self._model.inputs
        }

    def bind(self, feed: Mapping[str, np.ndarray]) -> Callable[[], None]:
        """Inputs in host memory, which OpenVINO reads in place; the call waits for the result."""
        import openvino

        arrays = {name: np.ascontiguousarray(feed[name]) for name in map(_ov_name, self._model.inputs)}
        shapes = {name: array.shape for name, array in arrays.items()}
        if self._static and shapes != self._shapes:
            self._model, self._shapes = self._compile(shapes), shapes
            self.request = self._model.create_infer_request()
        self._feed = {}
        for port in self._model.inputs:
            array = arrays[_ov_name(port)]
            tensor = openvino.Tensor(array, shared_memory=True)
            self._feed[_ov_name(port)] = (array, tensor)  # kept: not copied
            self.request.set_tensor(port, tensor)
        return self._call

    def _call(self) -> None:
        # In this thread: start_async and wait hand it to another one, which costs 0.1 ms on the machine it was tried on.
        self.request.infer(share_outputs=True)

    def fetch(self) -> Mapping[str, np.ndarray]:
        """The outputs of the last call, by name; copies."""
        return {_ov_name(o): np.array(self.request.get_tensor(o).data) for o in self._model.outputs}


def _ov_compiler(
    path: Path, options: Mapping[str, Any], more: Mapping[str, Any]
) -> Callable[[Mapping[str, Any]], Any]:
    """Compiles the file for the shapes that it is given by input; for any, where it is given none."""
    import openvino

    core = _ov_core()
    device = str(options.get("provider", "cpu")).upper()
    if device.partition(".")[0] not in core.available_devices:
        there = ", ".join(core.available_devices)
        raise RuntimeError(f"OpenVINO {openvino.__version__} has no device {device} here; it has {there}")
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": OV_PRECISIONS[options.get("computes_in", "fp32")],
        **more,
    }
    if device == "CPU":
        settings.update({"INFERENCE_NUM_THREADS": int(options.get("threads", 1)), "NUM_STREAMS": 1})

    def compiled(shapes: Mapping[str, Any]) -> Any:
        model = _ov_read(path)
        try:
            if shapes:
                model.reshape({name: [int(size) for size in sizes] for name, sizes in shapes.items()})
            return core.compile_model(model, device, settings)
        except Exception as error:  # RuntimeError with pages of C++ places, and others
            raise RuntimeError(f"OpenVINO does not load {path.name}: {_ov_reason(error)}") from error

    return compiled


@functools.lru_cache(maxsize=None)
def _ov_core() -> Any:
    """One for the life of the process.

    Each one's CPU plugin gives its thread a signal stack, and gives back the one that it found when it goes. With a
    second one that stack may be gone by then, and the next signal that Python handles ends the process by SIGSEGV
    (seen with 2026.4.1).
    """
    import openvino

    return openvino.Core()


def _ov_read(path: Path) -> Any:
    """Raises RuntimeError with OpenVINO's reason.

    It goes by a file's contents and not by its name, so an ONNX file called .xml would pass the safe reader by.
    """
    if path.suffix != ".onnx":
        with path.open("rb") as stream:
            head = stream.read(OV_HEAD_BYTES).lstrip(b"\xef\xbb\xbf \t\r\n")
        if not head.startswith((b"<?xml", b"<net")):
            raise RuntimeError(f"{path.name} is no OpenVINO model: it does not begin with <?xml or <net")
    try:
        return _ov_core().read_model(str(path))
    except Exception as error:  # as above
        raise RuntimeError(f"OpenVINO does not load {path.name}: {_ov_reason(error)}") from error


def _ov_reason(error: Exception) -> str:
    """The last line that says something; those above are places in OpenVINO's own source."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return " ".join((told or lines or [type(error).__name__])[-2:])[:500]


def _ov_name(port: Any) -> str:
    """The name that the file gives. It is the operator's: what is passed through unchanged may add others."""
    node = port.get_node()
    names = sorted(port.get_names())
    own = str(node.get_friendly_name()).split("/sink_port_")[0]  # of an output: y/sink_port_0
    if node.get_type_name() in ("Parameter", "Result") and own in names:
        return own
    return str(names[0] if names else node.get_friendly_name())


def _ov_role(op: str, kernel: str) -> str:
    if op in ("Reorder", "Convert"):
        return "reformat"
    return "fallback" if kernel.startswith("ref") else ""


def _ov_precision(told: str) -> str:
    return {"f32": "fp32", "f16": "fp16", "i8": "int8", "u8": "int8"}.get(told.lower(), told.lower())
