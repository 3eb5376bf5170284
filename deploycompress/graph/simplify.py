"""Simplifies an ONNX file, and keeps the result only if it is equal and no larger."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from deploycompress.contracts import Note
from deploycompress.errors import ConfigError, StageFailed
from deploycompress.graph.bisect import first_difference
from deploycompress.graph.execution import Feed, inspect_onnx, run_onnx
from deploycompress.model.parity import Parity, compare, worst
from deploycompress.writing import copy, move, saving

TOLERANCE = 1e-4  # of the largest output: the same sums in another order
TIMEOUT_S = 300
TOOLS = ("onnxsim", "onnxslim")  # the first that is installed and whose result is to be used
PROCESS = Path(__file__).with_name("simplifier.py")


@dataclass(frozen=True)
class Simplified:
    """What was kept: the file of one of the tools, or the source; with a note on each tool that was not used."""

    path: Path
    tool: str  # empty: the source
    nodes_before: int
    nodes_after: int
    parity: Parity | None  # the worst over all feeds; None where the source was kept
    notes: tuple[Note, ...]


def simplify_onnx(
    source: Path, destination: Path, feeds: Sequence[Feed], tools: Sequence[str] = TOOLS
) -> Simplified:
    """Write the simplified ``source`` to ``destination``, or ``source`` itself where that does not hold.

    Never fails for a simplifier's sake; the notes say why one was not used. One that is not installed is passed over
    where there is another.
    """
    described = inspect_onnx(source)
    nodes, notes = int(described["nodes"]), list[Note]()
    if tools and described["external"]:
        reason = (
            "the file was not simplified: its weights lie beside it, and simplifiers want them within 2 GiB"
        )
        tools, notes = (), [Note("fell_back", reason, source.name)]
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".simplify-") as folder:
        for tool in [t for t in tools if find_spec(t)] or tools[:1]:
            made = Path(folder) / destination.name
            with saving(made):
                problem, parity = _simplify(tool, source, made, feeds)
            if problem is None:
                move(made, destination)
                after = int(inspect_onnx(destination)["nodes"])
                return Simplified(destination, tool, nodes, after, parity, tuple(notes))
            notes.append(Note("fell_back", f"the file was not simplified: {problem}", source.name))
    _copy(source, destination)
    return Simplified(destination, "", nodes, nodes, None, tuple(notes))


def _simplify(tool: str, source: Path, made: Path, feeds: Sequence[Feed]) -> tuple[str | None, Parity | None]:
    """Why the result is not to be used (None when it is), and how far it is from the source."""
    try:
        ended = subprocess.run(
            [sys.executable, "-I", str(PROCESS), tool, str(source), str(made)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return f"{tool} took more than {TIMEOUT_S} s", None
    if ended.returncode or not made.is_file():
        last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        return f"{tool} ended with code {ended.returncode}: {last}", None
    try:
        before, after = inspect_onnx(source), inspect_onnx(made)
        if made.stat().st_size > source.stat().st_size or after["nodes"] > before["nodes"]:
            return (
                f"{tool} made it larger: {source.stat().st_size} -> {made.stat().st_size} bytes, "
                f"{before['nodes']} -> {after['nodes']} nodes"
            ), None
        if (before["inputs"], before["outputs"]) != (after["inputs"], after["outputs"]):
            return f"{tool} changed the inputs or outputs", None
        parity = _parity(source, made, feeds)
    except (ConfigError, StageFailed) as error:
        return str(error), None
    if parity.relative > TOLERANCE:
        begins = first_difference(source, made, feeds[0], lambda found: found.relative > TOLERANCE)
        where = f"; {begins}" if begins else ""
        return f"{tool}'s result differs by {parity.relative:.2g} of the largest output{where}", None
    return None, parity


def _parity(source: Path, made: Path, feeds: Sequence[Feed]) -> Parity:
    before, after = run_onnx(source, feeds), run_onnx(made, feeds)
    return worst([compare(b, a) for b, a in zip(before, after, strict=True)])


def _copy(source: Path, destination: Path) -> None:
    """The file with the weights beside it; external data is found by its name, which stays."""
    for name in inspect_onnx(source)["external"]:
        copy(source.parent / name, destination.parent / name)
    copy(source, destination)
