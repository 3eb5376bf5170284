"""junit.xml: a test case for every gate and every stage."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from deploycompress.report import view
from deploycompress.report.document import Gate, Report, Stage


def junit(report: Report) -> str:
    """JUnit's XML as CI systems read it. An inconclusive gate that only warns is skipped, not failed."""
    root = ET.Element("testsuites", name=report.name)
    gates = ET.SubElement(root, "testsuite", name="gates")
    for gate in report.gates:
        _gate_case(gates, gate)
    stages = ET.SubElement(root, "testsuite", name="stages")
    for stage in report.stages:
        _stage_case(stages, stage)
    if report.error is not None and not any(stage.error for stage in report.stages):
        case = _case(stages, "stages", report.error.step or "run")
        _problem(case, "error", report.error.class_, report.error.message)
    for suite in (gates, stages, root):
        _count(suite)
    root.set("time", f"{report.seconds:.3f}")
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _gate_case(suite: ET.Element, gate: Gate) -> None:
    shown = view.gate_view(gate)
    case = _case(suite, "gates", f"{shown.metric} {shown.limit}")
    message = f"{shown.value}, wanted {shown.limit}: {shown.message}"
    if gate.verdict == "pass":
        ET.SubElement(case, "system-out").text = message
    elif gate.only_warns:
        ET.SubElement(case, "skipped", message=f"inconclusive: {message}")
    else:
        _problem(case, "failure", gate.verdict, message)


def _stage_case(suite: ET.Element, stage: Stage) -> None:
    case = _case(suite, "stages", stage.name)
    case.set("time", f"{stage.seconds:.3f}")
    notes = "\n".join(f"{note.kind}: {view.told(note)}" for note in stage.notes)
    if stage.error is not None:
        _problem(case, "error", stage.error.class_, stage.error.message)
    elif stage.state == "not_run":
        ET.SubElement(case, "skipped", message="not run: an earlier step failed")
    if notes:
        ET.SubElement(case, "system-out").text = notes


def _case(suite: ET.Element, group: str, name: str) -> ET.Element:
    return ET.SubElement(suite, "testcase", classname=f"deploycompress.{group}", name=name)


def _problem(case: ET.Element, kind: str, type: str, message: str) -> None:
    first = message.splitlines()[0] if message else type
    ET.SubElement(case, kind, type=type, message=first).text = message


def _count(suite: ET.Element) -> None:
    cases = list(suite.iter("testcase"))
    suite.set("tests", str(len(cases)))
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(attribute, str(sum(case.find(tag) is not None for case in cases)))
