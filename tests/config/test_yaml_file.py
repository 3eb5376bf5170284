"""YAML 1.2 with positions: what is read, and what is refused with its line and column."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploycompress.config.yaml_file import MAX_BYTES, load, parse
from deploycompress.config.yaml_text import to_yaml
from deploycompress.errors import ConfigError


def test_yaml_1_2_and_not_1_1() -> None:
    text = "{a: on, b: 1e-3, c: 0x1f, d: 010, e: true, f: ~, g: '3', h: 2020-01-01, i: 50%, j: .5, no: 1}"
    assert parse(text, "p").data == {
        "a": "on", "b": 1e-3, "c": 31, "d": 10, "e": True, "f": None, "g": "3", "h": "2020-01-01", "i": "50%",
        "j": 0.5, "no": 1,
    }  # fmt: skip


def test_places_of_keys_and_values() -> None:
    document = parse("a: &x\n  - 1\n  - k: v\nb: *x\n", "p.yaml")
    assert document.data == {"a": [1, {"k": "v"}], "b": [1, {"k": "v"}]}
    assert document.place(("a",)).key == "p.yaml:1:1"
    assert document.place(("a", 1, "k")).key == "p.yaml:3:5"
    assert document.place(("a", 1, "k")).value == "p.yaml:3:8"
    assert document.place(("b",)).value == "p.yaml:4:4"
    assert document.place(("b", 1, "k")).value == "p.yaml:3:8"  # an alias's parts are where they are written
    assert document.place(("b", 1, "k", "x")).written == "b.1.k.x"  # the nearest place there is


def test_every_duplicate_key_is_reported() -> None:
    document = parse("a: 1\nb: {c: 1, c: 2}\na: 3\n", "p")
    assert [str(p) for p in document.problems] == [
        "p:2:11: b.c: duplicate key 'c'; it already stands in line 2, column 5",
        "p:3:1: a: duplicate key 'a'; it already stands in line 1, column 1",
    ]
    assert document.data == {"a": 1, "b": {"c": 1}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1,", "p:1:7: not YAML: while parsing a flow node expected the node content"),
        ("a: b: c", "p:1:5: not YAML: mapping values are not allowed here; check the indentation"),
        ("a:\n\t- b", "p:2:1: not YAML: while scanning for the next token found character '\\t'"),
        ("a: @b", "cannot start any token; put the text in quotes"),
        (
            "a: 'b",
            "p:1:6: not YAML: while scanning a quoted scalar found unexpected end of stream; a quote is",
        ),
        ("a: 1\n b: 2", "p:2:3: not YAML"),
        ("a: \x01", "p:1:4: not YAML: the character '\\x01' is not allowed"),
        ("a: !!python/object:os.system x", "p:1:4: the tag tag:yaml.org,2002:python/object:os.system is not"),
        ("a: !include x", "p:1:4: the tag !include is not allowed"),
        ("!x a: 1", "p:1:1: a key must be a plain word"),
        ("a: &a [*a]", "p:1:8: the alias *a is inside itself"),
        ("a: *n", "p:1:4: the alias *n was not defined before it"),
        ("", "p:1:1: the file is empty; `deploycompress init` writes one"),
        ("# only a comment\n", "p:1:1: the file is empty"),
        ("a: 1\n---\nb: 2", "p:2:1: a second document begins here"),
        ("x: .inf", "p:1:4: received .inf, expected a finite number"),
        ("x: 1e999", "p:1:4: received 1e999, expected a finite number"),
        ("<<: {a: 1}", "p:1:1: merge keys (<<) are not part of YAML 1.2"),
        ("? [1]\n: 2", "p:1:3: a key must be a plain word"),
        ("[" * 100 + "]" * 100, "nested more than 64 deep"),
    ],
)
def test_refused_with_its_place(text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "p")
    assert expected in str(caught.value)
    assert len(caught.value.problems) == 1


def test_aliases_are_bounded() -> None:
    bomb = "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
    for inner, outer in zip("abcdefgh", "bcdefghi", strict=True):
        bomb += f"{outer}: &{outer} [{','.join(['*' + inner] * 10)}]\n"
    started = time.process_time()
    with pytest.raises(ConfigError, match="more than 20000 values, aliases written out"):
        parse(bomb, "bomb")
    assert time.process_time() - started < 5
    deep = "a: &a [1]\n" + "".join(f"b{i}: &b{i} [*{'a' if not i else f'b{i - 1}'}]\n" for i in range(70))
    with pytest.raises(ConfigError, match="nested more than 64 deep"):
        parse(deep, "deep")


def test_files_that_cannot_be_read(folder: Path) -> None:
    def message(path: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            load(path)
        return str(caught.value)

    assert "pipeline.yaml does not exist; `deploycompress init` writes one" in message(Path("pipeline.yaml"))
    (folder / "pipeline.yml").write_text("a: 1")
    assert "pipeline.yaml does not exist; did you mean pipeline.yml?" in message(Path("pipeline.yaml"))
    (folder / "sentiment.yaml").write_text("a: 1")
    assert "sentimnt.yml does not exist; did you mean sentiment.yaml?" in message(Path("sentimnt.yml"))
    far = message(Path("nothere.yaml"))
    assert far.endswith("nothere.yaml does not exist; . has pipeline.yml, sentiment.yaml")
    assert "neither does the folder nowhere" in message(Path("nowhere/pipeline.yaml"))
    assert "cannot be read: Is a directory; expected a YAML file" in message(folder)
    (folder / "latin.yaml").write_bytes("a: 1\nb: caf\xe9\n".encode("latin-1"))
    assert "latin.yaml:2:7: byte 0xe9 is not UTF-8 text" in message(Path("latin.yaml"))
    (folder / "big.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    assert "more than 1048576 bytes" in message(Path("big.yaml"))
    if os.geteuid():  # root may read everything
        (folder / "pipeline.yml").chmod(0)
        assert "Permission denied" in message(Path("pipeline.yml"))


def test_a_byte_order_mark_is_no_key(folder: Path) -> None:
    (folder / "bom.yaml").write_bytes(b"\xef\xbb\xbfname: x\n")
    assert load(Path("bom.yaml")).data == {"name": "x"}


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs", "Cc"])),
    st.sampled_from(["1e3", "0o17", ".5", "+1", "1_000", "true", "~", "", "null", "1:30", "=", "<<", "- x", "#", "a: b"]),
)  # fmt: skip
plain = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text("abc:-#1. ", min_size=1, max_size=8), inner, max_size=4),
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(["a", "1", "true", "~"]), plain))
def test_what_is_written_reads_back(data: dict[str, Any]) -> None:
    assert parse(to_yaml(data), "p").data == data


def test_text_that_looks_like_something_else_is_quoted() -> None:
    texts = [
        "1e3",
        ".1e0",
        ".5",
        "0o17",
        "0x1F",
        "+1",
        "1.",
        "true",
        "null",
        "~",
        "",
        "-.inf",
        ".nan",
        "1_0",
        "- a",
        "a: b",
        "#",
    ]
    assert parse(to_yaml({"all": texts}), "p").data == {"all": texts}


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from("ab:-[]{}&*!|>'\"%@#?, \n\t1.~<\\x\x85é"), max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse(text, "p")
    except ConfigError as error:
        assert all(problem.where.startswith("p:") for problem in error.problems)
