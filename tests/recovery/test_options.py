"""Each option of a recipe does what it says, and leaves no trace where it is not asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from deploycompress.contracts import Batch
from deploycompress.errors import ConfigError
from deploycompress.recovery import processes
from deploycompress.recovery.average import Average
from deploycompress.recovery.evaluation import evaluate
from deploycompress.recovery.losses.dkd import DecoupledSoftLabels
from deploycompress.recovery.losses.mse import SquaredDistance
from deploycompress.recovery.mixup import MixedUp, mixed
from deploycompress.recovery.objectives import Distillation, Supervised
from deploycompress.recovery.optimization import chosen
from deploycompress.recovery.probing import chosen as chosen_rate
from deploycompress.recovery.processes import Processes
from deploycompress.recovery.recipe import Recipe
from deploycompress.recovery.training import fit
from deploycompress.stages.distill import Distill


def trained(net, run, **recipe):
    return fit(net, Supervised(run.model, run.task), Recipe(**({"epochs": 3, "lr": 0.05} | recipe)), run)


# ---------------------------------------------------------------- batches and precision


def test_accumulated_batches_are_one_large_batch(network, context):
    class Larger:
        digest = "0" * 64

        def __init__(self, data):
            self.data = data

        def loader(self, split, epoch=None):
            batches = self.data.loader(split, epoch)
            return [
                Batch(
                    {"x": torch.cat([b.inputs["x"] for b in g])},
                    torch.cat([b.targets for b in g]),
                    16 * len(g),
                )
                for g in (batches[:4], batches[4:])
            ]

    small, large, run = network(norm=False), network(norm=False), context()
    trained(small, run, accumulate=4, optimizer="sgd")
    trained(large, replace(run, data=Larger(run.data)), optimizer="sgd")
    assert all(
        torch.allclose(a, b, atol=1e-6) for a, b in zip(small.parameters(), large.parameters(), strict=True)
    )
    other = network(norm=False)
    trained(other, run, accumulate=2, optimizer="sgd")
    assert not torch.allclose(other[0].weight, large[0].weight, atol=1e-4)


def test_bf16_computes_in_bf16_and_keeps_everything_in_float32(network, context):
    seen, run = set(), context()
    net = network()
    net[4].register_forward_hook(lambda m, i, o: seen.add((m.training, o.dtype)))
    losses = []

    class Kept(Supervised):
        def __call__(self, student, batch):
            terms = super().__call__(student, batch)
            losses.append(terms["loss"].dtype)
            return terms

    fit(net, Kept(run.model, run.task), Recipe(epochs=5, lr=0.05, mixed_precision="bf16"), run)
    assert seen == {(True, torch.bfloat16), (False, torch.float32)}
    assert set(losses) == {torch.float32} and {t.dtype for t in net.parameters()} == {torch.float32}
    figures, _ = evaluate(net, run.model, run.data.loader("val"), run.task)
    assert figures["accuracy"] > 0.9 and not net._forward_hooks
    trained(network(), run)  # another precision in the same process


@pytest.mark.skipif(torch.cuda.is_available(), reason="it has an accelerator")
def test_fp16_on_a_cpu_is_refused(network, context):
    with pytest.raises(ConfigError, match="mixed_precision: fp16 needs an accelerator; on a CPU use bf16"):
        trained(network(), context(), mixed_precision="fp16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="it has an accelerator")
@pytest.mark.parametrize(
    ("flags", "precision", "warned"),
    [(["avx2"], "bf16", True), (["avx2"], "no", False), (["avx2", "avx512_bf16"], "bf16", False)],
)
def test_bf16_where_it_is_emulated_is_warned_of_before_training(
    network, context, events, monkeypatch, flags, precision, warned
):
    monkeypatch.setattr(processes, "cpu_flags", lambda: flags)
    trained(network(), context(events=events, rehearsal=True), mixed_precision=precision)
    told = [event.message for event in events if event.kind == "warning"]
    assert [message.partition(" is emulated")[0] for message in told] == ["mixed_precision: bf16"] * warned


# ---------------------------------------------------------------- which network is kept


def test_the_average_follows_its_formula():
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    with torch.no_grad():
        net[0].weight.fill_(1.0)
    average, expected = Average(net, 0.5), 1.0
    for step, weight in enumerate((2.0, 3.0, 5.0), 1):
        with torch.no_grad():
            net[0].weight.fill_(weight)
            net[1].running_mean.fill_(weight)
            net[1].num_batches_tracked.add_(1)
        average.update(net, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight
    assert float(average.net[0].weight) == pytest.approx(expected)
    assert 0 < float(average.net[1].running_mean) < 5 and int(average.net[1].num_batches_tracked) == 3


def test_the_average_is_what_is_validated_and_kept(network, context):
    run, net, plain = context(), network(), network()
    history = trained(net, run, ema=0.9)
    trained(plain, run)
    assert not torch.equal(net[0].weight, plain[0].weight)
    figures, _ = evaluate(net, run.model, run.data.loader("val"), run.task)
    assert history[-1]["val_accuracy"] == figures["accuracy"] > 0.8


class Scripted:
    """A task whose metric follows a script, one figure a pass over the validation split."""

    def __init__(self, task, values, higher=True):
        self.inner, self.values = task, iter(values)
        self.primary = replace(task.primary, higher_is_better=higher)

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def metrics(self):
        inner, values = self.inner.metrics(), self.values

        class Metrics:
            update, scores = inner.update, inner.scores

            def compute(self):
                return {"accuracy": next(values)}

        return Metrics()


@pytest.mark.parametrize(("higher", "best"), [(True, 2), (False, 3)])
def test_the_best_epoch_is_kept(network, context, higher, best):
    run, kept = context(), []
    scripted = replace(
        run, task=Scripted(run.task, [0.0, 0.5, 0.9, 0.1, 0.7], higher)
    )  # the first: of the check
    net = network()

    def after(epoch):
        kept.append([t.clone() for t in net.state_dict().values()])

    recipe = Recipe(epochs=4, lr=0.05, keep="best")
    fit(net, Supervised(run.model, run.task), recipe, scripted, after)
    assert all(map(torch.equal, kept[best - 1], net.state_dict().values()))
    assert not torch.equal(kept[3][0], kept[best - 1][0])


def test_patience_stops_early_and_is_off_by_default(network, context, events):
    values = [0.0, 0.5, 0.6, 0.6, 0.55, 0.9, 0.9, 0.9]
    run = context(events=events)

    def scripted():
        return replace(run, task=Scripted(run.task, values))

    assert len(trained(network(), scripted(), epochs=7, patience=2)) == 4
    assert events[-1].message == "stopped early: no better for 2 epochs"
    assert len(trained(network(), scripted(), epochs=7)) == 7


# ---------------------------------------------------------------- which parameters are trained


@pytest.mark.parametrize(
    ("patterns", "moved"),
    [(["4.*"], {"4.weight", "4.bias"}), (["norms"], {"1.weight", "1.bias"}), (["*.weight"], {"0.weight", "1.weight", "4.weight"})],
)  # fmt: skip
def test_only_the_named_parameters_are_trained(network, context, patterns, moved):
    net = network()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    trained(net, context(), trainable=patterns)
    changed = {k for k, v in net.named_parameters() if not torch.equal(v, before[k])}
    assert changed == moved and all(p.requires_grad for p in net.parameters())
    moves = "1.weight" in moved
    assert torch.equal(before["1.running_mean"], net[1].running_mean) != moves


def test_a_pattern_without_a_parameter_is_refused(network):
    with pytest.raises(
        ConfigError, match=r"no parameter is called '4.wieght'; did you mean 4.weight\? Expected a pattern"
    ):
        chosen(network(), ["4.wieght"])
    with pytest.raises(ConfigError, match="no parameter is called 'norms'"):
        chosen(network(norm=False), ["norms"])


def test_a_network_without_a_parameter_is_refused(network, context):
    with pytest.raises(ConfigError, match="there is no parameter to train"):
        trained(network().requires_grad_(False), context())


# ---------------------------------------------------------------- the learning rate


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_probe_finds_a_rate_that_trains_and_leaves_no_trace(network, context, events, optimizer):
    run, net, told = context(events=events), network(dropout=0.2), network(dropout=0.2)
    history = trained(net, run, epochs=4, lr="auto", optimizer=optimizer)
    found = next(e.figures["lr"] for e in events if "probe" in e.message)
    assert 1e-4 < found < 1 and history[-1]["val_accuracy"] > 0.9
    trained(told, run, epochs=4, lr=found, optimizer=optimizer)
    assert all(map(torch.equal, net.state_dict().values(), told.state_dict().values()))


def test_the_rate_is_the_last_before_the_loss_turns_up():
    rates = [10.0**i for i in range(40)]
    falls = [max(0.1, 2.0 - 0.1 * i) for i in range(25)] + [3.0 * 2**i for i in range(15)]
    assert 1e18 <= chosen_rate(rates, falls) <= 1e25
    flat_then_up = [0.5] * 25 + [5.0] * 15
    assert 1e23 <= chosen_rate(rates, flat_then_up) <= 1e25
    noisy = [0.5 + 0.1 * (-1) ** i for i in range(25)] + [5.0] * 15
    assert 1e20 <= chosen_rate(rates, noisy) <= 1e25


# ---------------------------------------------------------------- mixup


def test_mixup_is_its_equation(network, context):
    run, net = context(), network(norm=False).eval()
    batch = run.data.loader("train", epoch=0)[0]
    torch.manual_seed(3)
    terms = MixedUp(run.model, run.task, 0.4)(net, batch)
    torch.manual_seed(3)
    share = float(torch.distributions.Beta(0.4, 0.4).sample())
    order = torch.randperm(16)
    x, y = batch.inputs["x"], batch.targets
    logits = net(share * x + (1 - share) * x[order])
    labels = share * nn.functional.one_hot(y, 3) + (1 - share) * nn.functional.one_hot(y[order], 3)
    expected = nn.functional.cross_entropy(logits, labels.float()).detach()
    assert (
        float((terms["loss"] + terms["mixed"]).detach()) == pytest.approx(float(expected), rel=1e-5)
        and 0.01 < share < 0.99
    )


def test_both_networks_see_the_same_blends(network, context):
    """And the labels' part is that of mixup."""
    run, student, teacher = context(), network(norm=False).eval(), network(width=4, norm=False).eval()
    batch = run.data.loader("train", epoch=0)[0]
    torch.manual_seed(3)
    terms = Distillation(run.model, run.task, teacher, SquaredDistance(), 0.3, mixup=0.4)(student, batch)
    torch.manual_seed(3)
    share = float(torch.distributions.Beta(0.4, 0.4).sample())
    order = torch.randperm(16)
    x, y = batch.inputs["x"], batch.targets
    blended = share * x + (1 - share) * x[order]
    s, t = student(blended), teacher(blended)
    labels = [
        weight * nn.functional.cross_entropy(s, of) for weight, of in ((share, y), (1 - share, y[order]))
    ]
    assert torch.allclose(terms["loss"], 0.3 * (s - t).square().mean(), rtol=1e-4)
    assert torch.allclose(terms["task"] + terms["mixed"], 0.7 * sum(labels), rtol=1e-4)
    unlabelled = replace(batch, targets=None)
    alone = Distillation(run.model, run.task, teacher, SquaredDistance(), 1.0, mixup=0.4)
    assert set(alone(student, unlabelled)) == {"loss"}
    with pytest.raises(ConfigError, match=r"distill\.mixup: the loss loss reads labels"):
        Distillation(run.model, run.task, teacher, DecoupledSoftLabels(), mixup=0.4)
    with pytest.raises(ValueError, match="mixup is for a teacher that only answers; leave out joint"):
        Distill.Config(mixup=0.2, joint=True)
    with pytest.raises(ValueError, match="a blend of two samples has none; use mean"):
        Distill.Config(mixup=0.2, combine="confidence", teacher=["original", "train"])


