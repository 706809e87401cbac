"""On paper: what a step of 1 to 64 cards sends, and how long that takes against the step itself.

`python tests/benchmarks/scaling.py` prints the tables of `docs/SCALING.md`. Measured are the rate
of a card, and the bus bandwidth of an all-reduce over NVLink; assumed are the network, and that a
step takes time in proportion to the weights that it multiplies. Nothing overlaps here: what of a
transfer is hidden behind arithmetic comes off these figures.
"""

from typing import NamedTuple

TOKENS_PER_SECOND = 31_000
"""Of one H100 on Llama-3.2-3B as shipped: 29,100 to 32,100 were measured (docs/GPU.md)."""
NVLINK = {1: 355e9, 2: 329e9, 4: 355e9, 8: 355e9}
"""Bus bandwidth of NCCL's all-reduce in bytes a second, measured on 2 and 4 H100 of one machine;
that of 8 is assumed to be that of 4."""
NETWORK = 50e9
"""Bytes a second that a card sends to another machine: 400 Gb/s for each, assumed."""
CARDS_A_MACHINE = 8
NF4 = 4.127 / 8
"""Bytes of a weight: 4 bits, and a scale for 64 of them, quantised once more."""
RANK = 32
ROW_TOKENS = 168.6
"""Of a row of GSM8K, on average."""
CARD_GIB = 79.1
"""Of an H100."""
NO_ROOM = "does not fit"


class Base(NamedTuple):
    """The shape of a Llama."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    keys: int
    """The width of a layer's keys, and of its values."""
    embeddings: int
    """Matrices of the vocabulary: one where embedding and head are tied."""

    @property
    def quantised(self) -> int:
        """Weights of the layers' matrices."""
        attention = 2 * self.hidden * (self.hidden + self.keys)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def whole(self) -> int:
        """Weights in all, which a token is multiplied with."""
        return self.quantised + self.embeddings * 128_256 * self.hidden

    @property
    def adapter(self) -> int:
        """Weights of a LoRA of `RANK` on q, k, v and o."""
        into_and_out_of = 2 * (self.hidden + self.hidden) + 2 * (self.hidden + self.keys)
        return self.layers * RANK * into_and_out_of


BASES = (
    Base("3B", 28, 3072, 8192, 1024, 1),
    Base("8B", 32, 4096, 14336, 1024, 2),
    Base("70B", 80, 8192, 28672, 1024, 2),
    Base("405B", 126, 16384, 53248, 1024, 2),
)
CARDS = (1, 2, 4, 8, 16, 64)


def bandwidth(cards: int) -> float:
    """Return the bytes a second at which a ring over so many cards runs: at its slowest link."""
    return NVLINK[cards] if cards <= CARDS_A_MACHINE else NETWORK


def all_reduce_seconds(size: float, cards: int) -> float:
    """Return the time of a sum over cards of a buffer of `size` bytes: twice round the ring."""
    return 2 * (cards - 1) / cards * size / bandwidth(cards)


def all_gather_seconds(size: float, cards: int) -> float:
    """Return the time in which each card gets the parts that it lacks of `size` bytes."""
    return (cards - 1) / cards * size / bandwidth(cards)


def compute_seconds(base: Base, tokens: float) -> float:
    """Return the time in which a card trains on tokens, as measured at 3B and by weights."""
    return tokens / TOKENS_PER_SECOND * base.whole / BASES[0].whole


def ddp_bytes(base: Base) -> float:
    """Return what is summed in a step: the gradient of the adapter, in float32."""
    return 4.0 * base.adapter


def fsdp_bytes(base: Base) -> float:
    """Return what is gathered in a pass: the base forward, and again backward."""
    return 2.0 * NF4 * base.quantised


def even_tokens(base: Base, cards: int) -> float:
    """Return the tokens of a pass that take as long to train on as the base takes to gather."""
    gathers = 2 * all_gather_seconds(NF4 * base.quantised, cards)
    return gathers / compute_seconds(base, 1.0)


def held_gib(base: Base, cards: int = 1) -> float:
    """Return the GiB of the base that a card holds: bf16 embeddings, and its part of the rest."""
    embeddings = 2.0 * (base.whole - base.quantised)
    return (NF4 * base.quantised / cards + embeddings) / 2**30


def list_weak(tokens: float) -> list[str]:
    """Return a table in which each card has `tokens` a step, however many there are."""
    lines = [
        "| base | cards | step alone | DDP sends | takes | times one card | "
        "fsdp2 gathers | takes | times one card |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for base in BASES:
        step = compute_seconds(base, tokens)
        for cards in CARDS[1:]:
            summed = all_reduce_seconds(ddp_bytes(base), cards)
            gathered = summed + 2 * all_gather_seconds(NF4 * base.quantised, cards)
            whole, share = (held_gib(base, parts) < CARD_GIB for parts in (1, cards))
            lines.append(
                f"| {base.name} | {cards} | {_time(step)} | {_size(ddp_bytes(base))} | "
                f"{_time(summed)} | {_rate(cards, step, summed) if whole else NO_ROOM} | "
                f"{_size(fsdp_bytes(base))} | {_time(gathered)} | "
                f"{_rate(cards, step, gathered) if share else NO_ROOM} |"
            )
    return lines


def list_strong(base: Base, rows: int) -> list[str]:
    """Return a table in which a step has `rows` rows, which the cards share."""
    lines = ["| cards | rows a card | step | DDP takes | times one card |", "|---|---|---|---|---|"]
    alone = compute_seconds(base, rows * ROW_TOKENS)
    for cards in CARDS:
        if rows % cards:
            lines.append(f"| {cards} | none for {cards - rows} of them | | | |")
            continue
        step = alone / cards
        summed = all_reduce_seconds(ddp_bytes(base), cards)
        lines.append(
            f"| {cards} | {rows // cards} | {_time(step)} | {_time(summed)} | "
            f"{alone / (step + summed):.1f} |"
        )
    return lines


def list_held() -> list[str]:
    """Return a table of what a card holds of a base, and of the pass that pays for its gathers."""
    lines = [
        "| base | whole, GiB | a share of 8 | of 64 | even at, NVLink | even at, network |",
        "|---|---|---|---|---|---|",
    ]
    for base in BASES:
        held = " | ".join(f"{held_gib(base, cards):.1f}" for cards in (1, 8, 64))
        even = " | ".join(f"{even_tokens(base, cards):,.0f} tokens" for cards in (8, 64))
        lines.append(f"| {base.name} | {held} | {even} |")
    return lines


def _rate(cards: int, step: float, transfer: float) -> str:
    return f"{cards * step / (step + transfer):.1f}"


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms" if seconds < 1 else f"{seconds:,.1f} s"


def _size(size: float) -> str:
    return f"{size / 1e6:,.0f} MB" if size < 1e9 else f"{size / 1e9:,.1f} GB"


def list_tables() -> list[list[str]]:
    """Return the tables of the page."""
    return [list_weak(16 * ROW_TOKENS), list_strong(BASES[0], 16), list_held()]


if __name__ == "__main__":
    print("\n\n".join("\n".join(table) for table in list_tables()))
