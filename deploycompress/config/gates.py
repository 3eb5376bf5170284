"""The block ``gates``: which there are, and that each has a limit that can mean something."""

from __future__ import annotations

from deploycompress.config.document import Document, KeyPath
from deploycompress.config.quantities import Quantity
from deploycompress.config.schema import GATES, AccuracyGate, EnergyGate, Gate, LatencyGate, ThroughputGate
from deploycompress.config.validation import validate
from deploycompress.config.wording import listed, shown, unknown

METRIC = "metric:"
LOSSES = ("max_drop", "max_rise")
OF_PRIMARY_METRIC = ("accuracy", "worst_class")
MEASURED = (LatencyGate, ThroughputGate, EnergyGate)  # what a longer measurement tells more about


def read_gates(document: Document, share: bool) -> dict[str, Gate]:
    """The gates by name; those with mistakes, noted in ``document``, are left out.

    ``share``: whether the task's primary metric is a share, so that a plain 98 cannot be meant.
    """
    raw = document.data.get("gates", {})
    if not isinstance(raw, dict):
        document.report(
            ("gates",), f"received {shown(raw)}, expected a mapping, as {{latency_p50: {{max: 2 ms}}}}"
        )
        return {}
    gates = {name: _gate(document, name, share) for name in raw}
    return {name: gate for name, gate in gates.items() if gate is not None}


def _gate(document: Document, name: str, share: bool) -> Gate | None:
    path: KeyPath = ("gates", name)
    model = GATES.get(name)
    if name.startswith(METRIC) and len(name) > len(METRIC):
        model = AccuracyGate
    if model is None:
        document.report(path, unknown("gate", name, GATES, also="metric:NAME"), key=True)
        return None
    limits = [key for key in model.model_fields if key not in Gate.model_fields]
    raw = document.value(path)
    unknown_keys = set(raw) - set(model.model_fields) if isinstance(raw, dict) else set()
    if not raw or (
        isinstance(raw, dict) and not unknown_keys and all(raw.get(key) is None for key in limits)
    ):
        document.report(path, f"the gate has no limit; give {listed(limits, last='or')}", key=True)
        return None
    gate = validate(model, document, path)
    if gate is not None and gate.on_inconclusive == "extend" and not issubclass(model, MEASURED):
        message = f"received extend, but measuring longer decides nothing about {name}; expected fail or warn"
        document.report((*path, "on_inconclusive"), message)
    if gate is not None and share and name in OF_PRIMARY_METRIC:
        _check_shares(document, path, gate, limits)
    return gate


def _check_shares(document: Document, path: KeyPath, gate: Gate, limits: list[str]) -> None:
    """``max_drop: 1`` would allow every loss: it was meant to be ``1 pp``."""
    for key in limits:
        limit = getattr(gate, key)
        if isinstance(limit, Quantity) and limit.dimension == "number":
            unit = " pp" if key in LOSSES else "%"
            if limit.value > 1 or (limit.value == 1 and key in LOSSES):
                message = f"received {limit}: a plain number is a share from 0 to 1 here; write {limit}{unit}"
                document.report((*path, key), message)