def test_what_cannot_be_mixed_is_refused(network, context):
    run = context()
    tokens = Batch({"x": torch.arange(4)[:, None]}, torch.arange(4), 4)
    with pytest.raises(ConfigError, match=r"mixup: input 'x' holds torch.int64, which cannot be blended"):
        mixed(tokens, 0.5, torch.arange(4))
    with pytest.raises(ConfigError, match="mixup: received no labels"):
        MixedUp(run.model, run.task, 0.4)(network(), replace(tokens, targets=None))


def test_a_recipe_refuses_what_contradicts_itself():
    for wrong, words in (
        ({"launch": {"nodes": 2}}, "nodes and rendezvous go together"),
        ({"launch": {"rendezvous": "host:1"}}, "nodes and rendezvous go together"),
        ({"launch": {"processes": 2}, "on_out_of_memory": "split"}, "works in one process only"),
        ({"ema": 1.0}, "ema"),
        ({"checkpoint_every": "5 epochs"}, "unit"),
        ({"track": ["comet"]}, "track"),
    ):
        with pytest.raises(ValueError, match=words):
            Recipe(**wrong)


@pytest.mark.parametrize(("size", "shares"), [(8, [4, 4]), (5, [2, 3]), (3, [3]), (2, [2]), (1, [1])])
def test_no_process_gets_a_single_sample_where_there_are_more(size, shares):
    """Batch normalisation has no variance of one."""
    found = []
    for rank in range(2):
        processes = object.__new__(Processes)
        processes.count, processes.rank = 2, rank
        found.append(range(*processes.cut(size)))
    assert [len(own) for own in found if own] == shares
    assert [index for own in found for index in own] == list(range(size))
