"""Takes the probe over a zoo of models, one process each: ``python benchmarks/zoo.py --suite other``.

It goes on where it stopped, from the cheapest model up: a result stays valid while ``CODE`` and the libraries are
the same; ``--again MODEL`` measures one anew. Figures are kept in ``results/zoo.json`` after every model, and
shown in ``results/zoo.md``. It answers what is pruned and still right, not how fast it is, so that several of it may
run at once on one machine.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from zoo_suites import SUITES, Entry, entries

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
LIMIT_S, LARGE_LIMIT_S = 300, 900
# Above 30 GMACs or 300 million parameters.
LARGE = {"regnet_y_128gf", "regnet_x_32gf", "regnet_y_32gf", "convnext_large", "vit_h_14", "vit_l_16"} | {
    "vit_l_32",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "fcn_resnet101",
}
TICK_S = 1.0
CODE = 2  # raised by whoever changes something that every model goes through
LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "onnxsim")
LIBRARIES_OF_MODELS = ("torchvision", "timm", "transformers")
MACS = "50%"
COMMIT = subprocess.run(
    ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
).stdout.strip()

Record = dict[str, Any]


def main() -> None:
    arguments = _arguments()
    chosen = [e for suite in arguments.suite or SUITES for e in entries(suite)]
    if arguments.model:
        chosen = [e for e in chosen if e.name in arguments.model]
    target = arguments.results / "zoo.json"
    records: dict[str, Record] = json.loads(target.read_text())["models"] if target.exists() else {}
    versions = _versions()
    again = arguments.again or ()
    due = [e for e in chosen if e.name in again or records.get(_key(e), {}).get("versions") != versions]
    print(f"{len(chosen)} models, {len(chosen) - len(due)} of them finished")
    for number, entry in enumerate(due, 1):
        record = _probe(entry, versions)
        records = _add(target, entry, record)
        print(f"{number}/{len(due)}  {_line(record)}", flush=True)
    _write(target.with_suffix(".md"), table(records))
    print("\n".join(_summary(records)))


def _add(target: Path, entry: Entry, record: Record) -> dict[str, Record]:
    """Write one more result beside those which another run may have written meanwhile; all of them."""
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(target.parent, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        records: dict[str, Record] = json.loads(target.read_text())["models"] if target.exists() else {}
        records[_key(entry)] = record
        _write(target, json.dumps({"macs": MACS, "models": records}, indent=1) + "\n")
        _write(target.with_suffix(".md"), table(records))
    finally:
        os.close(lock)
    return records


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", action="append", choices=list(SUITES), help="default: all of them")
    parser.add_argument("--model", action="append", help="only models of this name")
    parser.add_argument(
        "--again", action="append", metavar="MODEL", help="run this one although it is finished"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of zoo.json and zoo.md")
    return parser.parse_args()


def _key(entry: Entry) -> str:
    return f"{entry.suite}/{entry.name}"


# ---------------------------------------------------------------- one model


def _probe(entry: Entry, versions: Mapping[str, str]) -> Record:
    """Run the probe in a process of its own, and end it with all its children when its time is over."""
    limit_s = LARGE_LIMIT_S if entry.name in LARGE else LIMIT_S
    with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
        report_file, log_file = Path(folder, "report.json"), Path(folder, "log.txt")
        command = [sys.executable, "-W", "ignore", "-m", "deploycompress", "probe", entry.build]
        command += ["--input", entry.inputs, "--macs", MACS, "--json", str(report_file)]
        with log_file.open("w") as log:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "TMPDIR": folder},  # what an ended one leaves behind goes with it
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code, seconds = _wait(process, limit_s)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        report = json.loads(report_file.read_text()) if report_file.exists() else None
        error = None
        if code is None:
            error = f"its {limit_s} s were over"
        elif report is None:
            last = log_file.read_text().strip().splitlines() or ["no message"]
            error = f"exit code {code}: {last[-1]}"
    return _record(entry, versions, report, error, seconds)


def _wait(process: subprocess.Popen[bytes], limit_s: float) -> tuple[int | None, float]:
    """Exit code, None when the time was over first; and seconds, without those in which this process stood still too."""
    spent = 0.0
    while spent < limit_s:
        started = time.monotonic()
        try:
            code: int | None = process.wait(TICK_S)
        except subprocess.TimeoutExpired:
            code = None
        spent += min(time.monotonic() - started, 2 * TICK_S)
        if code is not None:
            return code, spent
    return None, spent


def _record(
    entry: Entry, versions: Mapping[str, str], report: Record | None, error: str | None, seconds: float
) -> Record:
    report = report or {}
    hops = report.get("hops", {})
    failed = next((f"{name}: {hop['error']}" for name, hop in hops.items() if not hop["ok"]), None)
    return {
        "suite": entry.suite,
        "name": entry.name,
        "family": entry.family,
        "input": entry.inputs,
        "ok": bool(report.get("ok")) and error is None,
        "reached": bool(report.get("reached")),
        **{name: report.get(name) for name in ("macs_ratio", "params_ratio")},
        "seconds": round(seconds, 1),
        "hops": {name: hop["seconds"] for name, hop in hops.items()},
        "error": error or failed,
        "unpruned": dict(Counter(u["reason"] for u in report.get("unpruned", ()))),
        "versions": dict(versions),
        "commit": COMMIT,
    }


def _versions() -> dict[str, str]:
    found = {"code": str(CODE)}
    for name in (*LIBRARIES, *LIBRARIES_OF_MODELS):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


# ---------------------------------------------------------------- what is shown


def _line(record: Record) -> str:
    state = "green" if record["ok"] and record["reached"] else "ok, not reached" if record["ok"] else "failed"
    figures = "  ".join(_ratio(record[name]) for name in ("macs_ratio", "params_ratio"))
    tail = f"  {record['error']}" if record["error"] else ""
    return f"{record['name']:<40} {state:<15} {figures}  {record['seconds']:6.1f} s{tail}"


def _summary(records: Mapping[str, Record]) -> Iterable[str]:
    for suite in SUITES:
        of = [r for r in records.values() if r["suite"] == suite]
        ok = sum(r["ok"] for r in of)
        green = sum(r["ok"] and r["reached"] for r in of)
        yield f"{suite}: {len(of)} run, {ok} ok, {green} of them at {MACS} of the MACs"


def table(records: Mapping[str, Record]) -> str:
    """The figures as Markdown: a table a suite."""
    lines = ["# The zoo", ""]
    lines += [
        f"Every model with random weights through the probe, to {MACS} of its MACs: pruned, stored, exported, "
        "simplified, quantised and measured. Ratios are pruned over unpruned. Made by `python benchmarks/zoo.py`, "
        "several runs at once; how fast a pruned model is, is another benchmark's question (`latency_targets.py`).",
        "",
        *(f"- {line}" for line in _summary(records)),
    ]
    for suite in SUITES:
        of = sorted((r for r in records.values() if r["suite"] == suite), key=lambda r: r["name"])
        lines += ["", f"## {suite}", ""]
        lines += ["| model | family | ok | reached | MACs | parameters | s | left whole, and why | error |"]
        lines += ["|---|---|---|---|---|---|---|---|---|"]
        for r in of:
            cells = [r["name"], r["family"], _yes(r["ok"]), _yes(r["reached"])]
            cells += [_ratio(r[n]) for n in ("macs_ratio", "params_ratio")]
            cells += [f"{r['seconds']:.0f}", _whole(r["unpruned"]), _cell(r["error"] or "")]
            lines.append("| " + " | ".join(cells) + " |")
        missing = [e.name for e in entries(suite) if _key(e) not in records]
        if missing:
            lines += ["", f"Not run: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def _whole(reasons: Mapping[str, int]) -> str:
    """The commonest three reasons, with the number of layers."""
    ordered = sorted(reasons.items(), key=lambda item: -item[1])
    shown = "; ".join(f"{n} × {_cell(reason)}" for reason, n in ordered[:3])
    return shown + (f"; and {sum(n for _, n in ordered[3:])} more" if len(ordered) > 3 else "")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")[:160]


def _yes(value: bool) -> str:
    return "yes" if value else "**no**"


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(file.suffix + ".part")
    part.write_text(text)
    part.replace(file)


if __name__ == "__main__":
    main()
