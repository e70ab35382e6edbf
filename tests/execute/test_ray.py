"""Ray: a cluster of two nodes on this machine, one of which is lost while it works."""

import secrets

import pytest

from umscale.errors import UserError
from umscale.execute.ray import LOOPBACK_VARIABLE, RayExecutor, check_ray
from umscale.store.store import Store


@pytest.fixture
def cluster(monkeypatch):
    """A head and a second node on loopback, of one CPU each."""
    monkeypatch.setenv(LOOPBACK_VARIABLE, "0")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=small | {"node_ip_address": "127.0.0.1"})
    second = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20, node_ip_address="127.0.0.1")
    yield cluster, second
    cluster.shutdown()


def test_losing_a_node_loses_nothing(cluster, store, long_plan, long_undisturbed, results):
    nodes, second = cluster
    trained, lost = set(), []

    def on_event(number, event):
        if event["event"] == "progress":
            trained.add(number)
        if event["event"] == "exit" and event["code"] != 0:
            lost.append(event)
        if trained >= {0, 1} and second in nodes.list_all_nodes():
            nodes.remove_node(second, allow_graceful=False)

    with RayExecutor(store, long_plan, workers=2, address=nodes.address) as executor:
        executor.run(on_event)
    assert len(lost) == 1, lost
    assert lost[0]["code"] is None
    assert executor.started == 3
    assert results(store) == long_undisturbed


def test_gives_the_results_of_a_local_sweep_on_a_cluster_of_its_own(
    run_umscale, study, undisturbed, results, tmp_path
):
    pytest.importorskip("ray")
    (tmp_path / "tiny.toml").write_text(study.to_toml())
    process = run_umscale(
        "sweep", "tiny.toml", "--store", "s", "--no-report", "--executor", "ray", "--workers", 2
    )
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "2 of 2 runs finished" in out
    assert results(Store.open(tmp_path / "s")) == undisturbed


@pytest.mark.parametrize(
    ("address", "message"), [("127.0.0.1:1", "no cluster there"), ("somewhere", "HOST:PORT")]
)
def test_a_wrong_address_is_one_line_at_once(address, message):
    pytest.importorskip("ray")
    with pytest.raises(UserError, match=message):
        check_ray(address)
