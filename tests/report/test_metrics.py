"""Every metric of the task is on the page, each in its own unit, with the classes unfolding worst first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploycompress.config.schema import PipelineConfig
from deploycompress.report import metrics
from deploycompress.report.build import build
from deploycompress.report.document import Report, check

Make = Callable[..., tuple[PipelineConfig, Path]]


def reported(make_run: Make, **changes: Any) -> Report:
    return check(build(*make_run(**changes)))


def test_every_metric_of_every_artefact(make_run: Make) -> None:
    table = metrics.metrics_table(reported(make_run))
    assert table is not None and table.heads == ("baseline", "quantize", "export")
    told = {line.name: (line.note, [(c.value, c.change) for c in line.cells]) for line in table.lines}
    assert list(told) == ["accuracy", "f1", "log_loss"]
    assert told["accuracy"] == ("", [("98.83 %", ""), ("98.50 %", "−0.33 pp"), ("98.67 %", "−0.17 pp")])
    assert told["log_loss"] == (
        "lower is better",
        [("0.0467", ""), ("0.0600", "+0.0133"), ("0.0533", "+0.00667")],
    )


def test_classes_are_the_best_artefact_s_worst_first(make_run: Make) -> None:
    table = metrics.class_table(reported(make_run))
    assert table is not None and table.heads == ("recall", "f1")
    assert [line.name for line in table.lines] == ["eight", "three"]
    assert [(c.value, c.change) for c in table.lines[0].cells] == [
        ("96.50 %", "−0.33 pp"),
        ("97.00 %", "−0.33 pp"),
    ]


def test_the_worst_of_many_classes_are_shown(make_run: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MOST_CLASSES", 1)
    table = metrics.class_table(reported(make_run))
    assert table is not None and [line.name for line in table.lines] == ["eight"] and table.left_out == 1


def test_one_metric_alone_is_with_the_artefacts(make_run: Make) -> None:
    document = build(*make_run())
    for row in document["measurements"]:
        row["metrics"] = {"accuracy": row["metrics"]["accuracy"]}
    assert metrics.metrics_table(check(document)) is None
    assert metrics.class_table(check(document | {"by_class": {}})) is None
