"""Rows of the table, interpolation, and a fit that must find what it was made of."""

import random

import numpy as np
import pytest

from deploycompress.pruning.discovery import find_groups
from deploycompress.pruning.groups import on_grid
from deploycompress.pruning.latency.alignment import measured_alignment
from deploycompress.pruning.latency.prediction import LatencyCosts, Probe
from deploycompress.pruning.latency.rows import rows, thinned
from deploycompress.pruning.latency.table import Grid


def with_rows(network, align=2):
    module = network.build()
    groups = on_grid(find_groups(module, network).groups, align)
    found = rows(module, network, groups, 1)
    points = {p.anywhere() for row in found for p in row.points({g.id: g for g in groups})}
    return module, groups, found, points


def test_every_width_of_the_grid_has_its_operators_in_the_table(networks):
    for name, network in networks.items():
        module, groups, found, points = with_rows(network)
        table = {point: 1e-6 * point.macs for point in points}
        costs = LatencyCosts(found, groups, table)
        from deploycompress.pruning.costs import WidthCosts

        counted = WidthCosts(module, groups, network)
        full = {g.id: g.width for g in groups}
        least = {g.id: g.grid[0] for g in groups}
        # With latencies that are MACs, the prediction counts MACs, up to what is no layer's.
        other = counted.at(full)["macs"] - 1e6 * costs.latency_ms(full)
        for widths in (full, least):
            assert costs.latency_ms(widths) == pytest.approx(
                1e-6 * (counted.at(widths)["macs"] - other), rel=0.12 if name in ("concat", "split") else 1e-9
            ), name


def test_a_removed_block_takes_its_operators_along(networks):
    _, groups, found, points = with_rows(networks["residual"])
    table = dict.fromkeys(points, 1.0)
    costs = LatencyCosts(found, groups, table, {"branch": frozenset({"a", "b"})})
    full = {g.id: g.width for g in groups}
    assert costs.latency_ms(full) - costs.latency_ms({**full, "branch": 0}) == pytest.approx(2.0)


def test_interpolation_is_exact_on_the_grid_and_straight_between():
    grid = Grid(np.array([2, 4, 8]), np.array([1, 3]), np.array([[1.0, 2.0], [3.0, 4.0], [7.0, 8.0]]))
    assert grid.at(4, 3) == 4.0
    assert grid.at(6, 2) == pytest.approx((3 + 4 + 7 + 8) / 4)
    assert grid.at(1, 1) == 1.0 and grid.at(99, 99) == 8.0


def test_a_fit_finds_the_factors_behind_the_probes(networks):
    _, groups, found, points = with_rows(networks["depthwise"])
    generator = random.Random(0)
    table = {
        point: generator.uniform(0.5, 1.5) * 1e-6 * point.macs + 0.01 for point in sorted(points, key=repr)
    }
    costs = LatencyCosts(found, groups, table)
    truth = {"conv": 0.9, "depthwise": 1.3, "matmul": 1.0, "elements": 0.5, "operators": -0.004}
    probes = []
    for _ in range(400):  # far more than the belief that the table is right weighs
        widths = {g.id: generator.choice(g.grid) for g in groups}
        features = costs.features(widths)
        probes.append(Probe(widths, sum(truth[name] * value for name, value in features.items())))
    error = costs.fit(probes)
    assert error < 0.02
    for probe in probes:
        assert costs.latency_ms(probe.widths) == pytest.approx(probe.latency_ms, rel=0.01)


def test_where_probes_do_not_tell_the_table_is_believed(networks):
    """Two families that grow together in every probe: neither may take the other's time."""
    _, groups, found, points = with_rows(networks["depthwise"])
    table = {point: 1e-6 * point.macs + 0.01 for point in points}
    costs = LatencyCosts(found, groups, table)
    shares = (1.0, 0.9, 0.75, 0.6, 0.5, 0.4, 0.3, 0.25)
    plans = [{g.id: min(g.grid, key=lambda w, g=g: abs(w - s * g.width)) for g in groups} for s in shares]
    generator = random.Random(0)
    probes = []
    for plan in plans:  # each 2 % off, in turn up and down
        alone = sum(costs.features(plan)[family] for family in ("conv", "depthwise", "matmul"))
        probes.append(Probe(plan, alone * (1 + generator.choice([-0.02, 0.02]))))
    costs.fit(probes)
    assert all(abs(costs.coefficients[family] - 1) < 0.1 for family in ("conv", "depthwise", "matmul"))


def test_a_fit_says_how_far_off_it_is(networks):
    _, groups, found, points = with_rows(networks["chain"])
    costs = LatencyCosts(found, groups, dict.fromkeys(points, 1.0))
    generator = random.Random(0)
    probes = [
        Probe({g.id: generator.choice(g.grid) for g in groups}, generator.uniform(1, 3)) for _ in range(8)
    ]
    assert costs.fit(probes) > 0.2


def test_thinning_keeps_the_ends():
    few = thinned(range(16, 272, 16), 5)
    assert len(few) == 5 and few[0] == 16 and few[-1] == 256
    assert thinned((1, 2, 3), 8) == (1, 2, 3)
    spread = thinned(range(8, 520, 8), 8)
    assert len(spread) == 8 and spread[0] == 8 and spread[-1] == 512


@pytest.mark.parametrize("tile", [32, 16, 8])
def test_alignment_is_the_tile_of_the_kernel(networks, tile, monkeypatch):
    """Latencies that go up by tiles of a known size, in place of a machine's."""
    from deploycompress.pruning.latency import alignment

    def tiled(points, model, place, store, progress):
        return {p.anywhere(): float(-(-p.c_in // tile) * -(-p.c_out // tile)) for p in points}

    monkeypatch.setattr(alignment, "measured_table", tiled)
    _, _, found, _ = with_rows(networks["residual"])
    assert measured_alignment([row.operator for row in found], None, None, lambda done, text: None) == tile
