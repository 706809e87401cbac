"""What launchers say of a run's ranks: taken over where nothing else was asked for."""

import pytest

from lit_sft.errors import InputError
from lit_sft.ranks import (
    Launch,
    is_first_on_node,
    is_first_rank,
    place,
    read_launch,
    require_others,
)

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "2"}


def srun(**more: str) -> dict[str, str]:
    of_job = {"SLURM_NTASKS": "8", "SLURM_JOB_NAME": "train", "SLURM_NNODES": "2"}
    return of_job | {"SLURM_STEP_ID": "0"} | more


@pytest.mark.parametrize(
    ("environment", "launch"),
    [
        ({}, None),
        (TORCHRUN | {"WORLD_SIZE": "8"}, Launch("torchrun", 4, 2)),
        (srun(SLURM_STEP_TASKS_PER_NODE="4(x2)"), Launch("srun", 4, 2)),
        (srun(SLURM_NNODES="1", SLURM_TASKS_PER_NODE="8"), Launch("srun", 8, 1)),
        (srun(SLURM_JOB_NAME="bash", SLURM_TASKS_PER_NODE="4(x2)"), None),
    ],
)
def test_what_was_started_is_read(environment, launch):
    assert read_launch(environment) == launch


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        (TORCHRUN | {"WORLD_SIZE": "6"}, "4 of 6 ranks on this one of 2 machines: give each"),
        (srun(SLURM_STEP_TASKS_PER_NODE="5,3"), "5,3 tasks on 2 machines"),
        (srun(SLURM_TASKS_PER_NODE="3(x2),2"), "set --ntasks-per-node"),
    ],
)
def test_an_unequal_number_of_ranks_a_machine_is_refused(environment, says):
    with pytest.raises(InputError) as error:
        read_launch(environment)
    assert says in str(error.value)


def test_a_job_that_forgets_srun_does_not_wait_for_tasks_that_nobody_started():
    batch_script = srun(SLURM_TASKS_PER_NODE="4(x2)")
    del batch_script["SLURM_STEP_ID"]
    with pytest.raises(InputError, match="has 8 tasks, and srun has started none of them"):
        read_launch(batch_script)
    assert read_launch({"SLURM_NTASKS": "1", "SLURM_TASKS_PER_NODE": "1"}).devices == 1


def test_machines_that_nothing_has_started_are_not_waited_for():
    by_hand = {"MASTER_ADDR": "a", "MASTER_PORT": "1", "NODE_RANK": "0"}
    require_others(1, {})
    require_others(2, by_hand)
    with pytest.raises(InputError, match=r"num_nodes=2: .* or set MASTER_PORT, NODE_RANK on each"):
        require_others(2, {"MASTER_ADDR": "a"})


@pytest.mark.parametrize(
    ("devices", "nodes", "launch", "placed"),
    [
        ("auto", 1, None, ("auto", 1)),
        (2, 3, None, (2, 3)),
        ("auto", 1, Launch("torchrun", 4, 2), (4, 2)),
        (-1, 2, Launch("torchrun", 4, 2), (4, 2)),
        ([0, 2, 4, 6], 1, Launch("srun", 4, 1), ([0, 2, 4, 6], 1)),
        ("0,1", 1, Launch("srun", 2, 1), ("0,1", 1)),
        ("4", 2, Launch("srun", 4, 2), ("4", 2)),
    ],
)
def test_what_is_left_open_is_what_was_started(devices, nodes, launch, placed):
    assert place(devices, nodes, launch) == placed


@pytest.mark.parametrize(("devices", "nodes"), [(8, 1), (4, 3), ([0, 1], 2)])
def test_something_else_than_was_started_is_refused(devices, nodes):
    with pytest.raises(InputError, match="torchrun has started 4 on each of 2: leave both"):
        place(devices, nodes, Launch("torchrun", 4, 2))


@pytest.mark.parametrize(
    ("environment", "first", "on_node"),
    [
        ({}, True, True),
        ({"RANK": "4", "LOCAL_RANK": "0", "GROUP_RANK": "1"}, False, True),
        ({"RANK": "5", "LOCAL_RANK": "1", "GROUP_RANK": "1"}, False, False),
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, True, True),
        ({"SLURM_PROCID": "3", "SLURM_LOCALID": "1"}, False, False),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False, True),
    ],
)
def test_the_first_rank_knows_itself(monkeypatch, environment, first, on_node):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (is_first_rank(), is_first_on_node()) == (first, on_node)
