"""The pack stage: a compressed package for download, of weights that may share a few values."""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from deploycompress.artifact import Artifact
from deploycompress.config.base import StrictModel
from deploycompress.config.quantities import Points
from deploycompress.contracts import Event, Inputs, Note, Outcome, Ref, RunContext, Stage
from deploycompress.errors import ConfigError, EnvironmentMissing, StageFailed
from deploycompress.writing import clear, saving

MOST_CLUSTERS = 65536
MORE = 4  # times as many clusters, where those lose too much


class Pack(Stage):
    """By Zstandard (``zstd -d`` unpacks it); with ``clusters`` also the ONNX file whose weights share values.

    What clustering Huffman coding was for. It makes nothing faster, and what runs is as large as before.
    """

    accepts = frozenset({"onnx", "openvino"})
    produces = frozenset({"onnx", "openvino", "package"})
    libraries = ("zstandard", "onnx", "numpy")
    compresses = True

    class Config(StrictModel):
        clusters: Annotated[int, Field(ge=4, le=65536)] | None = Field(
            None, description="Values that a weight tensor may have; null: the weights stay as they are"
        )
        level: Annotated[int, Field(ge=1, le=22)] = Field(
            19, description="Of Zstandard: higher is smaller and slower"
        )
        max_drop: Points | None = Field(
            None, description="By clustering, on the validation split; else what the accuracy gate leaves"
        )

    def inputs(self) -> Mapping[str, Ref]:
        return {"source": "last", "baseline": "baseline"}

    def reads(self) -> frozenset[str]:
        return frozenset({"gates"})

    def requires(self, context: RunContext) -> None:
        if find_spec("zstandard") is None:
            raise EnvironmentMissing("pack needs zstandard; install it with: pip install zstandard")

    def run(self, inputs: Inputs, workdir: Path, context: RunContext) -> Outcome:
        source = inputs["source"][0]
        if source.path.suffix == ".onnx":
            from deploycompress.graph.execution import inspect_onnx

            if inspect_onnx(source.path)["external"]:
                raise ConfigError(
                    f"{source.path.name} keeps weights in files beside it, which would not be packed; pack what an export "
                    "step makes of it"
                )
        clustered, notes, figures = self._clustered(inputs, workdir, context)
        packed = clustered or source
        path = _package(packed, workdir, self.config.level)
        details = {"of": packed.sha256, "unpacked_bytes": packed.bytes}
        package = Artifact.of("package", "package", path, precision=packed.precision, details=details)
        figures = {**figures, "bytes": float(packed.bytes), "packed_bytes": float(package.bytes)}
        context.emit(Event("decision", "packed", figures))
        made = (package,) if clustered is None else (clustered, package)
        return Outcome(made, figures, notes=notes)

    def _clustered(
        self, inputs: Inputs, workdir: Path, context: RunContext
    ) -> tuple[Artifact | None, tuple[Note, ...], dict[str, float]]:
        """The file with the fewest clusters, from those asked for on, that loses no more than is allowed."""
        source, clusters = inputs["source"][0], self.config.clusters
        if clusters is None:
            return None, (), {}
        if source.kind != "onnx":
            note = Note("skipped", f"only the weights of ONNX files are clustered, and this is {source.kind}")
            return None, (note,), {}
        from deploycompress.graph.clustering import cluster_weights

        path = workdir / "model" / "model.onnx"
        path.parent.mkdir()
        tensors = cluster_weights(source.main_file, path, clusters)
        reason, loses = "" if tensors else "it has no large weights in FP32", 0.0
        if tensors:
            lost, allowed = _judge(inputs, self.config.max_drop, context)
            loses = lost(path)
            while allowed is not None and loses > allowed and not context.rehearsal:
                if clusters * MORE > MOST_CLUSTERS:
                    reason = f"even {clusters} values lose too much"
                    break
                clusters *= MORE
                cluster_weights(source.main_file, path, clusters)
                loses = lost(path)
        if reason:
            clear(path.parent)
            return None, (Note("skipped", f"the weights were not clustered: {reason}", source.id),), {}
        notes: tuple[Note, ...] = ()
        if clusters != self.config.clusters:
            message = f"{clusters} values a tensor, since {self.config.clusters} lose more than is allowed"
            notes = (Note("decision", message, source.id),)
        details = {**source.details, "clusters": clusters}
        made = Artifact.of("model", "onnx", path, precision=source.precision, details=details)
        return made, notes, {"clusters": float(clusters), "lost": loses}

    def ensures(self, inputs: Inputs, outcome: Outcome, context: RunContext) -> Mapping[str, float]:
        """The package is unpacked, and every byte compared with what was packed."""
        package = outcome.artifacts[-1]
        packed = outcome.artifacts[0] if len(outcome.artifacts) > 1 else inputs["source"][0]
        with tempfile.TemporaryDirectory(prefix="unpacked-") as folder:
            found = unpack(package.main_file, Path(folder))
            if Artifact.of("", packed.kind, found).sha256 != packed.sha256:
                raise StageFailed(f"{package.path.name} does not unpack to what was packed; run again")
        return {}


