"""How a word problem is put together: what is said, and the sums that answer it."""

import random
from collections.abc import Callable
from operator import add, floordiv, mul, sub

NAMES = (
    *("Ava", "Ben", "Cleo", "Dan", "Ella", "Finn", "Gia", "Hugo"),
    *("Iris", "Jack", "Kira", "Leo", "Maya", "Noah", "Omar", "Rosa"),
)
THINGS = (
    *("apples", "balls", "books", "cards", "coins", "eggs"),
    *("marbles", "pens", "rocks", "shells", "stamps", "toys"),
)
GOODS = ("coat", "bike", "lamp", "chair", "game", "watch")
FACTORS = {"twice": 2, "3 times": 3, "4 times": 4, "5 times": 5}
OPERATIONS: dict[str, Callable[[int, int], int]] = {"+": add, "-": sub, "*": mul, "/": floordiv}
LARGEST = 999


class Story:
    """A problem in the making: sentences on one side, lines of arithmetic on the other.

    Args:
        rng: Where names, things and numbers are drawn from.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.sentences: list[str] = []
        self.lines: list[str] = []
        self.result = 0
        self.sound = True
        """False once a sum is too hard, or has no whole result from 1 to `LARGEST`."""

    def say(self, *sentences: str) -> None:
        """Add sentences to the question."""
        self.sentences.extend(sentences)

    def pick(self, *options: str) -> str:
        """Return one of the options."""
        return self.rng.choice(options)

    def names(self, count: int) -> list[str]:
        """Return different people."""
        return self.rng.sample(NAMES, count)

    def thing(self) -> str:
        """Return something to count, in the plural."""
        return self.rng.choice(THINGS)

    def number(self, low: int, high: int, step: int = 1) -> int:
        """Return a number from `low` to `high`, both included."""
        return self.rng.randrange(low, high + 1, step)

    def chance(self, probability: float = 0.5) -> bool:
        """Return True with the given probability."""
        return self.rng.random() < probability

    def work(self, lead: str, a: int, sign: str, b: int, unit: str = "") -> int:
        """Add a line such as `Ben has 3*4 = <<3*4=12>>12 pens.` and return its result.

        Args:
            lead: The words before the sum.
            a: The left operand.
            sign: `+`, `-`, `*`, `/`, or `%` for `b` percent of `a`.
            b: The right operand.
            unit: What is counted; `$` is written before the result.
        """
        if sign == "%":
            expression, result = f"{a}*{b}/100", a * b // 100
            fits = a % 10 == b % 10 == 0 and is_easy_product(a // 10, b // 10)
        else:
            expression, result = f"{a}{sign}{b}", OPERATIONS[sign](a, b)
            fits = sign in "+-" or (
                is_easy_product(a, b) if sign == "*" else a % b == 0 and is_easy_product(result, b)
            )
        dollar, after = ("$", "") if unit == "$" else ("", f" {unit}" if unit else "")
        self.lines.append(
            f"{lead} {expression} = {dollar}<<{expression}={result}>>{result}{after}."
        )
        self.sound = self.sound and fits and 0 < result <= LARGEST
        self.result = result
        return result


def is_easy_product(a: int, b: int) -> bool:
    """Return whether a tiny model can be asked for `a * b`, a table it can only learn by heart."""
    small, large = sorted((a, b))
    if small == 2 or large % 10 == 0:
        return small <= 10 and large <= 100
    return small <= 10 and large <= 25
