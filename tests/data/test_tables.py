"""Tables of numbers and categories, and of sentences: columns, splits, vocabularies, and what is refused."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch

from deploycompress.errors import ConfigError

ROWS = """age,city,paid,note
20,Rome,yes,a
30,Oslo,no,b
40,Rome,no,c
50,Bern,yes,d
"""
BOTH = {"numbers": ["batch", 1], "ids": (["batch", 1], "int64")}
COLUMNS = {"numeric": ("age",), "categorical": ("city",), "label": "paid"}
TOKENS = {"tokens": (["batch", 6], "int64")}
PLAIN = {"header": False, "text": 0, "label": 1, "length": 6, "min_count": 1}


@pytest.fixture
def table(tmp_path):
    def make(text=ROWS, name="train.csv"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path

    return make


def whole(data, split):
    batches = list(data.loader(split))
    return {n: torch.cat([b.inputs[n] for b in batches]) for n in batches[0].inputs}, torch.cat(
        [b.targets for b in batches]
    )


def refused(data, split="train"):
    with pytest.raises(ConfigError) as caught:
        list(data.loader(split))
    return str(caught.value)


# ---------------------------------------------------------------- csv


def test_numbers_are_standardised_and_categories_numbered_by_train_alone(opened, table):
    table("age,city,paid,note\n100,Bern,no,x\n35,Kiev,yes,y\n", "test.csv")
    data = opened("csv", BOTH, root=table(), validation=0.5, **COLUMNS)
    inputs, labels = whole(data, "test")
    std = (sum((a - 35) ** 2 for a in (20, 30, 40, 50)) / 4) ** 0.5
    assert inputs["numbers"][:, 0].tolist() == pytest.approx([(100 - 35) / std, 0])
    assert inputs["ids"][:, 0].tolist() == [1, 0], (
        "Bern, Oslo, Rome are 1, 2, 3; what train does not have is 0"
    )
    assert labels.tolist() == [0, 1]
    parts = [whole(data, split)[1] for split in ("train", "val")]
    assert [sorted(p.tolist()) for p in parts] == [[0, 1], [0, 1]]


def test_one_kind_of_column_is_one_input_and_a_number_can_be_the_label(opened, table):
    data = opened(
        "csv",
        {"x": ["batch", 1]},
        root=table() / "train.csv",
        numeric=("age",),
        label="age2",
        label_kind="number",
    )
    assert "has no column 'age2'; did you mean 'age'? It has age, city, paid, note" in refused(data)
    text = "a,b\n" + "".join(f"{i},{i / 2}\n" for i in range(10))
    data = opened(
        "csv", {"x": ["batch", 1]}, root=table(text), numeric=("a",), label="b", label_kind="number"
    )
    assert whole(data, "val")[1].dtype == torch.float32


def test_a_column_may_say_the_split(opened, table):
    rows = "x,y,part\n" + "".join(f"{i},{i % 2},{p}\n" for i, p in enumerate(("train", "dev", "test") * 4))
    data = opened(
        "csv", {"x": ["batch", 1]}, root=table(rows), numeric=("x",), label="y", split_column="part"
    )
    assert [len(whole(data, split)[1]) for split in ("train", "val", "test")] == [4, 4, 4]
    none = opened("csv", {"x": ["batch", 1]}, root=table(rows.replace("train", "dev")), numeric=("x",), label="y", split_column="part")  # fmt: skip
    assert "no row is in the train split" in refused(none)
    wrong = opened("csv", {"x": ["batch", 1]}, root=table(rows.replace("dev", "holdout")), numeric=("x",), label="y", split_column="part")  # fmt: skip
    assert "train.csv:3, column 'part': received 'holdout'; expected train, val or test" in refused(wrong)


def test_missing_values_are_named_or_filled(opened, table):
    gaps = ROWS.replace("30,Oslo", ",Oslo").replace("50,Bern", "NA,")
    assert "train.csv:3, column 'age': the value is missing (2 such rows)" in refused(
        opened("csv", BOTH, root=table(gaps), **COLUMNS)
    )
    assert "column 'city': the value is missing (1 such rows)" in refused(
        opened("csv", BOTH, root=table(ROWS.replace("Bern", "")), **COLUMNS)
    )
    data = opened("csv", BOTH, root=table(gaps), missing="fill", validation=0.5, **COLUMNS)
    numbers = torch.cat([whole(data, s)[0]["numbers"] for s in ("train", "val")])[:, 0]
    ids = torch.cat([whole(data, s)[0]["ids"] for s in ("train", "val")])[:, 0]
    assert sorted(numbers.tolist()) == pytest.approx([-1, 0, 0, 1]) and sorted(ids.tolist()) == [0, 1, 2, 2]


def test_counts_are_taken_by_their_logarithm_and_rare_categories_are_unknown(opened, table):
    rows = "age,city,paid\n0,Rome,yes\n-99,Rome,no\n999,Oslo,yes\n99,,no\n"
    table(rows, "test.csv")
    data = opened("csv", BOTH, root=table(rows), logarithm=True, min_count=2, missing="fill", **COLUMNS)
    inputs, _ = whole(data, "test")
    logs = torch.tensor([0.0, -2, 3, 2])  # of 10: sign(x) log(1 + |x|)
    wanted = (logs - logs.mean()) / logs.std(correction=0)
    assert inputs["numbers"][:, 0].tolist() == pytest.approx(wanted.tolist(), abs=1e-6)
    assert inputs["ids"][:, 0].tolist() == [1, 1, 0, 0], "Oslo is in one row"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ROWS.replace("40,", "forty,"), "train.csv:4, column 'age': received 'forty'; expected a number"),
        (ROWS.replace("40,", "inf,"), "column 'age': received 'inf'; expected a finite number"),
        (ROWS.replace("yes", ""), "train.csv:2, column 'paid': no label (2 such rows)"),
        (ROWS.replace("yes", "no"), "column 'paid': received one class, 'no'; expected at least two"),
        (ROWS.replace("Rome,no,c", "Rome"), "train.csv:4: received 2 cells; expected 4"),
        (ROWS.replace("note", "age"), "names a column twice"),
        ("age,city,paid\n", "train.csv has no rows; expected at least one below its header"),
        ("", "train.csv has no rows"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(opened, table, text, message):
    assert message in refused(opened("csv", BOTH, root=table(text), **COLUMNS))


def test_files_that_are_not_there(opened, table, tmp_path):
    assert "needs data.root: a file ending in .csv" in refused(opened("csv", BOTH, **COLUMNS))
    table(ROWS, "rows.csv")
    assert "no train file" in refused(opened("csv", BOTH, root=tmp_path, **COLUMNS))
    (tmp_path / "train.csv").write_bytes(b"age\n\xff\xfe\n")
    assert "cannot be read as a table in UTF-8" in refused(opened("csv", BOTH, root=tmp_path, **COLUMNS))
    table(ROWS, "train.tsv")
    assert "both train.csv and train.tsv are the train split" in refused(
        opened("csv", BOTH, root=tmp_path, **COLUMNS)
    )
    with pytest.raises(ValueError, match="a column is named twice"):
        opened("csv", BOTH, numeric=("age", "paid"), label="paid")
    with pytest.raises(ValueError, match="no columns to predict from"):
        opened("csv", BOTH)


# ---------------------------------------------------------------- text


def test_words_are_numbered_by_their_frequency_in_train(opened, table):
    table('the film , the film\t1\n" bad\t0\n', "train.tsv")
    table("THE film unseen\t1\nbad bad bad bad bad bad bad\t0\n", "test.tsv")
    root = table("bad\t0\nfilm\t1\n", "dev.tsv")
    inputs, labels = whole(opened("text", TOKENS, root=root, **PLAIN), "test")
    # film and the twice, then the signs before the word in the order of their characters
    assert inputs["tokens"].tolist() == [[3, 2, 1, 0, 0, 0], [6] * 6] and labels.tolist() == [1, 0]
    rare = opened("text", TOKENS, root=root, **PLAIN | {"min_count": 2})
    assert whole(rare, "test")[0]["tokens"].tolist() == [[3, 2, 1, 0, 0, 0], [1] * 6]
    few = opened("text", TOKENS, root=root, **PLAIN | {"vocabulary": 3})
    assert whole(few, "test")[0]["tokens"][0].tolist() == [1, 2, 1, 0, 0, 0]


def test_a_batch_as_long_as_its_longest_sentence_comes_with_its_mask(opened, table):
    root = table("a b c\t0\nd\t1\n", "train.tsv")
    table("a b c d e f g\t0\na b\t1\n", "test.tsv")
    inputs = {"ids": (["batch", "length"], "int64"), "mask": (["batch", "length"], "int64")}
    data = opened("text", inputs, root=root, mask=True, padding="longest", **PLAIN)
    tensors, _ = whole(data, "test")
    assert tensors["ids"].tolist() == [[2, 3, 4, 5, 1, 1], [2, 3, 0, 0, 0, 0]]
    assert tensors["mask"].tolist() == [[1] * 6, [1, 1, 0, 0, 0, 0]]
    assert list(next(iter(data.loader("val"))).inputs["ids"].shape) in ([1, 3], [1, 1])
    assert "received a tuple of 3; expected" in refused(opened("text", TOKENS, root=root, mask=True, **PLAIN))


def test_a_tokenizer_file_of_the_users(opened, table, tmp_path):
    if importlib.util.find_spec("tokenizers") is None:
        pytest.skip("tokenizers is not installed")
    from tokenizers import Tokenizer, models, pre_tokenizers

    own = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 7, "good": 3, "film": 4}, unk_token="[UNK]"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    own.enable_padding(length=9)
    (tmp_path / "own").mkdir()
    own.save(str(tmp_path / "own" / "tokenizer.json"))
    root = table("good film\t1\nno film\t0\n", "train.tsv")
    table("good\t1\nno film\t0\n", "test.tsv")
    data = opened("text", TOKENS, root=root, tokenizer=tmp_path / "own", **PLAIN)
    assert whole(data, "test")[0]["tokens"].tolist() == [[3, 7, 7, 7, 7, 7], [0, 4, 7, 7, 7, 7]]
    digest = data.digest
    changed = json.loads((tmp_path / "own" / "tokenizer.json").read_text())
    changed["model"]["vocab"]["film"] = 5
    (tmp_path / "own" / "tokenizer.json").write_text(json.dumps(changed))
    assert opened("text", TOKENS, root=root, tokenizer=tmp_path / "own", **PLAIN).digest != digest
    (tmp_path / "own" / "tokenizer.json").write_text("{}")
    assert "tokenizer.json cannot be read" in refused(
        opened("text", TOKENS, root=root, tokenizer=tmp_path / "own" / "tokenizer.json", **PLAIN)
    )


def test_a_long_sentence_keeps_the_mark_at_its_end(opened, table, tmp_path):
    """As the weights of a BERT were trained."""
    if importlib.util.find_spec("tokenizers") is None:
        pytest.skip("tokenizers is not installed")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": 3, "good": 4}
    own = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    own.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    own.save(str(tmp_path / "tokenizer.json"))
    root = table("good " * 20 + "\t1\ngood\t0\n", "train.tsv")
    table("good " * 20 + "\t1\ngood\t0\n", "test.tsv")
    data = opened("text", TOKENS, root=root, tokenizer=tmp_path / "tokenizer.json", **PLAIN)
    assert whole(data, "test")[0]["tokens"].tolist() == [[1, 4, 4, 4, 4, 2], [1, 4, 2, 3, 3, 3]]


def test_a_cell_may_hold_a_document(opened, table):
    root = table("word " * 50_000 + "\t1\nword\t0\n", "train.tsv")
    table("word " * 50_000 + "\t1\nword\t0\n", "test.tsv")
    assert whole(opened("text", TOKENS, root=root, **PLAIN), "test")[0]["tokens"].shape == (2, 6)


def test_a_sentence_or_a_class_that_is_missing(opened, table):
    assert "train.tsv:2, column '0': no text (1 such rows)" in refused(
        opened("text", TOKENS, root=table("a\t1\n \t0\n", "train.tsv"), **PLAIN)
    )
    assert "train.tsv:1, column '1': no label" in refused(
        opened("text", TOKENS, root=table("a\t\nb\t0\n", "train.tsv"), **PLAIN)
    )
    table("a\t1\nb\t0\n", "train.tsv")
    assert "split test: 1 classes, where train has 2: '0' missing" in refused(
        opened("text", TOKENS, root=table("a\t1\n", "test.tsv"), **PLAIN)
    )
