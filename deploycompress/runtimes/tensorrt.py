"""TensorRT, one code path for 10.12 and later and for 11: builds an engine and runs it.

It travels to devices inside the runner: the standard library, numpy and tensorrt, Python 3.8 syntax. Device
memory is had from the driver's own library (libcuda), so nothing else has to be installed on a board.
An engine is executable code: open only those whose digest stands in a manifest of ours.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import importlib.util
import json
import os
from pathlib import Path
from typing import Any, Callable, ClassVar, Iterator, Mapping, Sequence

import numpy as np

TRT_GPU_NODES = ("/dev/nvidia0", "/dev/nvhost-gpu", "/dev/nvhost-as-gpu", "/dev/nvgpu", "/dev/dxg")
TRT_INSTALL = "on x86 or a server: pip install tensorrt; on a Jetson it is part of JetPack"
TRT_OLDEST = (10, 12)


class TensorRT:
    """Options: ``provider`` ("cuda:0" by default), ``transfers`` (true: the timed call copies in and out)."""

    accepts: ClassVar[frozenset[str]] = frozenset({"engine"})
    engine_file: ClassVar[str] = "model.engine"
    bounded: ClassVar[bool] = True  # ``build`` wants the least, usual and largest shape of what is dynamic
    libraries: ClassVar[tuple[str, ...]] = ("tensorrt", "numpy")

    def missing(self) -> str | None:
        """Looks, without starting CUDA: a process that has is not to be forked."""
        if not any(os.path.exists(node) for node in TRT_GPU_NODES):
            return "there is no NVIDIA GPU here; run on a machine that has one"
        if _trt_driver_library() is None:
            return "the NVIDIA driver's library libcuda.so.1 is not to be found; install the driver"
        if importlib.util.find_spec("tensorrt") is None:
            return "TensorRT is not installed; " + TRT_INSTALL
        return None

    @contextlib.contextmanager
    def open(self, path: Path, options: Mapping[str, Any]) -> Iterator[TrtSession]:
        """Raises RuntimeError when the engine does not fit this GPU or this version of TensorRT."""
        trt = _trt_import()
        device = TrtDevice(_trt_ordinal(str(options.get("provider", "cuda"))))
        engine = _trt_engine(trt, path)
        session = TrtSession(trt, engine, device, transfers=bool(options.get("transfers", True)))
        try:
            yield session
        finally:
            session.close()

    def build(self, source: Path, destination: Path, options: Mapping[str, Any]) -> dict[str, Any]:
        """Build an engine from an ONNX file, whose tensors and Q/DQ nodes decide the precision.

        Options: ``profile`` (input name -> three shapes: least, usual, most), ``workspace_bytes``,
        ``optimization_level`` (0..5), ``timing_cache`` (a file, read and written), ``version_compatible`` (runs on
        later versions too), ``hardware_compatibility`` (a name of TensorRT's levels: AMPERE_PLUS). Gives what was
        built: version and layers. Raises ValueError when the parser refuses a node, RuntimeError when the builder
        finds no engine.
        """
        trt = _trt_import()
        TrtDevice(0)
        logger = trt.Logger(trt.Logger.WARNING)
        builder = trt.Builder(logger)
        network = builder.create_network(_trt_network_flags(trt))
        parser = trt.OnnxParser(network, logger)
        if not parser.parse_from_file(str(source)):
            raise ValueError(f"TensorRT's parser refuses {source.name}: " + _trt_parser_errors(parser))
        config = _trt_config(trt, builder, options)
        cache_file = str(options.get("timing_cache") or "")
        cache = None
        if cache_file:
            known = Path(cache_file).read_bytes() if Path(cache_file).is_file() else b""
            cache = config.create_timing_cache(known)
            config.set_timing_cache(cache, False)
        serialized = builder.build_serialized_network(
            network, config
        )  # with the calls that it times in the cache
        if serialized is None:
            raise RuntimeError(
                f"TensorRT {trt.__version__} finds no engine for {source.name}; see the log above"
            )
        Path(destination).write_bytes(bytes(serialized))
        if cache is not None:
            aside = Path(cache_file + ".tmp")
            aside.write_bytes(bytes(cache.serialize()))
            os.replace(str(aside), cache_file)
        return {"tensorrt": trt.__version__, "layers": int(network.num_layers)}

    def profile(
        self, path: Path, options: Mapping[str, Any], feed: Mapping[str, np.ndarray], calls: int
    ) -> dict[str, dict[str, Any]]:
        """Layer, by the name that it has in the engine -> what it is and takes.

        ``op``: its type; ``provider``: "tensorrt"; ``precision`` of its first output; ``role``: "reformat" where it only
        turns one layout or type into another; ``ns``: nanoseconds of each call. Raises RuntimeError as ``open`` does.
        """
        trt = _trt_import()
        device = TrtDevice(_trt_ordinal(str(options.get("provider", "cuda"))))
        engine = _trt_engine(trt, path)
        times = _trt_times(trt)
        session = TrtSession(trt, engine, device, transfers=False, profiler=times)
        call = session.bind(feed)
        for _ in range(calls):
            call()
        session.close()
        told = {layer["Name"]: layer for layer in _trt_layers(trt, engine) if isinstance(layer, dict)}
        return {
            name: {
                "op": str(told.get(name, {}).get("LayerType", "")),
                "provider": "tensorrt",
                "precision": _trt_precision(told.get(name, {})),
                "role": "reformat" if "Reformat" in name else "",
                "ns": ns,
            }
            for name, ns in times.ns.items()
        }

    def inspect(self, path: Path) -> dict[str, Any]:
        """What TensorRT's inspector tells of an engine, layer by layer: tactics, formats and precisions.

        Raises RuntimeError as ``open`` does.
        """
        trt = _trt_import()
        engine = _trt_engine(trt, path)
        return {"layers": _trt_layers(trt, engine)}


def _trt_import() -> Any:
    import tensorrt

    version = tuple(int(part) for part in tensorrt.__version__.split(".")[:2])
    if version < TRT_OLDEST:
        raise RuntimeError(
            f"TensorRT {tensorrt.__version__} is too old, expected 10.12 or later; {TRT_INSTALL}"
        )
    return tensorrt


def _trt_engine(trt: Any, path: Path) -> Any:
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    engine = runtime.deserialize_cuda_engine(Path(path).read_bytes())
    if engine is None:
        raise RuntimeError(
            f"TensorRT {trt.__version__} does not load {Path(path).name}: an engine runs on the version and "
            "the GPU that it was built with; build it there"
        )
    return engine


def _trt_layers(trt: Any, engine: Any) -> list[Any]:
    """What the inspector tells of each layer; a name alone where the engine keeps no more."""
    inspector = engine.create_engine_inspector()
    told = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    return list(told.get("Layers", []))


def _trt_precision(layer: Mapping[str, Any]) -> str:
    """By the format of the first output, such as "Half NHWC8" or "Int8 NC/32HW32"."""
    outputs = layer.get("Outputs") or [{}]
    form = str(outputs[0].get("Format/Datatype", "")).lower()
    known = (
        ("bfloat16", "bf16"),
        ("bf16", "bf16"),
        ("half", "fp16"),
        ("fp16", "fp16"),
        ("int8", "int8"),
        ("fp8", "fp8"),
    )
    return next(
        (name for word, name in known if word in form), "fp32" if "float" in form or "fp32" in form else ""
    )


def _trt_times(trt: Any) -> Any:
    """A profiler that keeps the nanoseconds of each layer's calls."""

    class Times(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.ns: dict[str, list[int]] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.ns.setdefault(layer_name, []).append(int(ms * 1e6))

    return Times()


def _trt_network_flags(trt: Any) -> int:
    """Strongly typed: asked for in 10, the only way (and a flag without effect, if it is there) in 11."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _trt_parser_errors(parser: Any) -> str:
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    return (
        "; ".join(f"node {e.node_name()!r} ({e.node_operator()}): {e.desc()}" for e in errors)
        or "no reason given"
    )


def _trt_config(trt: Any, builder: Any, options: Mapping[str, Any]) -> Any:
    config = builder.create_builder_config()
    if options.get("workspace_bytes"):
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options["workspace_bytes"]))
    config.builder_optimization_level = int(options.get("optimization_level", 3))
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # layer names, for the inspector
    if options.get("version_compatible"):
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.get("hardware_compatibility"):
        level = str(options["hardware_compatibility"]).upper()
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)
    shapes: Mapping[str, Sequence[Sequence[int]]] = options.get("profile", {})
    if shapes:
        profile = builder.create_optimization_profile()
        for name, (least, usual, most) in shapes.items():
            profile.set_shape(name, tuple(least), tuple(usual), tuple(most))
        config.add_optimization_profile(profile)
    return config


class TrtSession:
    """A deserialised engine with its execution context and its device memory."""

    def __init__(
        self, trt: Any, engine: Any, device: TrtDevice, transfers: bool, profiler: Any = None
    ) -> None:
        self._trt = trt
        self._engine = engine
        self._context = engine.create_execution_context()
        if profiler is not None:
            self._context.profiler = profiler
        self._device = device
        self._transfers = transfers
        self._stream = device.stream()
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self._inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        self._outputs = [n for n in names if n not in self._inputs]
        self._addresses: dict[str, int] = {}
        self._feed: dict[str, np.ndarray] = {}
        self._results: dict[str, np.ndarray] = {}

    @property
    def inputs(self) -> Mapping[str, Any]:
        engine = self._engine
        return {n: (str(engine.get_tensor_dtype(n)), tuple(engine.get_tensor_shape(n))) for n in self._inputs}

    def bind(self, feed: Mapping[str, np.ndarray]) -> Callable[[], None]:
        """Raises ValueError when a shape is outside the engine's profile."""
        self._release()
        context, device, trt = self._context, self._device, self._trt
        for name in self._inputs:
            wanted = trt.nptype(self._engine.get_tensor_dtype(name))
            array = np.ascontiguousarray(feed[name], dtype=wanted)
            if not context.set_input_shape(name, array.shape):
                raise ValueError(f"input {name!r}: the shape {array.shape} is outside the engine's profile")
            self._feed[name] = array
            self._address(name, array)
            device.upload(self._addresses[name], array)
        for name in self._outputs:
            shape = tuple(context.get_tensor_shape(name))
            self._results[name] = np.empty(shape, trt.nptype(self._engine.get_tensor_dtype(name)))
            self._address(name, self._results[name])
        return self._call

    def _call(self) -> None:
        device = self._device
        if self._transfers:
            for name, array in self._feed.items():
                device.upload(self._addresses[name], array)
        if not self._context.execute_async_v3(self._stream):
            raise RuntimeError("the engine did not run: execute_async_v3 refused; see the log above")
        device.wait(self._stream)
        if self._transfers:
            self._download()

    def fetch(self) -> Mapping[str, np.ndarray]:
        self._download()
        return {name: array.copy() for name, array in self._results.items()}

    def close(self) -> None:
        self._release()

    def _address(self, name: str, array: np.ndarray) -> None:
        self._addresses[name] = self._device.allocate(max(1, array.nbytes))
        self._context.set_tensor_address(name, self._addresses[name])

    def _download(self) -> None:
        for name, array in self._results.items():
            self._device.download(array, self._addresses[name])

    def _release(self) -> None:
        for address in self._addresses.values():
            self._device.free(address)
        self._addresses, self._feed, self._results = {}, {}, {}


class TrtDevice:
    """Memory and streams of one GPU, through the driver API (cuda.h), in the primary context."""

    def __init__(self, ordinal: int) -> None:
        name = _trt_driver_library()
        if name is None:
            raise RuntimeError(
                "the NVIDIA driver's library libcuda.so.1 is not to be found; install the driver"
            )
        self._cuda = ctypes.CDLL(name)
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self._ask("cuInit", ctypes.c_uint(0))
        self._ask("cuDeviceGet", ctypes.byref(device), ctypes.c_int(ordinal))
        self._ask("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._ask("cuCtxSetCurrent", context)

    def stream(self) -> int:
        stream = ctypes.c_void_p()
        self._ask("cuStreamCreate", ctypes.byref(stream), ctypes.c_uint(0))  # waits for the copies
        return int(stream.value or 0)

    def wait(self, stream: int) -> None:
        self._ask("cuStreamSynchronize", ctypes.c_void_p(stream))

    def allocate(self, size_bytes: int) -> int:
        address = ctypes.c_uint64()
        self._ask("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size_bytes))
        return int(address.value)

    def free(self, address: int) -> None:
        self._ask("cuMemFree_v2", ctypes.c_uint64(address))

    def upload(self, address: int, array: np.ndarray) -> None:
        self._ask(
            "cuMemcpyHtoD_v2", ctypes.c_uint64(address), _trt_host(array), ctypes.c_size_t(array.nbytes)
        )

    def download(self, array: np.ndarray, address: int) -> None:
        self._ask(
            "cuMemcpyDtoH_v2", _trt_host(array), ctypes.c_uint64(address), ctypes.c_size_t(array.nbytes)
        )

    def _ask(self, function: str, *arguments: Any) -> None:
        code = getattr(self._cuda, function)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self._cuda.cuGetErrorString(ctypes.c_int(code), ctypes.byref(text))
            raise RuntimeError(f"CUDA: {function} gave {code}: {(text.value or b'unknown').decode()}")


def _trt_host(array: np.ndarray) -> Any:
    return ctypes.c_void_p(array.ctypes.data)


def _trt_driver_library() -> str | None:
    for name in ("libcuda.so.1", ctypes.util.find_library("cuda")):
        try:
            if name:
                ctypes.CDLL(name)
                return name
        except OSError:
            continue
    return None


def _trt_ordinal(provider: str) -> int:
    """ "cuda" is the first GPU, "cuda:1" the second."""
    _, _, number = provider.partition(":")
    return int(number) if number.isdigit() else 0
