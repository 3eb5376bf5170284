"""The file that travels."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from deploycompress.devices.bundle import agent, bundle
from deploycompress.errors import ConfigError
from deploycompress.registry import RUNTIMES


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_is_one_file_for_python_3_8_with_nothing_of_ours(runtime: str) -> None:
    tree = ast.parse(bundle(runtime), feature_version=(3, 8))
    imported = [ast.unparse(n) for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))]
    assert not [line for line in imported if "deploycompress" in line]
    allowed = {"numpy", "onnxruntime", "openvino", "tensorrt", "torch", "__future__"} | set(
        sys.stdlib_module_names
    )
    assert {line.split()[1].split(".")[0] for line in imported} <= allowed


def test_the_agent_is_one_file_for_python_3_8_with_the_standard_library_alone() -> None:
    tree = ast.parse(agent(), feature_version=(3, 8))
    imported = [ast.unparse(n) for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))]
    assert {line.split()[1].split(".")[0] for line in imported} <= set(sys.stdlib_module_names)


def test_runs_from_an_empty_folder_in_an_isolated_interpreter(tmp_path: Path) -> None:
    runner, job = tmp_path / "runner.py", tmp_path / "job"
    job.mkdir()
    runner.write_text(bundle("onnxruntime", "openvino"))
    document = {"do": "measure", "files": {}, "feed": {}, "candidates": [], "blocks": 1, "deadline_s": 10}
    document |= {"extra_blocks": 3, "fewest_blocks": 1, "enough_s": None}
    (job / "job.json").write_text(json.dumps(document))
    ended = subprocess.run(
        [sys.executable, "-I", str(runner), str(job)],
        cwd="/",
        env={},
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    assert ended.returncode == 0, ended.stderr.decode()
    result = json.loads((job / "result.json").read_text())
    assert (result["error"], result["candidates"]) == (None, {})
    assert len(result["states"]) == 2


def test_a_runtime_in_a_file_of_the_users_travels_too(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text('"""A runtime."""\nimport json\n\n\nclass Mine:\n    pass\n')
    assert f"{str(file) + ':Mine'!r}: Mine" in bundle(f"{file}:Mine")
    with pytest.raises(ConfigError, match=r"the file .*other\.py cannot be read: No such file"):
        bundle(f"{tmp_path / 'other.py'}:Mine")


def test_refuses_what_cannot_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "clashing_runtime.py").write_text("def check(path):\n    pass\n\nclass R:\n    pass\n")
    with pytest.raises(ConfigError, match=r"both define check; rename one of them"):
        bundle("clashing_runtime:R")
    (tmp_path / "homesick_runtime.py").write_text("from deploycompress import errors\n\nclass R:\n    pass\n")
    with pytest.raises(ConfigError, match="travels to devices and must not import deploycompress"):
        bundle("homesick_runtime:R")
    with pytest.raises(
        ConfigError, match="unknown runtime 'onxruntime'; known: onnxruntime, openvino, tensorrt"
    ):
        bundle("onxruntime")
    with pytest.raises(ConfigError, match="the module not_there is not to be found"):
        bundle("not_there:R")
