"""Whether artefacts give on a device what they give here, before a figure of them means anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np

from deploycompress.contracts import Device
from deploycompress.devices.answers import answers
from deploycompress.devices.jobs import Candidate, Progress
from deploycompress.devices.local import Local
from deploycompress.errors import StageFailed
from deploycompress.graph.schemes import reading
from deploycompress.model.parity import LOWEST_COSINE, compare
from deploycompress.registry import RUNTIMES

TOLERANCE = 1e-3  # of max|y| between two processors in FP32; other precisions are held to their cosine


def check_on(
    device: Device,
    candidates: Iterable[Candidate],
    feed: Mapping[str, np.ndarray],
    progress: Progress = lambda done, message: None,
) -> list[Candidate]:
    """Compare the outputs on the device with those of this machine; gives those that could not be run here.

    Where only the device has the runtime, an ONNX file is compared with ONNX Runtime here, by the cosine that FP16 is
    held to: what is in FP32 in the file need not be on an accelerator. Its accuracy is read there, too. Raises StageFailed where the device computes something else, or crashes; EnvironmentMissing where it fails.
    """
    unchecked = []
    for candidate in candidates:
        standing_in, precision = candidate, candidate.precision
        if RUNTIMES.load(candidate.runtime)().missing() is not None:
            if candidate.path.suffix != ".onnx" and not (candidate.path / "model.onnx").is_file():
                unchecked.append(candidate)
                continue
            standing_in = replace(candidate, runtime="onnxruntime", provider="cpu", options={})
            precision = "fp16" if precision == "fp32" else precision
        if precision == "int8" and (standing_in.runtime, standing_in.provider) == ("onnxruntime", "cpu"):
            options = reading(device.facts(), candidate.runtime, candidate.provider)
            standing_in = replace(standing_in, options={**standing_in.options, **options})
        where = f"{candidate.id} on {device.facts()['name']}"
        (here,) = answers(Local(), standing_in, [feed], progress=_saying(progress, "checking here"))
        (there,) = answers(device, candidate, [feed], progress=_saying(progress, f"checking {where}"))
        _judge(here, there, precision, where)
    return unchecked


def _judge(
    here: Mapping[str, np.ndarray], there: Mapping[str, np.ndarray], precision: str, where: str
) -> None:
    try:
        parity = compare(here, there)
    except StageFailed as error:
        raise StageFailed(f"{where} does not give what it gives here: {error}; it was not timed") from error
    found = f"relative difference {parity.relative:.2g}, cosine {parity.cosine:.4f}"
    lowest, most = LOWEST_COSINE[precision], TOLERANCE if precision == "fp32" else float("inf")
    if parity.cosine < lowest or parity.relative > most:
        limit = f"at most {most:g}" if precision == "fp32" else f"a cosine of at least {lowest:g}"
        raise StageFailed(
            f"{where} does not give what it gives here: {found}, expected {limit}; it was not timed. Try another "
            "version of the runtime there"
        )


def _saying(progress: Progress, what: str) -> Callable[[float, str], None]:
    return lambda done, message: progress(0.0, f"{what}: {message}")
