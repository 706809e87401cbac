"""A process's place in a run of several, as what launched it says in the environment."""

import os
import re
import socket
from collections.abc import Mapping
from typing import Any, NamedTuple

from lit_sft.errors import InputError, require

RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
"""What launchers tell a process of its place in a run; the first one has 0 in all that are set."""
LOCAL_RANKS = ("LOCAL_RANK", "SLURM_LOCALID")
"""Likewise of its place on its machine."""
MEETING = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
"""What ranks are told that are started by hand on each of several machines."""
BY_HAND = ("bash", "interactive")
"""Names of a SLURM job in which a user types commands: `srun` has not started them."""


class Launch(NamedTuple):
    """The processes that something outside has started."""

    by: str
    devices: int
    """On each machine."""
    nodes: int


def is_first_rank() -> bool:
    """Return whether this process is the first of its run, or the only one."""
    return _is_zero(RANKS)


def is_first_on_node() -> bool:
    """Return whether this process is the first of its run on its machine."""
    return _is_zero(LOCAL_RANKS)


def name_rank(rank: int) -> str:
    """Return how a message calls this process.

    Args:
        rank: Over all machines.
    """
    return f"rank {rank} ({socket.gethostname()})"


def read_launch(environment: Mapping[str, str]) -> Launch | None:
    """Return what `torchrun` or `srun` has started, or None where a run starts its own ranks.

    Args:
        environment: Of this process.

    Raises:
        InputError: If not every machine has as many.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        world, local, nodes = (
            int(environment[name])
            for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")
        )
        counts = f"{local} of {world} ranks on this one of {nodes} machines"
        require(
            local * nodes == world,
            f"torchrun has started {counts}: give each the same --nproc_per_node",
        )
        return Launch("torchrun", local, nodes)
    if "SLURM_NTASKS" in environment and environment.get("SLURM_JOB_NAME") not in BY_HAND:
        require(
            environment["SLURM_NTASKS"] == "1" or "SLURM_STEP_ID" in environment,
            f"the job has {environment['SLURM_NTASKS']} tasks, and srun has started none of them: "
            "write srun before the command",
        )
        nodes = int(environment.get("SLURM_NNODES", "1"))
        tasks = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get(
            "SLURM_TASKS_PER_NODE", environment["SLURM_NTASKS"]
        )
        same = re.fullmatch(r"(\d+)(\(x\d+\))?", tasks)
        if same is None:
            raise InputError(
                f"srun has started {tasks} tasks on {nodes} machines, and each has to have as "
                "many: set --ntasks-per-node"
            )
        return Launch("srun", int(same[1]), nodes)
    return None


def place(asked_devices: Any, asked_nodes: int, launch: Launch | None) -> tuple[Any, int]:
    """Return the devices of a machine and the machines that a trainer is built with.

    What is left open (`auto`, and one machine) is what the launcher has started.

    Args:
        asked_devices: As `lightning.Trainer` takes `devices`.
        asked_nodes: Likewise `num_nodes`.
        launch: None where a run starts its own ranks.

    Raises:
        InputError: If something else was asked for than was started.
    """
    if launch is None:
        return asked_devices, asked_nodes
    is_open = asked_devices in ("auto", -1, "-1")
    devices = launch.devices if is_open else asked_devices
    nodes = launch.nodes if asked_nodes == 1 else asked_nodes
    require(
        (_count(devices), nodes) == (launch.devices, launch.nodes),
        f"trainer.devices={asked_devices} and trainer.num_nodes={asked_nodes} ask for "
        f"{_count(devices)} ranks on each of {nodes} machines, and {launch.by} has started "
        f"{launch.devices} on each of {launch.nodes}: leave both options out",
    )
    return devices, nodes


def require_others(nodes: int, environment: Mapping[str, str]) -> None:
    """Raise `InputError` if a run that starts its own ranks would wait for machines in vain.

    Args:
        nodes: The machines of the run.
        environment: Of this process.
    """
    missing = [name for name in MEETING if name not in environment]
    require(
        nodes == 1 or not missing,
        f"trainer.num_nodes={nodes}: nothing has started ranks on the other machines; use torchrun "
        f"or srun, or set {', '.join(missing)} on each",
    )


def _count(devices: Any) -> int:
    if isinstance(devices, list | tuple):
        return len(devices)
    text = str(devices)
    return int(text) if text.isdigit() else len([x for x in text.split(",") if x.strip()])


def _is_zero(names: tuple[str, ...]) -> bool:
    return all(os.environ.get(name) in (None, "", "0") for name in names)
