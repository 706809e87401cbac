"""The arithmetic that a step cannot do without, and how fast this machine does it.

A LoRA step over a frozen base must multiply, for `T` real tokens of which `S` carry loss, without
recomputing anything:

- every base matrix of `N` weights: `2·N·T` forward, and `2·N·T` for the gradient of its input, but
  for `q_proj`, `k_proj` and `v_proj` of the first layer, beneath which nothing is trained;
- every adapter of `A` weights: `2·A·T` forward, `2·A·T` for its own gradient, and `2·A·T` for the
  gradient of its input, but for `lora_A` beside those three;
- the head of `N` weights, on the supervised positions: `2·N·S`, and again for the hidden states;
- causal attention, for a row of `t` tokens and `heads·head_dim = D`: six matrix products (scores
  and mixing; dV, dP, dQ, dK) of `2·D·t·(t+1)/2`.
"""

import time
from collections import Counter

import torch
from transformers import LlamaConfig

Matmul = tuple[int, int, int]
"""`[m, k] @ [k, n]`: `2·m·k·n` floating-point operations."""
ADAPTED = ("q", "k", "v", "o")
MEASURED_ROWS = 512
"""Matrices are measured with at most so many rows: a whole head would leave all caches."""


def list_matmuls(config: LlamaConfig, rank: int, tokens: int, supervised: int) -> Counter[Matmul]:
    """Return the products with a weight matrix that a step needs, and how often."""
    hidden, queries = config.hidden_size, config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    sizes = {
        "q": (hidden, queries), "k": (hidden, keys), "v": (hidden, keys), "o": (queries, hidden),
        "gate": (hidden, config.intermediate_size), "up": (hidden, config.intermediate_size),
        "down": (config.intermediate_size, hidden),
    }  # fmt: skip
    needed: Counter[Matmul] = Counter()
    for layer in range(config.num_hidden_layers):
        for name, (wide, out) in sizes.items():
            input_has_gradient = layer > 0 or name not in ("q", "k", "v")
            needed[tokens, wide, out] += 1
            needed[tokens, out, wide] += input_has_gradient
            if name in ADAPTED:
                needed[tokens, wide, rank] += 1
                needed[tokens, rank, out] += 1
                needed[wide, tokens, rank] += 1
                needed[rank, tokens, out] += 1
                needed[tokens, out, rank] += 1
                needed[tokens, rank, wide] += input_has_gradient
    needed[supervised, hidden, config.vocab_size] += 1
    needed[supervised, config.vocab_size, hidden] += 1
    return needed


def count_flops(config: LlamaConfig, matmuls: Counter[Matmul], pairs: float) -> float:
    """Return the floating-point operations of a step: those of its matrices and of attention.

    Args:
        config: Of the base.
        matmuls: As `list_matmuls` returns them.
        pairs: A token and one that it sees, itself among them: `t·(t+1)/2` for a row of `t`.
    """
    width = config.num_attention_heads * config.head_dim
    attention = 6 * 2 * config.num_hidden_layers * width * pairs
    return attention + sum(2 * m * k * n * times for (m, k, n), times in matmuls.items())


def measure_rates(matmuls: Counter[Matmul], dtype: torch.dtype) -> tuple[float, float]:
    """Return this machine's floating-point operations a CPU second.

    Returns:
        Over the matrices of the step, each weighted as the step does; and of one square matrix.
    """
    flops = seconds = 0.0
    for (m, k, n), times in matmuls.items():
        if not times:
            continue
        m_measured = min(m, MEASURED_ROWS)
        flops += 2 * m * k * n * times
        seconds += _time_matmul(m_measured, k, n, dtype) * times * m / m_measured
    side = 2048
    return flops / seconds, 2 * side**3 / _time_matmul(side, side, side, dtype)


def _time_matmul(m: int, k: int, n: int, dtype: torch.dtype) -> float:
    """Return CPU seconds of one product, the best of three runs of at least 20 ms."""
    a, weight, out = torch.ones(m, k, dtype=dtype), torch.ones(n, k, dtype=dtype), None
    best, times = float("inf"), 1
    for _ in range(4):  # the first warms up, and says how often 20 ms are
        start = time.process_time()
        for _ in range(times):
            out = torch.mm(a, weight.T, out=out)
        spent = (time.process_time() - start) / times
        times = max(1, round(0.02 / max(spent, 1e-6)))
        best = min(best, spent)
    return best
