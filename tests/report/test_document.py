"""report.json as untrusted input: what is refused, and how it says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deploycompress.errors import ConfigError
from deploycompress.report.document import check, read

SMALLEST: dict[str, Any] = {
    "schema": 1,
    "name": "small",
    "verdict": "pass",
    "exit_code": 0,
    "stages": [],
    "artifacts": [],
    "measurements": [],
    "gates": [],
    "best": None,
    "environment": {},
}


def test_the_keys_of_the_contract_are_enough(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(SMALLEST | {"a_later_version": [1]}), encoding="utf-8")
    assert check(read(path)).name == "small"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"[]", "it holds a list, not an object"),
        (b"\xff\xfe", "codec can't decode"),
        (b"[" * 100_000, "recursion"),
        (json.dumps(SMALLEST).replace('"environment": {}', '"seconds": NaN').encode(), "NaN is not JSON"),
        (json.dumps(SMALLEST | {"seconds": "1e999"}).encode(), "seconds: .*finite"),
        (json.dumps(SMALLEST | {"seconds": 10**400}).encode(), "seconds"),
        (json.dumps(SMALLEST | {"schema": 2}).encode(), "not a report of this version: schema"),
        (json.dumps(SMALLEST | {"verdict": "fine"}).encode(), "verdict: Input should be 'pass', 'fail'"),
        (json.dumps(SMALLEST | {"stages": {}}).encode(), r"stages: Input should be a valid tuple"),
        (json.dumps({"schema": 1}).encode(), r"name: Field required \(8 more\)"),
        (
            json.dumps(SMALLEST | {"measurements": [{"artifact": 3}]}).encode(),
            r"measurements\.0\.artifact: Input should be a valid string",
        ),
    ],
)
def test_a_broken_report_is_a_clear_error(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path} cannot be read as a report: ")
    assert str(caught.value).endswith("run the pipeline again to make a new one")


def test_a_missing_report_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist; expected the directory of a finished run"):
        read(tmp_path / "report.json")


def test_names_are_freed_of_what_no_format_can_hold() -> None:
    report = check(SMALLEST | {"name": "a\ud800b\x1b[31m\u202ec\nd"})
    assert report.name == "a�b�[31m�c d"
    failure = {"class": "StageFailed", "message": "one\x00\ntwo", "exit_code": 4}
    error = check(SMALLEST | {"error": failure}).error
    assert error is not None and error.message == "one�\ntwo"
