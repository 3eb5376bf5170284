"""The truth loop against a machine of known latencies, which the prediction gets wrong."""

import pytest

from deploycompress.pruning.latency.planning import far_below
from deploycompress.pruning.latency.settling import CLOSE, Settled, Tried, settle

GRID = tuple(range(8, 257, 8))


class Machine:
    """Latency of one group of ``width`` channels; an unpruned one of 256 takes 8 ms.

    ``noise``: of short blocks; ``slow``: jobs in which the machine is slower, and narrow models gain less.
    """

    unpruned_ms = 8.0

    def __init__(self, ratio, noise=0.0, slow=()):
        self.ratio, self.noise, self.jobs, self.slow = ratio, noise, 0, slow
        self.pace_ms = 8.0

    def measure(self, plans, *, blocks, block_ms, processes=1):
        self.jobs += 1
        self.pace_ms = 12.0 if self.jobs in self.slow else 8.0
        off = self.noise if processes == 1 else 0.0
        found = [self.ratio(plan["g"]) * (1 - off) for plan in plans]
        return [(r + 1) / 2 for r in found] if self.jobs in self.slow else found

    def at_full_pace(self, pace_ms):
        return pace_ms == 8.0


def allocate(budget):
    """The widest that is predicted to fit, where latency is predicted to be a straight line."""
    fitting = [{"g": w} for w in GRID if predict({"g": w}) <= budget]
    return max(fitting, key=lambda plan: plan["g"], default=None)


def predict(widths):
    return widths["g"] / 256


def settled(machine, share, **given):
    return settle(
        machine,
        given.get("allocate", allocate),
        lambda plan, budget: max(plan, allocate(budget) or plan, key=predict),
        predict=predict,
        loss=given.get("loss", lambda plan: 256 - plan["g"]),
        smallest={"g": GRID[0]},
        limit=lambda: share,
    )


@pytest.mark.parametrize("share", [0.75, 0.5, 0.35])
@pytest.mark.parametrize("noise", [0.0, 0.04])
def test_a_wrong_prediction_is_corrected_until_the_measured_latency_is_close(share, noise):
    machine = Machine(lambda width: 0.1 + 0.9 * (width / 256) ** 1.5, noise)
    found = settled(machine, share)
    assert found.reached and found.chosen.confirmed
    # One step of the grid is at most 5 % of the latency here.
    assert 0.95 * share <= found.chosen.ratio <= share
    assert machine.jobs <= 12


def test_the_nearest_of_the_grid_where_nothing_is_within_three_percent():
    machine = Machine(lambda width: 1.0 if width > 128 else 0.4)
    found = settled(machine, 0.5)
    assert found.reached and found.chosen.widths["g"] <= 128 and found.chosen.ratio == 0.4


def test_a_plan_slower_than_a_wider_one_is_not_taken():
    """Even where it is said to lose less: a criterion may find the loss lower without a channel."""
    bump = {120: 0.49, 128: 0.3, 136: 0.6}
    machine = Machine(lambda width: bump.get(width, width / 256))
    plans = iter([{"g": 120}, {"g": 128}, {"g": 136}])
    found = settled(
        machine, 0.5, allocate=lambda budget: next(plans, None), loss=lambda plan: float(plan["g"] > 120)
    )
    assert found.chosen.widths == {"g": 128}


def test_the_limit_is_sought_where_latencies_do_not_rise_with_predicted_ones():
    """The plan nearest to the limit at first is one that was predicted to be fast; the widest that fits is not."""

    def ratio(width):
        return 0.54 if width == 112 else 0.4 if width < 144 else width / 256

    machine = Machine(ratio)
    first = iter([{"g": 112}, {"g": 120}, {"g": 192}])
    found = settled(machine, 0.565, allocate=lambda budget: next(first, None) or allocate(budget))
    assert found.chosen.widths == {"g": 144}


def test_between_two_solutions_with_a_jump_between_them_the_smaller_one_is_widened():
    machine = Machine(lambda width: width / 256)
    found = settled(machine, 0.51, allocate=lambda budget: {"g": 64 if budget < 0.7 else 192})
    assert found.reached and found.chosen.widths == {"g": 128}


def test_what_loses_least_is_widened_where_it_is_below_the_window():
    """One plan is in the window and spends half of its latency on nothing; the other is below and does not."""

    def total(plan):
        return (plan["g"] + plan["idle"]) / 256

    class Idle(Machine):
        def measure(self, plans, **given):
            return [total(plan) for plan in plans]

    plans = iter([{"g": 104, "idle": 0}, {"g": 64, "idle": 64}])
    found = settle(
        Idle(None),
        lambda budget: next(plans, None),
        lambda plan, budget: {**plan, "g": max(w for w in GRID if total({**plan, "g": w}) <= budget)},
        predict=total,
        loss=lambda plan: 256 - plan["g"],
        smallest={"g": GRID[0], "idle": 0},
        limit=lambda: 0.51,
    )
    assert found.reached and found.chosen.widths == {"g": 128, "idle": 0}


def test_a_plan_just_above_the_limit_is_taken_when_a_longer_measurement_finds_it_within():
    machine = Machine(lambda width: width / 256, noise=-0.01)
    found = settled(machine, 0.5, allocate=lambda budget: {"g": 128})
    assert found.chosen.widths == {"g": 128} and found.chosen.confirmed


def test_what_was_measured_on_a_slowed_machine_counts_for_nothing():
    machine = Machine(lambda width: width / 256, slow=(1,))
    found = settled(machine, 0.5)
    assert found.slowed == 3
    assert found.reached and CLOSE * 0.5 <= found.chosen.ratio <= 0.5 and found.chosen.pace_ms == 8.0


def test_what_cannot_be_reached_is_said_with_the_fastest():
    machine = Machine(lambda width: 0.6 + 0.4 * width / 256)
    found = settled(machine, 0.5)
    assert not found.reached
    assert found.chosen.widths["g"] == GRID[0]


def test_a_plan_far_below_the_target_is_told_of():
    def settled_at(ratio, reached=True):
        tried = Tried({"g": 8}, ratio, ratio, 1.0)
        return Settled(tried, reached, 1.0, (tried, tried))

    assert far_below(settled_at(0.49), 0.5) is None
    note = far_below(settled_at(0.44), 0.5)
    assert note.kind == "warning"
    assert note.message.startswith(
        "the latency is 12% below its target, which cost accuracy: none of 2 plans"
    )
    assert far_below(settled_at(0.44, reached=False), 0.5) is None
