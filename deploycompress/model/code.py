"""The digest of the user's code that is loaded in this process."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

from deploycompress.artifact import digest_file

INSTALLED = {"site-packages", "dist-packages"}
ENTRY_POINTS = {"__main__", "__mp_main__"}  # how this process was started; no part of the user's model


def loaded_code() -> dict[str, str]:
    """Module name -> SHA-256 of its file, for every loaded module that is neither installed nor ours.

    The examples count as user code: people copy and edit them.
    """
    standard = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")]
    found: dict[str, str] = {}
    for name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or name in ENTRY_POINTS or _ours(name):
            continue
        path = Path(file).resolve()
        if INSTALLED & set(path.parts) or any(path.is_relative_to(root) for root in standard):
            continue
        if path.is_file():
            found[name] = digest_file(path)
    return found


def _ours(name: str) -> bool:
    top, _, rest = name.partition(".")
    return top == "deploycompress" and not rest.startswith("examples.")
