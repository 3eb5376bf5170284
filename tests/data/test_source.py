"""A user's own data: every form that is taken, and what is said about those that are not."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest
import torch

from deploycompress.config.schema import DataConfig
from deploycompress.contracts import Batch
from deploycompress.data.samples import Images
from deploycompress.data.source import SourceData
from deploycompress.errors import ConfigError

X = np.arange(20 * 64, dtype=np.float32).reshape(20, 1, 8, 8)
Y = np.arange(20) % 2


class Samples:
    """A map-style data set with its classes, as torchvision's are."""

    def __init__(self, x=X, y=Y, form=lambda x, y: (x, y)):
        self.x, self.y, self.form = x, y, form
        self.targets = list(y)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.form(self.x[i], self.y[i])


class Batches:
    """Batches without random access, as a DataLoader gives them."""

    def __init__(self, *batches):
        self.batches, self.epochs = batches, []

    def __iter__(self):
        return iter(self.batches)

    def set_epoch(self, epoch):
        self.epochs.append(epoch)


@pytest.fixture
def source(images, tmp_path, monkeypatch):
    """``source(function, **options)`` -> data of a user's module that holds this function."""
    module = type(sys)("own_data")
    module.__file__ = str(tmp_path / "own_data.py")
    (tmp_path / "own_data.py").write_text("# the code\n")
    monkeypatch.setitem(sys.modules, "own_data", module)

    def make(function, model=images, few=False, classes=True, **options):
        function.__module__ = "own_data"
        module.load = function
        return SourceData(
            DataConfig(source="own_data:load", **({"batch_size": 8} | options)),
            model,
            0,
            few=few,
            classes=classes,
        )

    return make


def refused(data, split="train", epoch=None):
    with pytest.raises(ConfigError) as caught:
        list(data.loader(split, epoch))
    return str(caught.value)


@pytest.mark.parametrize(
    "form",
    [
        lambda x, y: (x, y),
        lambda x, y: (torch.from_numpy(x), int(y)),
        lambda x, y: {"image": x, "label": y, "path": "a.png"},
        lambda x, y: ({"image": x}, y),
        lambda x, y: Batch({"image": torch.from_numpy(x)}, torch.tensor(y), 1),
    ],
    ids=["tuple", "tensors", "dict", "inputs-dict", "batch"],
)
def test_a_map_style_data_set_in_every_form(source, form):
    data = source(lambda: {"train": Samples(form=form), "test": Samples(form=form)})
    batches = list(data.loader("test"))
    assert [b.size for b in batches] == [8, 8, 4]
    assert torch.equal(torch.cat([b.inputs["image"] for b in batches]), torch.from_numpy(X))
    assert torch.equal(torch.cat([b.targets for b in batches]), torch.from_numpy(Y))


def test_names_of_classes_are_told_where_there_are_some(source):
    class Named(Samples):
        classes = ("cat", "dog")

    assert source(lambda: {"train": Named()}).interface == {"labels": ["cat", "dog"]}  # of a part of it too
    assert source(lambda: {"train": Samples()}).interface == {}


def test_inputs_alone_are_unlabelled(source):
    batch = next(iter(source(lambda: {"test": list(X)}).loader("test")))
    assert batch.targets is None and batch.size == 8


def test_several_inputs_go_by_order_or_name(source, declared):
    model = declared(a=(["batch", 2], "float32"), b=(["batch", 3], "int64", 9))
    a, b = np.zeros(2, np.float32), np.full(3, 8)
    for sample in ((a, b, 1), ((a, b), 1), {"b": b, "a": a, "targets": 1}):
        batch = next(iter(source(lambda sample=sample: {"test": [sample] * 3}, model).loader("test")))
        assert {k: tuple(v.shape) for k, v in batch.inputs.items()} == {"a": (3, 2), "b": (3, 3)}
        assert batch.targets.tolist() == [1, 1, 1]


def test_targets_that_cannot_be_stacked_become_a_list(source):
    boxes = [(X[0], {"boxes": torch.zeros(n, 4)}) for n in (1, 2)]
    batch = next(iter(source(lambda: {"test": boxes}).loader("test")))
    assert [t["boxes"].shape[0] for t in batch.targets] == [1, 2]


