"""INT8 quantization of an ONNX file by ONNX Runtime: static with Q/DQ nodes, or dynamic."""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import chdir, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploycompress.contracts import Note
from deploycompress.errors import ConfigError, StageFailed
from deploycompress.graph.calibration import CalibrationFeeds
from deploycompress.graph.execution import Feed, inspect_onnx
from deploycompress.graph.schemes import DYNAMIC, SCHEMES, choose_scheme
from deploycompress.measure.environment import machine
from deploycompress.writing import clear, saving

if TYPE_CHECKING:
    import onnx


# Whose third input is a bias that ONNX Runtime quantizes.
WITH_BIAS = (
    "Conv",
    "ConvTranspose",
    "Gemm",
    "BatchNormalization",
    "InstanceNormalization",
    "LayerNormalization",
)
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
ACTIVATIONS = ("Relu", "Clip", "LeakyRelu", "HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "Gelu", "Softplus")
LARGEST_FILE = 2**31 - 2**24  # bytes: the 2 GiB of protocol buffers, with room for what is added
# Of inputs, for histograms: 33 images of 224 pixels, as all that is inside the network is kept for each of them.
HISTOGRAM_BYTES = 20_000_000
DYNAMIC_OPS = ("MatMul", "Gemm", "Attention", "LSTM", "Gather")
DYNAMIC_MADE = {
    "MatMulInteger",
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
    "DynamicQuantizeLSTM",
    "QAttention",
}
# Which part of what was seen the range holds. Name -> ONNX Runtime's method, and its options.
CALIBRATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "minmax": ("MinMax", {}),
    "percentile_99.999": ("Percentile", {"CalibPercentile": 99.999}),
    "percentile_99.99": ("Percentile", {"CalibPercentile": 99.99}),
    "percentile_99.9": ("Percentile", {"CalibPercentile": 99.9}),
    "entropy": ("Entropy", {}),
}


@dataclass(frozen=True)
class Quantized:
    path: Path
    scheme: str  # a key of schemes.SCHEMES or schemes.DYNAMIC
    samples: int  # that it was calibrated with
    notes: tuple[Note, ...]


def quantize_onnx(
    source: Path,
    destination: Path,
    calibration: Iterable[Feed],
    *,
    scheme: str = "auto",
    facts: Mapping[str, Any] | None = None,
    calibrator: str = "minmax",
    in_float: Collection[str] = (),
    scales: Mapping[str, Any] | None = None,
) -> Quantized:
    """Write ``source`` in INT8 to ``destination``, with activation ranges of ``calibration``.

    ``facts``: of the device that will run it, for ``auto``; this machine's by default. ``calibrator``: one of
    ``CALIBRATORS``. ``in_float``: nodes by name that stay in FP32. ``scales``: of activations that are known already, by tensor in
    ONNX Runtime's form (``ladder.scales``); what is not among them is taken from ``calibration``. Raises ConfigError for calibration data that do
    not fit, StageFailed when ONNX Runtime cannot quantize the file.
    """
    from onnxruntime import quantization

    resolved = choose_scheme(scheme, facts or machine())
    types = SCHEMES[resolved]
    feeds = CalibrationFeeds(calibration, inspect_onnx(source)["inputs"])
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".quantize-") as folder:
        prepared = Path(folder) / "prepared.onnx"
        notes = _prepare(source, prepared)
        # Names are those of ``source``: a product and the sum behind it are one Gemm in what was prepared.
        excluded = [*_repair(prepared), *in_float, *(f"{name}/MatMulAddFusion" for name in in_float)]
        method, options = CALIBRATORS[calibrator]
        if method != "MinMax":  # histograms are of batches of one size
            feeds = CalibrationFeeds(_even(calibration), inspect_onnx(source)["inputs"])
        try:
            with _without_warnings(), saving(destination):
                quantization.quantize_static(
                    prepared,
                    destination,
                    feeds,
                    quant_format=quantization.QuantFormat.QDQ,
                    activation_type=quantization.QuantType[types.activation],
                    weight_type=quantization.QuantType[types.weight],
                    per_channel=True,
                    reduce_range=types.reduce_range,
                    calibrate_method=quantization.CalibrationMethod[method],
                    nodes_to_exclude=excluded,
                    use_external_data_format=_is_large(source),
                    extra_options={
                        **options,
                        "ActivationSymmetric": types.symmetric,
                        **({"TensorQuantOverrides": dict(scales)} if scales else {}),
                    },
                )
        except ConfigError:
            raise
        except Exception as error:  # onnxruntime.quantization raises whatever happens to fail
            if not feeds.samples:
                raise ConfigError("there are no calibration data") from error
            raise StageFailed(
                f"{source.name} cannot be quantized: {type(error).__name__}: {error}"
            ) from error
    _in_one_file(destination)
    if types.symmetric:
        _round_behind_activations(destination)
    return Quantized(destination, resolved, feeds.samples, notes)


