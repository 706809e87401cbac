"""Whole runs: the same bits, whatever happens.

At the recipe's own shape an arm takes some minutes, most of them to load and quantise the base:
`-k "recipe and eager"` and its like run them one by one.
"""

import io

import pytest
import torch
from card_runs import KILLED_AT, STEPS, Result, fit, read_result, run_whole, write_config

from lit_sft.run.checkpoint_io import AtomicCheckpointIO
from lit_sft.run.folder import RunFolder

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def whole_runs(make_base, device, tmp_path_factory):
    """Runs that nothing disturbs, one of each size and way, made when they are asked for."""
    done: dict[tuple[str, str], Result] = {}

    def get(size: str, kernels: str) -> Result:
        if (size, kernels) not in done:
            folder = tmp_path_factory.mktemp(f"whole-{size}-{kernels}")
            done[size, kernels] = run_whole(folder, make_base(size), device, kernels)
        return done[size, kernels]

    return get


def test_two_runs_end_with_the_same_bits(make_base, device, whole_runs, tmp_path, size, kernels):
    first = whole_runs(size, kernels)
    second = run_whole(tmp_path, make_base(size), device, kernels)
    assert [row["step"] for row in first.figures] == [str(step) for step in range(STEPS + 1)]
    assert second.figures == first.figures
    assert second.adapter == first.adapter


def test_killed_and_resumed_ends_with_the_same_bits(
    make_base, device, whole_runs, tmp_path, size, kernels
):
    killer = {"class_path": "killers.KillInWindow", "init_args": {"step": KILLED_AT}}
    config = write_config(tmp_path, make_base(size), device, kernels, killer)
    killed = fit(config)
    assert killed.returncode == -9, killed.stdout + killed.stderr
    saved = AtomicCheckpointIO().load_checkpoint(RunFolder(tmp_path / "run").last_checkpoint)
    assert saved["global_step"] == KILLED_AT - 1
    resumed = fit(config, "--ckpt_path", "last")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    whole = whole_runs(size, kernels)
    result = read_result(tmp_path)
    assert result.figures == whole.figures
    assert result.adapter == whole.adapter


def test_the_optimizers_pages_survive_a_checkpoint(device):
    from lit_sft.model.optim import build_optimizer

    def step(optimizer, parameter, number):
        torch.manual_seed(number)
        parameter.grad = torch.randn(parameter.shape, device=device)
        optimizer.step()

    parameters, optimizers = [], []
    for _ in range(2):
        torch.manual_seed(0)
        parameters.append(torch.nn.Parameter(torch.randn(200_000, device=device)))
        optimizers.append(build_optimizer("paged_adamw_32bit", [parameters[-1:]], 1e-2, 0.1))
    for number in range(3):
        step(optimizers[0], parameters[0], number)
    state = optimizers[0].state[parameters[0]]["state1"]
    assert getattr(state, "is_paged", False) == (device.type == "cuda")
    parameters[1].data.copy_(parameters[0].data)
    optimizers[1].load_state_dict(through_a_file(optimizers[0].state_dict()))
    for number in range(3, 6):
        for optimizer, parameter in zip(optimizers, parameters, strict=True):
            step(optimizer, parameter, number)
    assert torch.equal(parameters[0], parameters[1])


def through_a_file(state):
    """What a checkpoint makes of a state: through bytes, and onto the CPU."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, map_location="cpu", weights_only=True)
