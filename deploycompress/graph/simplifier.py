"""The simplifier's own process: ``python -I simplifier.py SOURCE DESTINATION``, since onnxsim can crash."""

from __future__ import annotations

import sys


def simplify(source: str, destination: str) -> None:
    # onnxsim imports torch for what is not used here; without it, the process starts 2 s sooner.
    sys.modules["torch"] = None  # type: ignore[assignment]
    import onnx
    import onnxsim

    before = onnx.load(source)
    kept = {entry.key: entry.value for entry in before.metadata_props}
    after, sound = onnxsim.simplify(before)
    if not sound:
        raise SystemExit("onnxsim's own check failed")
    del after.metadata_props[:]
    for key, value in sorted(kept.items()):
        after.metadata_props.add(key=key, value=value)
    onnx.save(after, destination)


if __name__ == "__main__":
    simplify(*sys.argv[1:])