def _round_behind_activations(path: Path) -> None:
    """Take away the Q/DQ nodes between a layer and its activation function, in place.

    Where zero is in the middle of the range, ONNX Runtime keeps the activation and rounds before it as well.
    TensorRT fuses the two where nothing stands between them, and training with the values of INT8 does not know of it.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    outputs = {port.name for port in graph.output}

    def only_reader(name: str, *kinds: str) -> onnx.NodeProto | None:
        found = readers.get(name, [])
        return found[0] if len(found) == 1 and found[0].op_type in kinds else None

    gone = []
    for layer in graph.node:
        if layer.op_type not in LAYERS:
            continue
        rounds = only_reader(layer.output[0], "QuantizeLinear")
        back = only_reader(rounds.output[0], "DequantizeLinear") if rounds is not None else None
        activation = only_reader(back.output[0], *ACTIVATIONS) if back is not None else None
        if rounds is None or back is None or activation is None:
            continue
        if outputs & {layer.output[0], rounds.output[0], back.output[0]}:
            continue  # the network gives what is before the activation too
        activation.input[0] = layer.output[0]
        gone += [rounds, back]
    for node in gone:
        graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)
    if gone:
        with saving(path):
            onnx.save(model, path)


def _is_large(path: Path) -> bool:
    """Whether the file with the weights beside it is more than protocol buffers can hold in one."""
    beside: int = sum((path.parent / name).stat().st_size for name in inspect_onnx(path)["external"])
    return path.stat().st_size + beside > LARGEST_FILE


def _in_one_file(path: Path) -> None:
    """Put the weights that ONNX Runtime has written beside a large file into it; a quarter of them is left."""
    import onnx

    beside = [path.parent / name for name in inspect_onnx(path)["external"]]
    if not beside:
        return
    if _is_large(path):
        raise StageFailed(
            f"{path.name} has more than 2 GB in INT8 too, and is not supported so; leave quantize out"
        )
    with saving(path):
        onnx.save(onnx.load(path), path)
    for file in beside:
        clear(file)


def _even(feeds: Iterable[Feed]) -> Iterator[Feed]:
    """Batches as large as the first one: samples of a smaller one come again, and those of a larger one are left.

    ONNX Runtime keeps every tensor inside the network for every sample until it is done, so that there are fewer of
    large samples.
    """
    size = given = 0
    for feed in feeds:
        count = len(next(iter(feed.values())))
        size = size or count
        if given >= HISTOGRAM_BYTES:
            return
        given += sum(array.nbytes for array in feed.values())
        yield {name: array[np.arange(size) % count] for name, array in feed.items()}


def quantize_dynamic_onnx(source: Path, destination: Path, scheme: str = "dynamic") -> Quantized:
    """Write ``source`` to ``destination`` with INT8 weights of matrix products and recurrent layers.

    Their inputs are quantized as they come, each with its own range: nothing is calibrated, and what stands between
    them stays in FP32. ``scheme``: one of ``schemes.DYNAMIC``. Raises StageFailed when ONNX Runtime cannot do it, or there is nothing to quantize.
    """
    import onnx
    from onnxruntime import quantization

    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".quantize-") as folder:
        prepared = Path(folder) / "prepared.onnx"
        notes = _prepare(source, prepared)
        _repair(prepared)
        try:
            with _without_warnings(), saving(destination):
                quantization.quantize_dynamic(
                    prepared,
                    destination,
                    op_types_to_quantize=[*DYNAMIC_OPS],
                    per_channel=True,
                    weight_type=quantization.QuantType.QInt8,
                    reduce_range=DYNAMIC[scheme],
                    use_external_data_format=_is_large(source),
                    extra_options={"MatMulConstBOnly": True},
                )
        except Exception as error:  # as above
            raise StageFailed(
                f"{source.name} cannot be quantized: {type(error).__name__}: {error}"
            ) from error
    _in_one_file(destination)
    made = {node.op_type for node in onnx.load(destination, load_external_data=False).graph.node}
    if not made & DYNAMIC_MADE:
        raise StageFailed(
            f"{source.name} has no {', '.join(DYNAMIC_OPS)} with constant weights: nothing to quantize"
        )
    return Quantized(destination, scheme, 0, notes)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """ONNX Runtime warns, by the root logger, of every vector that it cannot quantize by channel; histograms print."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)