def test_a_batch_of_samples_in_a_list_of_their_own_is_stacked(source):
    """As the collate function of torchvision's detection examples gives them: tuple(zip(*samples))."""
    boxes = [{"boxes": torch.zeros(n, 4)} for n in (1, 2, 1)]
    batches = Batches((tuple(torch.from_numpy(X[:3])), tuple(boxes)), ([torch.from_numpy(X[3])], [boxes[0]]))
    first, second = source(lambda: {"test": batches}).loader("test")
    assert torch.equal(first.inputs["image"], torch.from_numpy(X[:3])) and first.size == 3
    assert [t["boxes"].shape[0] for t in first.targets] == [1, 2, 1]
    assert second.inputs["image"].shape == (1, 1, 8, 8) and second.size == 1


def test_a_target_for_each_head_is_stacked_by_its_name(source):
    heads = [(X[i], {"kind": i % 3, "size": np.float32(i)}) for i in range(4)]
    batch = next(iter(source(lambda: {"test": heads}).loader("test")))
    assert batch.targets["kind"].tolist() == [0, 1, 2, 0] and batch.targets["size"].dtype == torch.float32
    first = batch.rows(1, 3)
    assert first.targets["kind"].tolist() == [1, 2] and len(first.inputs["image"]) == first.size == 2
    assert batch.rows(3, 8).size == 1


def test_a_test_split_is_cut_where_a_share_is_given_and_is_no_other_splits(source):
    with pytest.raises(ConfigError, match="split test: there is none"):
        source(lambda: {"train": Samples()}).loader("test")
    data = source(lambda: {"train": Samples()}, test=0.2, validation=0.25)
    parts = {
        s: torch.cat([b.inputs["image"][:, 0, 0, 0] for b in data.loader(s)]).tolist()
        for s in ("train", "val", "test")
    }
    assert [len(part) for part in parts.values()] == [12, 4, 4]
    assert sorted(value for part in parts.values() for value in part) == X[:, 0, 0, 0].tolist()
    given = source(lambda: {"train": Samples(), "test": Samples()}, test=0.2)
    assert sum(b.size for b in given.loader("test")) == 20


def test_splits_must_have_the_same_classes_unless_that_is_allowed(source):
    def few():
        return {"train": Samples(), "val": Samples(), "test": Samples(X[:4], Y[:4] * 0)}

    assert "split test: 1 classes, where train has 2: 1 missing; expected the same" in refused(source(few))
    assert source(few, allow_missing_classes=True).loader("test")
    more = {"train": Samples(), "val": Samples(y=np.arange(20))}
    text = refused(source(lambda: more), "val")
    assert "split val: 20 classes, where train has 2: 2, 3, 4, 5, 6 and 13 more not in train" in text


def test_whole_numbers_that_are_no_classes_may_differ_from_split_to_split(source):
    """As the ages that a regression learns; a split is cut from them at random."""

    def ages():
        return {"train": Samples(y=np.arange(20)), "test": Samples(X[:4], np.arange(30, 34))}

    assert "expected the same classes in every split" in refused(source(ages), "test")
    data = source(ages, classes=False, validation=0.5)
    assert [batch.targets.tolist() for batch in data.loader("test")] == [[30, 31, 32, 33]]
    halves = {"train": Samples(y=Y), "test": Samples()}
    cut = [b.targets.numpy() for b in source(lambda: halves, classes=False, validation=0.5).loader("val")]
    assert np.bincount(np.concatenate(cut)).tolist() != [5, 5], "not by class"


def test_validation_is_cut_by_class_and_never_overlaps(source):
    data = source(lambda: {"train": Samples()}, validation=0.3)
    train, val = (
        torch.cat([b.inputs["image"][:, 0, 0, 0] for b in data.loader(s)]).tolist() for s in ("train", "val")
    )
    assert len(val) == 6 and sorted(train + val) == X[:, 0, 0, 0].tolist()
    assert torch.bincount(torch.cat([b.targets for b in data.loader("val")])).tolist() == [3, 3]


