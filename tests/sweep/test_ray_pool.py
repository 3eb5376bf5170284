"""A sweep on a local Ray cluster of two nodes, one of which is killed in the middle; where Ray is installed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploycompress.errors import EnvironmentMissing
from deploycompress.sweep.ray_pool import RayPool
from deploycompress.sweep.schema import Resources

HERE = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HERE, reason="ray is not installed: pip install 'deploycompress[ray]'")


@pytest.mark.skipif(HERE, reason="ray is installed")
def test_without_ray_it_says_what_to_install(tmp_path):
    with pytest.raises(EnvironmentMissing, match=r"pip install 'deploycompress\[sweep,ray\]'"):
        RayPool("auto", Resources(), None, tmp_path, tmp_path)


def test_nothing_of_ray_is_imported_otherwise():
    code = "import sys, deploycompress.sweep.running\nassert 'ray' not in sys.modules and 'optuna' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    made.nodes = [made.add_node(num_cpus=1) for _ in range(2)]
    yield made
    made.shutdown()


@needs_ray
def test_what_no_node_has_is_refused(cluster, tmp_path):
    with pytest.raises(EnvironmentMissing, match=r"asks for, CPU: 1, orin: 1; its nodes have .*CPU: 1"):
        RayPool(cluster.address, Resources(device="orin"), None, tmp_path, tmp_path)
    with pytest.raises(EnvironmentMissing, match="locks and renames do not work there"):
        (tmp_path / "file").touch()
        RayPool(cluster.address, Resources(), None, tmp_path, tmp_path / "file" / "store")


@needs_ray
def test_an_address_without_a_cluster_is_refused(tmp_path):
    with pytest.raises(EnvironmentMissing, match="no Ray cluster answers there"):
        RayPool("127.0.0.1:1", Resources(), None, tmp_path, tmp_path)


MATRIX = """
name: many
pipeline: pipeline.yaml
matrix: {prune.target.macs: [80%, 60%]}
"""


@needs_ray
@pytest.mark.slow
def test_a_node_that_dies_costs_no_trial(cluster, sweep_file, tmp_path):
    path = sweep_file(text=MATRIX)
    words = [sys.executable, "-m", "deploycompress", "sweep", str(path), "--ray", cluster.address]
    sweep = subprocess.Popen([*words, "--out", str(tmp_path / "out")], stdout=subprocess.PIPE, text=True)
    logs = [tmp_path / "out" / "trials" / str(n) / "log.txt" for n in (0, 1)]
    deadline = time.monotonic() + 300
    while not any("train: started" in _text(log) for log in logs):
        assert sweep.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    cluster.remove_node(cluster.nodes[0], allow_graceful=False)
    output, _ = sweep.communicate(timeout=600)
    assert sweep.returncode == 0, output
    assert output.count(": pass, accuracy") == 2


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""