def _repair(prepared: Path) -> list[str]:
    """Prepare a file, in place, for what ONNX Runtime's quantization does wrong; which nodes stay in float, by name."""
    import onnx

    model = onnx.load(prepared, load_external_data=False)
    if _separate_biases(model.graph):
        with saving(prepared):
            onnx.save(model, prepared)
    return _masked_scores(model.graph)


def _masked_scores(graph: onnx.GraphProto) -> list[str]:
    """Softmax, what adds its mask and what makes that.

    A mask is the lowest number of all where a token may not look. In one range with it every score is zero in INT8,
    and attention is the same everywhere.
    """
    makers = {output: node for node in graph.node for output in node.output}
    found = []
    for node in graph.node:
        maker = makers.get(node.input[0]) if node.op_type == "Softmax" else None
        if maker is not None and maker.op_type in ("Add", "Where"):
            before = (makers[name] for name in maker.input if name in makers)
            found += [node.name, maker.name, *(other.name for other in before if other.op_type == "Where")]
    return found


def _separate_biases(graph: onnx.GraphProto) -> bool:
    """Give every layer a bias of its own; whether there was one to give.

    ONNX Runtime copies one that nodes share under its name with a number behind it, which may be another tensor's.
    """
    biases = {initializer.name: initializer for initializer in graph.initializer}
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    seen = set()
    for number, node in enumerate(graph.node):
        name = node.input[2] if node.op_type in WITH_BIAS and len(node.input) > 2 else ""
        if name in seen and f"{name}/{number}" not in taken:
            copied = graph.initializer.add()
            copied.CopyFrom(biases[name])
            node.input[2] = copied.name = f"{name}/{number}"
        elif name in biases:
            seen.add(name)
    return len(graph.initializer) > len(biases)


def _prepare(source: Path, prepared: Path) -> tuple[Note, ...]:
    """Shape inference and graph optimisation before quantization, as ONNX Runtime's guide asks."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    source, prepared = source.absolute(), prepared.absolute()
    how: dict[str, Any] = {}
    if _is_large(source):
        how = {"save_as_external_data": True, "all_tensors_to_one_file": True}
        how |= {"external_data_location": "prepared.data"}
    try:
        with chdir(prepared.parent):  # what cannot be inferred is left in the working directory
            quant_pre_process(source, prepared, **how)
    except Exception as error:  # symbolic shape inference does not know every operator
        reason = f"symbolic shape inference failed ({type(error).__name__}: {error}); went on without"
        try:
            quant_pre_process(source, prepared, skip_symbolic_shape=True, **how)
        except Exception as again:
            raise StageFailed(f"{source.name} cannot be prepared for quantization: {again}") from again
        return (Note("fell_back", reason, source.name),)
    return ()