def test_an_iterable_of_batches_is_passed_on(source):
    batches = Batches((X[:8], Y[:8]), {"image": torch.from_numpy(X[8:]), "targets": torch.from_numpy(Y[8:])})
    data = source(lambda: {"train": batches, "val": batches}, calibration=5)
    assert [b.size for b in data.loader("train", epoch=3)] == [8, 12] and batches.epochs == [3]
    assert len(data.loader("train")) == 2
    assert [b.size for b in data.loader("calibration")] == [5]
    few = source(lambda: {"train": batches, "val": batches}, few=True)
    assert [b.size for b in few.loader("val")] == [8, 8] and len(few.loader("val")) == 2


def test_what_a_thread_may_read_is_of_our_own(source):
    ours = Images(X.astype(np.float32), Y, prepare=lambda images: images)
    assert source(lambda: {"train": ours, "val": ours}).loader("train", epoch=0).independent
    assert source(lambda: {"train": ours}, validation=0.5).loader("train", epoch=0).independent
    theirs = {"train": Samples(), "val": Samples()}
    assert not source(lambda: theirs).loader("train", epoch=0).independent


def test_an_iterable_that_does_not_know_its_length_is_counted(source):
    """As torch's own loader over an iterable data set, which has the method and raises in it."""

    class Lines(torch.utils.data.IterableDataset):
        def __iter__(self):
            return zip(X, Y, strict=True)

    lines = torch.utils.data.DataLoader(Lines(), batch_size=8)
    with pytest.raises(TypeError):
        len(lines)
    data = source(lambda: {"train": lines, "val": lines})
    assert [b.size for b in data.loader("train", epoch=0)] == [8, 8, 4]
    assert len(data.loader("train", epoch=0)) == 3


def test_the_first_training_samples_are_of_all_classes_also_where_they_lie_in_order(source):
    """Batch statistics are estimated on the first ones."""
    x, y = np.concatenate([X] * 10), np.repeat([0, 1], 100)
    data = source(lambda: {"train": Samples(x, y), "val": Samples()})
    first = next(iter(data.loader("train"))).targets.tolist()
    assert {0, 1} == set(first) and first == next(iter(data.loader("train"))).targets.tolist()
    assert sorted(t for b in data.loader("train") for t in b.targets.tolist()) == y.tolist()


def test_a_whole_batch_at_once_with_its_own_generator(source):
    class Quick:
        def __len__(self):
            return 20

        def batch(self, indices, rng):
            noise = 0 if rng is None else rng.normal(size=(len(indices), 1, 8, 8))
            return (X[indices] + noise).astype(np.float32), Y[indices]

    data = source(lambda: {"train": Quick(), "val": Quick()})
    plain = torch.cat([batch.inputs["image"] for batch in data.loader("train")])
    assert sorted(plain[:, 0, 0, 0].tolist()) == X[:, 0, 0, 0].tolist()
    first, again = (next(iter(data.loader("train", epoch=1))).inputs["image"] for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first, first.round())


