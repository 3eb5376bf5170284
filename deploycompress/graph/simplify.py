"""Simplifies an ONNX file, and keeps the result only if it is equal and no larger."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
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


class Simplifier:
    """The process of one tool, for one file that may not be there yet; it imports the tool meanwhile."""

    def __init__(self, tool: str) -> None:
        self.tool = tool
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(PROCESS), tool],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )

    def run(self, source: Path, made: Path) -> str | None:
        """Why there is no file ``made``; None where there is."""
        try:
            _, said = self._process.communicate(json.dumps([str(source), str(made)]) + "\n", TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return f"{self.tool} took more than {TIMEOUT_S} s"
        if self._process.returncode or not made.is_file():
            last = (said.strip().splitlines() or ["no message"])[-1]
            return f"{self.tool} ended with code {self._process.returncode}: {last}"
        return None

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def first_simplifier(tools: Sequence[str] = TOOLS) -> Iterator[Simplifier | None]:
    """The one that ``simplify_onnx`` will try first, started now and ended with the block; None without a tool."""
    wanted = _installed(tools)
    if not wanted:
        yield None
        return
    process = Simplifier(wanted[0])
    try:
        yield process
    finally:
        process.end()


def _installed(tools: Sequence[str]) -> Sequence[str]:
    """Those, or the first of all where none is: it says what is missing."""
    return [tool for tool in tools if find_spec(tool)] or tools[:1]


def simplify_onnx(
    source: Path,
    destination: Path,
    feeds: Sequence[Feed],
    tools: Sequence[str] = TOOLS,
    ready: Simplifier | None = None,
) -> Simplified:
    """Write the simplified ``source`` to ``destination``, or ``source`` itself where that does not hold.

    Never fails for a simplifier's sake; the notes say why one was not used. One that is not installed is passed over
    where there is another. ``ready``: of ``first_simplifier`` with the same tools.
    """
    described = inspect_onnx(source)
    nodes, notes = int(described["nodes"]), list[Note]()
    if tools and described["external"]:
        reason = (
            "the file was not simplified: its weights lie beside it, and simplifiers want them within 2 GiB"
        )
        tools, notes = (), [Note("fell_back", reason, source.name)]
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".simplify-") as folder:
        for tool in _installed(tools):
            made = Path(folder) / destination.name
            process, ready = ready or Simplifier(tool), None
            try:
                with saving(made):
                    problem, parity = _simplify(process, source, made, feeds)
            finally:
                process.end()
            if problem is None:
                move(made, destination)
                after = int(inspect_onnx(destination)["nodes"])
                return Simplified(destination, tool, nodes, after, parity, tuple(notes))
            notes.append(Note("fell_back", f"the file was not simplified: {problem}", source.name))
    _copy(source, destination)
    return Simplified(destination, "", nodes, nodes, None, tuple(notes))


def _simplify(
    process: Simplifier, source: Path, made: Path, feeds: Sequence[Feed]
) -> tuple[str | None, Parity | None]:
    """Why the result is not to be used (None when it is), and how far it is from the source."""
    tool, reason = process.tool, process.run(source, made)
    if reason is not None:
        return reason, None
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
