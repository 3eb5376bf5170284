"""What lands in artifacts/: real files, copied and compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploycompress.artifact import digest_file, read_json
from deploycompress.config.schema import PipelineConfig
from deploycompress.errors import StageFailed
from deploycompress.report.build import build
from deploycompress.report.shipping import selection, ship

Make = Callable[..., tuple[PipelineConfig, Path]]


def shipped(run_dir: Path) -> set[str]:
    return {p.relative_to(run_dir / "artifacts").as_posix() for p in (run_dir / "artifacts").rglob("*")}


def test_ships_the_compressed_files_with_manifest_and_card(make_run: Make) -> None:
    config, run_dir = make_run()
    report = build(config, run_dir)
    ship(report, run_dir)
    assert shipped(run_dir) == {
        "model.onnx",
        "model.int8.onnx",
        "manifest.json",
        "MODEL_CARD.md",
        "infer.py",
        "provenance.json",
        "mlbom.cdx.json",
    }
    manifest = read_json(run_dir / "artifacts" / "manifest.json")
    assert manifest["verdict"] == "pass"
    int8, fp32 = manifest["artifacts"]
    assert (int8["file"], int8["best"], fp32["file"], fp32["best"]) == (
        *("model.int8.onnx", True),
        *("model.onnx", False),
    )
    for entry in manifest["artifacts"]:
        copy = run_dir / "artifacts" / entry["file"]
        assert digest_file(copy) == entry["sha256"]
        assert not copy.is_symlink() and copy.stat().st_nlink == 1
    assert int8["inputs"] == {"image": {"shape": ["batch", 1, 32, 32], "dtype": "float32"}}
    assert int8["outputs"] == {"logits": {"shape": ["batch", 1024], "dtype": "float32"}}
    assert int8["labels"] == ["cat", "dog"] and int8["preprocessing"] == {"kind": "image"}
    assert int8["metrics"]["accuracy"] == pytest.approx(591 / 600)


def test_the_card_tells_what_it_is_and_how_it_was_made(make_run: Make) -> None:
    config, run_dir = make_run()
    ship(build(config, run_dir), run_dir)
    card = (run_dir / "artifacts" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert card.startswith("# digits-edge\n\nPassed. quantize is 4.50× as fast as the baseline")
    assert "| model.int8.onnx | quantize (best) | int8 | 81.9 KB | 0.192 ms | 4.50× | 98.50 % |" in card
    assert "| image | batch × 1 × 32 × 32 | float32 |" in card
    assert "4. prune: accuracy 87.22 % (validation), 19.8 % of the MACs, 21.2 % of the parameters" in card


def test_what_an_earlier_run_left_is_replaced(make_run: Make) -> None:
    config, run_dir = make_run()
    (run_dir / "artifacts").mkdir()
    (run_dir / "artifacts" / "model.fp16.onnx").write_text("old", encoding="utf-8")
    ship(build(config, run_dir), run_dir)
    assert "model.fp16.onnx" not in shipped(run_dir)
    assert not [p for p in run_dir.iterdir() if p.name.startswith(".")]


def test_a_failed_run_ships_nothing_and_takes_the_old_away(make_run: Make) -> None:
    config, run_dir = make_run(fails_at="quantize")
    (run_dir / "artifacts").mkdir()
    ship(build(config, run_dir), run_dir)
    assert not (run_dir / "artifacts").exists()


def test_an_artefact_measured_slower_than_the_baseline_stays_behind(make_run: Make) -> None:
    config, run_dir = make_run(latency_ms={"baseline": 0.5, "export": 0.3, "quantize": 0.6})
    report = build(config, run_dir)
    assert report["ships"] == [{"artifact": "export", "file": "model.onnx"}]


def test_a_file_that_changed_since_is_not_shipped(make_run: Make) -> None:
    config, run_dir = make_run()
    report = build(config, run_dir)
    (run_dir / "06-quantize" / "model.onnx").write_bytes(b"other")
    with pytest.raises(StageFailed, match=r"06-quantize/model\.onnx is not the file that was made"):
        ship(report, run_dir)
    assert not (run_dir / "artifacts").exists()


def test_a_folder_keeps_its_files_under_their_names(make_run: Make) -> None:
    """External data is found by name, so that such a model ships as the folder it is."""
    config, run_dir = make_run()
    report = build(config, run_dir)
    folder = run_dir / "05-export" / "big"
    folder.mkdir()
    (folder / "model.onnx").write_bytes((run_dir / "05-export" / "model.onnx").read_bytes())
    (folder / "model.onnx.data").write_bytes(b"weights")
    export = next(a for a in report["artifacts"] if a["id"] == "export")
    files = [[p.name, digest_file(p), p.stat().st_size] for p in sorted(folder.iterdir())]
    export |= {"path": "05-export/big", "files": files, "sha256": "f" * 64}
    report["ships"] = selection(report)
    ship(report, run_dir)
    assert {"model", "model/model.onnx", "model/model.onnx.data"} <= shipped(run_dir)


def test_a_file_that_is_no_onnx_is_not_shipped(make_run: Make) -> None:
    config, run_dir = make_run()
    report = build(config, run_dir)
    path = run_dir / "06-quantize" / "model.onnx"
    path.write_bytes(b"not onnx")
    quantize = next(a for a in report["artifacts"] if a["id"] == "quantize")
    digest = digest_file(path)
    quantize |= {"sha256": digest, "files": [["model.onnx", digest, 8]]}
    with pytest.raises(StageFailed, match="quantize cannot be shipped: "):
        ship(report, run_dir)


def entry(id: str, kind: str, precision: str, name: str) -> dict[str, Any]:
    files = [[name, "0" * 64, 1]]
    return {"id": id, "kind": kind, "precision": precision, "path": f"x/{name}", "sha256": "0" * 64} | {
        "files": files
    }


def test_one_file_for_each_kind_and_precision() -> None:
    report = {
        "verdict": "pass",
        "best": {"artifact": "b", "runtime": "onnxruntime"},
        "baseline": "base",
        "measurements": [],
        "artifacts": [
            entry("base", "onnx", "fp32", "model.onnx"),
            entry("a", "onnx", "fp32", "model.onnx"),
            entry("b", "onnx", "fp32", "model.onnx"),
            entry("c", "onnx", "fp32", "model.onnx"),
            entry("half", "onnx", "fp16", "model.onnx"),
            entry("engine", "engine", "int8", "model.engine"),
            entry("weights", "checkpoint", "fp32", "model.safetensors"),
        ],
    }
    files = {s["artifact"]: s["file"] for s in selection(report)}
    assert files == {"b": "model.onnx", "half": "model.fp16.onnx", "engine": "model.engine"}
    report["best"] = None
    assert "c" in {s["artifact"] for s in selection(report)}
    # What ONNX Runtime wrote for one processor does not take the name of the portable file.
    report["artifacts"][5] = entry("engine", "engine", "fp32", "model.optimized.onnx")
    assert {"artifact": "engine", "file": "model.optimized.onnx"} in selection(report)
    # A network ships where it is what was measured at the target.
    row = {"artifact": "weights", "at_target": True, "latency_ms": {"p50": 1.0}, "speedup": None}
    report["measurements"] = [row]
    assert {"artifact": "weights", "file": "model.safetensors"} in selection(report)