def test_a_share_of_a_batch_is_all_that_is_read_for_it(source):
    seen = []

    class Quick:
        def __len__(self):
            return 20

        def batch(self, indices, rng):
            seen.append((indices.tolist(), rng.random()))
            return X[indices], Y[indices]

    loader = source(lambda: {"train": Quick(), "val": Quick()}).loader("train", epoch=0)
    list(loader)
    whole, seen[:] = list(seen), []
    sizes = [len(indices) for indices, _ in whole]
    assert sizes == [8, 8, 4]
    for half in (0, 1):
        found = list(loader.shares(1, lambda size, half=half: (size * half // 2, size * (half + 1) // 2)))
        assert [(share.size, size) for share, size in found] == [(4, 8), (2, 4)]
    (first, number), _, (second, other), _ = seen
    assert first + second == whole[1][0] and number == whole[1][1] != other
    seen.clear()
    assert list(loader.shares(2, lambda size: (size, size))) == [(None, 4)] and not seen


def test_a_stream_is_taken_up_in_its_midst_with_the_batches_it_would_have_had(source):
    class Drawn:
        def __iter__(self):
            for at in range(0, 20, 4):
                yield (X[at : at + 4] + np.random.rand()).astype(np.float32), Y[at : at + 4]

    loader = source(lambda: {"train": Drawn(), "val": Samples()}).loader("train", epoch=0)
    every = [batch.inputs["image"] for batch in loader]
    assert len(every) == 5
    later = [(share.inputs["image"], size) for share, size in loader.shares(3, lambda size: (1, 3))]
    assert [size for _, size in later] == [4, 4]
    assert all(torch.equal(image, whole[1:3]) for (image, _), whole in zip(later, every[3:], strict=True))


def test_a_data_set_that_draws_at_random_gives_the_same_epoch_again_and_disturbs_nobody(source):
    class Noisy(Samples):
        def __getitem__(self, i):
            noise = torch.rand(1).item() + random.random() + np.random.rand()
            return np.full_like(X[i], noise), Y[i]

    data = source(lambda: {"train": Noisy(), "val": Noisy()})
    torch.manual_seed(5)
    undisturbed = torch.rand(1)
    torch.manual_seed(5)
    first = [b.inputs["image"] for b in data.loader("train", epoch=0)]
    assert torch.equal(torch.rand(1), undisturbed)
    again = [b.inputs["image"] for b in data.loader("train", epoch=0)]
    other = [b.inputs["image"] for b in data.loader("train", epoch=1)]
    assert all(map(torch.equal, first, again)) and not torch.equal(first[0], other[0])


def test_args_and_root_are_passed_as_keywords(source, tmp_path):
    seen = {}

    def load(root, size):
        seen.update(root=root, size=size)
        return {"train": Samples()}

    source(load, args={"size": 8}, root=tmp_path).loader("train")
    assert seen == {"root": tmp_path, "size": 8}


def test_the_digest_of_a_function_is_its_fingerprint_else_its_code_and_version(source, tmp_path):
    def load():
        return {}

    plain = source(load).digest
    assert source(load, version="2").digest != plain
    (tmp_path / "own_data.py").write_text("# other code\n")
    assert source(load).digest != plain
    load.fingerprint = "v1"
    marked = source(load).digest
    (tmp_path / "own_data.py").write_text("# and other code again\n")
    assert source(load).digest == marked
    load.fingerprint = lambda: "v2"
    assert source(load).digest != marked


# ---------------------------------------------------------------- what is refused


def test_a_function_that_fails_is_named_with_its_arguments(source):
    def load(folder):
        raise FileNotFoundError(f"no {folder}")

    text = refused(source(load, args={"folder": "images"}))
    assert text == "data source own_data:load(folder='images') failed: FileNotFoundError: no images"
    assert "unexpected keyword argument" in refused(source(load, args={"path": "images"}))


def test_a_result_of_another_form(source):
    assert "received list; expected a dict from 'train'" in refused(source(lambda: [1]))
    assert "received the splits 'valid'; expected" in refused(source(lambda: {"valid": Samples()}))
    assert "split train: received int, which is neither" in refused(source(lambda: {"train": 3}))
    assert "received generator, which cannot be read twice" in refused(
        source(lambda: {"train": (b for b in [])})
    )


def test_a_split_that_is_not_there(source):
    text = refused(source(lambda: {"train": Samples()}), "test")
    assert "split test: there is none; received train, val, calibration: return a 'test' split" in text


def test_empty_splits(source):
    assert "split train is empty: expected at least one sample" in refused(source(lambda: {"train": []}))
    text = refused(source(lambda: {"train": Batches(), "val": Batches()}))
    assert "split train yields no samples" in text


def test_validation_cannot_be_cut_from_a_stream_or_from_one_sample(source):
    text = refused(source(lambda: {"train": Batches((X, Y))}))
    assert "no 'val' split, and none can be cut from a train split that is an iterable" in text
    assert "received 1 training sample; expected at least 2" in refused(source(lambda: {"train": [X[0]]}))


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (
            (np.zeros((3, 8, 8), np.float32), 1),
            "received float32[1, 3, 8, 8]; expected float32[batch, 1, 8, 8]",
        ),
        ((np.zeros((1, 8, 8)), 1), "received float64[1, 1, 8, 8]; expected float32[batch, 1, 8, 8]"),
        ((np.zeros((8, 8), np.float32), 1), "received float32[1, 8, 8]; expected float32[batch, 1, 8, 8]"),
        ((X[0], 1, 2), "received a tuple of 3; expected (inputs, targets)"),
        ({"pixels": X[0]}, "received a dict with 'pixels'; expected the model's inputs 'image'"),
        ({"image": X[0], "klass": 1}, "received a dict with 'klass' beside the model's inputs"),
        (("cat.png", 1), "received str, which makes no tensor"),
    ],
    ids=["channels", "dtype", "rank", "tuple", "names", "label", "text"],
)
def test_a_sample_that_does_not_fit_the_model(source, sample, message):
    assert message in refused(source(lambda: {"test": [sample]}), "test")


def test_samples_of_different_shapes(source):
    samples = [(X[0], 1), (X[0][:, :4], 1)] * 2
    assert "samples of shapes (1, 4, 8) and (1, 8, 8) cannot be one batch" in refused(
        source(lambda: {"val": samples}), "val"
    )


def test_nan_and_infinity_name_the_sample_in_the_split(source):
    for value in (np.nan, np.inf):
        broken = X.copy()
        broken[13, 0, 2, 2] = value
        data = source(lambda broken=broken: {"train": Samples(broken), "val": Samples()})
        for epoch in (None, 0):
            assert "split train, input 'image': NaN or Inf in sample 13 (1 such in this batch)" in refused(
                data, epoch=epoch
            )


def test_large_values_that_are_finite_pass(source):
    """Their sum is not."""
    huge = np.full_like(X, 3e38)
    assert list(source(lambda: {"train": Samples(huge), "val": Samples()}).loader("train"))


def test_values_above_the_declared_maximum(source, declared):
    model = declared(ids=(["batch", "length"], "int64", 100))
    data = source(lambda: {"test": [(np.array([3, 100]), 0)]}, model)
    assert "received values 3 to 100; expected 0 to 99" in refused(data, "test")


def test_a_named_dimension_must_agree_between_inputs(source, declared):
    model = declared(ids=(["batch", "length"], "int64"), mask=(["batch", "length"], "int64"))
    data = source(lambda: {"test": [(np.zeros(3, np.int64), np.zeros(4, np.int64), 0)]}, model)
    assert "dimension 'length' is 4, but 3 in input 'ids': they must agree" in refused(data, "test")


def test_an_error_while_reading_names_the_batch(source):
    class Broken(Samples):
        def __getitem__(self, i):
            if i == 9:
                raise OSError("cannot open 9.png")
            return super().__getitem__(i)

    text = refused(source(lambda: {"test": Broken()}), "test")
    assert (
        text
        == "data source own_data:load, split test, batch 1: reading failed: sample 9: OSError: cannot open 9.png"
    )


def test_a_shuffled_dataloader_gives_an_epoch_again_whatever_was_drawn_before(source):
    """So that a training that was cut, and goes on in another process, sees the samples that it has not seen."""
    pairs = [(torch.full((1, 8, 8), float(i)), torch.tensor(i % 2)) for i in range(20)]
    noisy = [(lambda x=x: x + torch.rand(())) for x, _ in pairs]

    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return len(pairs)

        def __getitem__(self, i):
            return noisy[i](), pairs[i][1]

    def load():
        shuffled = torch.utils.data.DataLoader(Noisy(), batch_size=4, shuffle=True)
        return dict.fromkeys(("train", "val", "calibration"), shuffled)

    data = source(load)

    def epoch(number):
        torch.rand(3)
        return torch.cat([b.inputs["image"].flatten() for b in data.loader("train", number)])

    first = epoch(0)
    assert torch.equal(first, epoch(0)) and not torch.equal(first, epoch(1))
    noise = first.reshape(20, -1)[:, 0] % 1
    assert len(noise.unique()) == 20  # every batch draws its own
    before = torch.random.get_rng_state()
    list(data.loader("train", 0))
    assert torch.equal(before, torch.random.get_rng_state())
