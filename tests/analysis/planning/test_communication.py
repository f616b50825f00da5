"""The bytes that a GPU sends, compared with closed forms."""

from collections.abc import Callable

import pytest

from mdmscale.analysis.planning.communication import Group, Traffic, traffic_of
from mdmscale.analysis.planning.hardware import Cluster, make_cluster
from mdmscale.analysis.planning.workload import Workload

Workloads = Callable[..., Workload]


def traffic(workload: Workload, nodes: int | None = None, network: str = "ndr400") -> dict[str, Traffic]:
    cluster = make_cluster("h100-80g", network, workload.num_ranks, nodes)
    return {each.name: each for each in traffic_of(workload, cluster)}


def test_one_gpu_sends_nothing(small_workload: Workloads) -> None:
    for stage in range(4):
        assert traffic(small_workload(1, parallel={"zero_stage": stage})) == {}


@pytest.mark.parametrize("micro", [1, 2])
def test_zero_by_stage(small_workload: Workloads, micro: int) -> None:
    """In units of the weights' bytes an all-reduce costs two. Stages 2 and 3 pay for every forward."""
    forwards, share = 64 // 8 // micro, 7 / 8
    expected = {0: 2.0, 1: 2 + 1, 2: 2 * forwards + 1, 3: 3 * forwards}
    for stage, units in expected.items():
        workload = small_workload(8, parallel={"zero_stage": stage}, train={"micro_batch_size": micro})
        sent = sum(each.inside for each in traffic(workload).values())
        assert sent == pytest.approx(units * share * workload.shape.num_parameters * 2)


def test_pairs_in_turns_are_more_forwards(small_workload: Workloads) -> None:
    keys = {"parallel": {"zero_stage": 3}, "train": {"micro_batch_size": 1}}
    joint = traffic(small_workload(8, diffusion={"masking": "mirror"}, **keys))
    turns = traffic(small_workload(8, diffusion={"masking": "mirror", "pair_forward": "sequential"}, **keys))
    for name, each in joint.items():
        assert turns[name].inside == 2 * each.inside


def test_tensor_ranks_sum_four_times_a_layer_and_six_with_recomputation(small_workload: Workloads) -> None:
    for checkpointing, sums in ((False, 4), (True, 6)):
        workload = small_workload(
            2, parallel={"tensor": 2}, model={"activation_checkpointing": checkpointing}
        )
        message = workload.tokens * 128 * 2
        sent = traffic(workload)["tensor ranks, all-reduce"].inside
        assert sent == pytest.approx(workload.forwards * message * (3 * sums + 2) * 2 * (1 / 2))


def test_sequence_ranks_exchange_queries_keys_values_and_outputs(small_workload: Workloads) -> None:
    workload = small_workload(2, parallel={"sequence": 2})
    message = workload.tokens * (2 * 128 + 2 * 64) * 2  # two query widths, two key widths, bf16
    sent = traffic(workload)["sequence ranks, all-to-all"].inside
    assert sent == pytest.approx(workload.forwards * 3 * 2 * message / 2)
    # More ranks than key heads: all query heads are sent.
    repeated = small_workload(4, parallel={"sequence": 4})
    sent = traffic(repeated)["sequence ranks, all-to-all"].inside
    assert sent == pytest.approx(repeated.forwards * 3 * 2 * repeated.tokens * 4 * 128 * 2 * 3 / 4)


def test_near_copies_and_quantised_messages_send_less(small_workload: Workloads) -> None:
    plain = traffic(small_workload(16, parallel={"zero_stage": 3}))
    near = traffic(small_workload(16, parallel={"zero_stage": 3, "hpz_partition_size": 8}))
    assert plain["weights, gathered backward"].between > 0
    assert near["weights, gathered backward"].between == 0
    options = {"zero_stage": 3, "quantized_weights": True, "quantized_gradients": True}
    small = traffic(small_workload(16, parallel=options))
    assert small["weights, gathered forward"].inside == plain["weights, gathered forward"].inside / 2
    assert small["gradients, reduce-scatter"].inside == plain["gradients, reduce-scatter"].inside / 4


def cluster(num_gpus: int, nodes: int, network: str) -> Cluster:
    return make_cluster("h100-80g", network, num_gpus, nodes)


def test_a_ring_leaves_a_node_once() -> None:
    ring = Group(16, 1, cluster(16, 2, "ndr400")).ring("", message=16e9, count=1)
    assert (ring.inside, ring.between) == (pytest.approx(15e9 * 7 / 8), pytest.approx(15e9 / 8))
    alone = Group(16, 8, cluster(128, 16, "ndr400")).ring("", message=16e9, count=1)
    assert (alone.inside, alone.between) == (0, 15e9), "one rank a node: every hop leaves it"


def test_the_slowest_link_decides() -> None:
    """A ring of 2 x 8 ranks: NVLink has 450 GB/s, eight ports have 50 each, one shared port has 12.5."""
    times = {
        network: Group(16, 1, cluster(16, 2, network)).ring("", message=16e9, count=0).seconds
        for network in ("ndr400", "ethernet-100g")
    }
    assert times["ndr400"] == pytest.approx(15e9 / 400e9 / 0.8)
    assert times["ethernet-100g"] == pytest.approx(15e9 / 12.5e9 / 0.8)
    inside = Group(8, 1, cluster(16, 2, "ethernet-100g")).ring("", message=16e9, count=0).seconds
    assert inside == pytest.approx(14e9 / 450e9 / 0.8)
