"""Which option changes which part of a rank's memory, and by how much."""

from collections.abc import Callable

import pytest

from mdmscale.analysis.planning.hardware import GPUS
from mdmscale.analysis.planning.memory import memory_of
from mdmscale.analysis.planning.workload import Workload

Workloads = Callable[..., Workload]


@pytest.mark.parametrize("ranks", [2, 8])
def test_each_zero_stage_shards_one_thing_more(small_workload: Workloads, ranks: int) -> None:
    memories = [memory_of(small_workload(ranks, parallel={"zero_stage": stage})) for stage in range(4)]
    alone = memory_of(small_workload(1, parallel={"zero_stage": 3}))
    whole = memories[0]
    assert [memory.optimizer for memory in memories] == [whole.optimizer, *[alone.optimizer / ranks] * 3]
    assert [memory.gradients for memory in memories[2:]] == [alone.gradients / ranks] * 2
    assert memories[1].gradients > memories[0].gradients, "bf16 gradients and their fp32 sums, both whole"
    assert [memory.weights for memory in memories] == [*[whole.weights] * 3, whole.weights / ranks]


@pytest.mark.parametrize("stage", range(4))
def test_an_average_of_the_weights_is_stored_as_the_moments_are(
    small_workload: Workloads, stage: int
) -> None:
    plain, averaging = (
        small_workload(2, parallel={"zero_stage": stage}, train=train) for train in ({}, {"ema_decay": 0.9})
    )
    elements = plain.num_trained / (2 if stage else 1)
    assert memory_of(averaging).optimizer == memory_of(plain).optimizer + 4 * elements
    if stage:
        offloaded, without = (
            memory_of(
                small_workload(2, parallel={"zero_stage": stage, "offload_optimizer": "cpu"}, train=train)
            )
            for train in ({"ema_decay": 0.9}, {})
        )
        assert offloaded.host == without.host + 4 * elements
        assert offloaded.optimizer == 0


def test_pairs_take_two_rows_unless_they_take_turns(small_workload: Workloads) -> None:
    single = memory_of(small_workload())
    pair = memory_of(small_workload(diffusion={"masking": "mirror"}))
    turns = memory_of(small_workload(diffusion={"masking": "mirror", "pair_forward": "sequential"}))
    assert pair.activations == 2 * single.activations
    assert turns.activations == single.activations
    assert pair.weights == single.weights


def test_checkpointing_and_small_chunks_need_less(small_workload: Workloads) -> None:
    plain = memory_of(small_workload(model={"num_hidden_layers": 8}))
    rebuilt = memory_of(small_workload(model={"num_hidden_layers": 8, "activation_checkpointing": True}))
    chunked = memory_of(small_workload(model={"num_hidden_layers": 8, "head_chunk_size": 16}))
    assert rebuilt.activations < plain.activations / 3
    assert chunked.head < plain.head and chunked.activations == plain.activations


def test_adapters_alone_have_gradients_and_optimizer_state(small_workload: Workloads) -> None:
    lora = {"path": "nowhere/model", "lora": {"rank": 2, "target_modules": ["q_proj", "v_proj"]}}
    workload = small_workload(model=lora)
    adapters = 3 * 2 * (128 + 128 + 128 + 64)  # layers x rank x inputs and outputs of both
    memory, full = memory_of(workload), memory_of(small_workload())
    assert (memory.gradients, memory.optimizer) == (6 * adapters, 12 * adapters)
    assert memory.weights == full.weights + 2 * adapters
    assert memory.head < full.head, "the head's weight has no gradient"


def test_tensor_and_sequence_ranks_share(small_workload: Workloads) -> None:
    whole = memory_of(small_workload(2, parallel={"zero_stage": 3}))
    tensor = memory_of(small_workload(4, parallel={"zero_stage": 3, "tensor": 2}))
    sequence = memory_of(small_workload(2, parallel={"zero_stage": 3, "sequence": 2}))
    assert (tensor.weights, tensor.optimizer) == (whole.weights / 2, whole.optimizer / 2)
    assert whole.activations / 2 < tensor.activations < whole.activations, "norms are whole on each rank"
    assert sequence.activations == pytest.approx(whole.activations / 2, rel=0.1)
    assert sequence.weights == whole.weights, "ranks of a sequence share ZeRO's shards like data ranks"


def test_offload_moves_to_the_host(small_workload: Workloads) -> None:
    whole = memory_of(small_workload(2, parallel={"zero_stage": 3}))
    host = memory_of(
        small_workload(2, parallel={"zero_stage": 3, "offload_optimizer": "cpu", "offload_parameters": "cpu"})
    )
    assert host.states == 0
    assert host.host == whole.states, "nothing is lost on the way"
    assert host.activations == whole.activations


def test_offload_to_disks_leaves_gradients_and_buffers(small_workload: Workloads) -> None:
    nvme = {"zero_stage": 3, "offload_optimizer": "nvme", "offload_parameters": "nvme", "nvme_path": "/disk"}
    whole, swapped = (memory_of(small_workload(2, parallel=each)) for each in ({"zero_stage": 3}, nvme))
    assert swapped.states == 0
    assert swapped.disk == whole.states, "gradients are written beside what they step"
    assert swapped.host > whole.gradients
    assert swapped.activations == whole.activations


def test_near_ranks_keep_a_second_copy(small_workload: Workloads) -> None:
    plain = memory_of(small_workload(8, parallel={"zero_stage": 3}))
    near = memory_of(small_workload(8, parallel={"zero_stage": 3, "hpz_partition_size": 4}))
    assert near.weights == plain.weights + 8 * plain.weights / 4


def test_buffers_follow_the_bucket(small_workload: Workloads) -> None:
    small = memory_of(small_workload(2, parallel={"zero_stage": 2, "bucket_size": 1000}))
    single = memory_of(
        small_workload(2, parallel={"zero_stage": 2, "bucket_size": 1000, "overlap_comm": False})
    )
    assert (small.buffers, single.buffers) == (2 * 1000 * 2, 1000 * 2)


def test_a_probe_of_many_rows_can_be_the_most(small_workload: Workloads) -> None:
    options = {"t_sampler": "p_pots", "p_pots": {"num_masks": 4000}}
    probing = memory_of(small_workload(diffusion=options, parallel={"bucket_size": 1000}))
    assert probing.peak == probing.states + probing.probe > probing.phases["training"]
    assert memory_of(small_workload()).probe == 0


def test_what_fits_leaves_room(small_workload: Workloads) -> None:
    memory = memory_of(small_workload())
    assert memory.needed() > memory.peak
    assert memory.fits(GPUS["h100-80g"])
    large = memory_of(small_workload(model={"hidden_size": 8192, "num_hidden_layers": 80}))
    assert not large.fits(GPUS["h100-80g"])
