"""The simplifier's own process: ``python -I simplifier.py TOOL``, since a tool can crash.

It reads a line of JSON, [source, destination], when the tool is imported: whoever starts it may make the source meanwhile.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any


def main(tool: str) -> None:
    # onnxsim imports these for what is not used here; without torch the process starts 2 s sooner, without sympy 0.4 s.
    for unused in ("torch", "sympy") if tool == "onnxsim" else ("torch",):
        sys.modules[unused] = None  # type: ignore[assignment]
    import onnx

    importlib.import_module(tool)
    line = sys.stdin.readline()
    if not line:
        return
    source, destination = json.loads(line)
    before = onnx.load(source)
    kept = {entry.key: entry.value for entry in before.metadata_props}
    after = TOOLS[tool](before)
    del after.metadata_props[:]
    for key, value in sorted(kept.items()):
        after.metadata_props.add(key=key, value=value)
    onnx.save(after, destination)


def _onnxsim(before: Any) -> Any:
    import onnxsim

    after, sound = onnxsim.simplify(before)
    if not sound:
        raise SystemExit("onnxsim's own check failed")
    return after


def _onnxslim(before: Any) -> Any:
    import onnxslim

    return onnxslim.slim(before)


TOOLS = {"onnxsim": _onnxsim, "onnxslim": _onnxslim}

if __name__ == "__main__":
    main(sys.argv[1])
