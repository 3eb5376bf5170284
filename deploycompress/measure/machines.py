"""Whether two environments are those of one machine, as far as speed goes; if not, what differs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Memory, kernel and Python may differ between two starts of one machine, and speed does not go by them.
DECIDE = {
    "architecture": "architecture",
    "cpu": "processor",
    "flags": "instructions",
    "cores": "cores",
    "cpu_quota": "CPU quota",
    "governor": "frequency policy",
    "gpu": "GPU",
    "virtual": "virtual machine",
}


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What differs between two ``measure.environment.environment()``; empty where it is one machine."""
    ours, theirs = one.get("machine"), other.get("machine")
    if not isinstance(ours, Mapping) or not isinstance(theirs, Mapping):
        return ["a report does not say on which machine it was measured"]
    return [
        f"{called}: {_shown(key, ours, theirs)} against {_shown(key, theirs, ours)}"
        for key, called in DECIDE.items()
        if ours.get(key) != theirs.get(key)
    ]


def versions_apart(one: Mapping[str, Any], other: Mapping[str, Any], runtimes: tuple[str, ...]) -> list[str]:
    """Libraries of these runtimes whose versions differ."""
    ours, theirs = _libraries(one), _libraries(other)
    return [
        f"{name} {ours.get(name, 'not installed')} against {theirs.get(name, 'not installed')}"
        for name in sorted({*ours, *theirs})
        if name.partition("-")[0] in {"torch" if r == "pytorch" else r for r in runtimes}
        and ours.get(name) != theirs.get(name)
    ]


def _libraries(environment: Mapping[str, Any]) -> Mapping[str, Any]:
    found = environment.get("libraries")
    return found if isinstance(found, Mapping) else {}


def _shown(key: str, of: Mapping[str, Any], beside: Mapping[str, Any]) -> str:
    value = of.get(key)
    if key == "flags" and isinstance(value, list):
        rest = beside.get(key)
        more = [str(flag) for flag in value if not isinstance(rest, list) or flag not in rest]
        return f"with {', '.join(more)}" if more else "without"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "unknown" if value is None else str(value)[:100]