def unpack(package: Path, folder: Path) -> Path:
    """Write the file, or the folder, that a package holds to ``folder``; where it lies there.

    Raises StageFailed for a package with a name that leads out of its folder.
    """
    import zstandard

    inner = folder / package.name.removesuffix(".zst")
    with package.open("rb") as packed, saving(inner), inner.open("wb") as stream:
        zstandard.ZstdDecompressor().copy_stream(packed, stream)
    if inner.suffix != ".tar":
        return inner
    place = folder / inner.stem
    with tarfile.open(inner) as archive:
        try:
            archive.extractall(place, filter="data")
        except tarfile.FilterError as error:
            raise StageFailed(f"{package.name}: {error}") from error
    return place


def _package(artifact: Artifact, workdir: Path, level: int) -> Path:
    """model.onnx.zst, or model.tar.zst of a folder; the same bytes for the same artefact."""
    import zstandard

    compressor = zstandard.ZstdCompressor(level=level, write_checksum=True)
    if not artifact.path.is_dir():
        path = workdir / f"{artifact.path.name}.zst"
        with artifact.path.open("rb") as source, saving(path), path.open("wb") as stream:
            compressor.copy_stream(source, stream, size=artifact.bytes)
        return path
    path = workdir / f"{artifact.path.name}.tar.zst"
    with saving(path), path.open("wb") as stream, compressor.stream_writer(stream) as packed:
        with tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            for record in artifact.files:
                info = tarfile.TarInfo(record.name)  # no owner and no time: these differ from run to run
                info.size = record.bytes
                with (artifact.path / record.name).open("rb") as source:
                    archive.addfile(info, source)
    return path


def _judge(
    inputs: Inputs, configured: Any, context: RunContext
) -> tuple[Callable[[Path], float], float | None]:
    """What a file loses of the primary metric on the validation split, and what it may."""
    from deploycompress.graph.allowance import allowance, loss
    from deploycompress.graph.evaluation import Evaluation, evaluate_artifact
    from deploycompress.graph.execution import fixed_batch_of
    from deploycompress.graph.schemes import target_reading
    from deploycompress.runtimes.onnxruntime import OnnxRuntime

    source, primary = inputs["source"][0], context.task.primary

    def validated(path: Path) -> Evaluation:
        options = {"threads": context.target.threads, **target_reading(source.precision, context)}
        loader, batch = context.data.loader("val"), fixed_batch_of(path)
        return evaluate_artifact(OnnxRuntime(), path, options, loader, context.task, batch)

    before = validated(source.main_file)

    def spent() -> float | None:
        given = inputs.get("baseline", ())
        if not given or given[0].sha256 == source.sha256:
            return 0.0
        return loss(primary, validated(given[0].main_file), before)

    def lost(path: Path) -> float:
        return loss(primary, before, validated(path)) or 0.0

    allowed, _ = allowance(configured, context.gates, spent)
    return lost, allowed
