"""Limits on processor time, wherever in the tree of control groups they are set."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploycompress.measure.control_groups import control_groups, cpu_quota, throttled_us


@pytest.fixture
def tree(tmp_path: Path):
    """({file: text}) -> writes it as /sys/fs/cgroup would have it."""

    def write(files: dict[str, str]) -> Path:
        for name, text in files.items():
            place = tmp_path / "cgroup" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
        return tmp_path / "cgroup"

    return write


def groups(tmp_path: Path, told: str, mounted: Path) -> list[Path]:
    (tmp_path / "told").write_text(told)
    return control_groups(tmp_path / "told", mounted)


def test_a_limit_of_a_service_holds_for_what_runs_inside_of_it(tree, tmp_path: Path) -> None:
    """As CPUQuota of systemd sets it, where the process has no name space of its own."""
    mounted = tree(
        {
            "cpu.stat": "usage_usec 9\n",  # the root has no limit, and says nothing of throttling
            "system.slice/cpu.stat": "usage_usec 9\nnr_throttled 0\nthrottled_usec 0\n",
            "system.slice/cpu.max": "max 100000\n",
            "system.slice/runner.service/cpu.stat": "usage_usec 9\nnr_throttled 3\nthrottled_usec 700\n",
            "system.slice/runner.service/cpu.max": "150000 100000\n",
            "other.slice/cpu.max": "1000 100000\n",
        }
    )
    found = groups(tmp_path, "0::/system.slice/runner.service\n", mounted)
    assert [f.name for f in found] == ["runner.service", "system.slice", "cgroup"]
    assert (cpu_quota(found), throttled_us(found)) == (1.5, 700)


def test_the_first_version_counts_in_nanoseconds(tree, tmp_path: Path) -> None:
    files = {
        "cpu.stat": "nr_periods 8\nthrottled_time 2500000\n",
        "cpu.cfs_quota_us": "50000",
        "cpu.cfs_period_us": "100000",
    }
    mounted = tree({f"cpu/docker/abc/{name}": text for name, text in files.items()})
    told = "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n"
    found = groups(tmp_path, told, mounted)
    assert (cpu_quota(found), throttled_us(found)) == (0.5, 2500)
    unlimited = tree({"cpu/docker/abc/cpu.cfs_quota_us": "-1"})
    assert cpu_quota(groups(tmp_path, told, unlimited)) is None


def test_inside_a_container_its_own_group_is_the_top(tree, tmp_path: Path) -> None:
    mounted = tree({"cpu.stat": "throttled_usec 5\n", "cpu.max": "200000 100000"})
    for told in ("0::/\n", "0::/../../pod/abc\n"):
        found = groups(tmp_path, told, mounted)
        assert (cpu_quota(found), throttled_us(found)) == (2.0, 5)


def test_where_nothing_is_told_nothing_is_known(tmp_path: Path) -> None:
    assert control_groups(tmp_path / "absent", tmp_path) == []
    assert (cpu_quota([]), throttled_us([])) == (None, None)
