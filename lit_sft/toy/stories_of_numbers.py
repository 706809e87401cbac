"""Stories about how many there are: of things, of people, of years."""

from lit_sft.toy.story import FACTORS, Story


def tell_changes(s: Story) -> None:
    """Somebody's things come and go, one to four times."""
    (name, friend), thing = s.names(2), s.thing()
    total = s.number(5, 90)
    s.say(f"{name} {s.pick('has', 'starts with')} {total} {thing}.")
    for _ in range(s.number(1, 4)):
        k, less = s.number(2, 60), s.number(2, max(2, total - 2))
        happens, sign, by = s.rng.choice(
            [
                (f"{name} {s.pick('buys', 'finds', 'makes')} {k} more {thing}.", "+", k),
                (f"{friend} gives {name} {k} {thing}.", "+", k),
                (f"{name} {s.pick('loses', 'sells', 'gives away')} {less} {thing}.", "-", less),
                (f"{name} gives {less} of the {thing} to {friend}.", "-", less),
                (f"{name} gives half of the {thing} to {friend}.", "/", 2),
                (f"A {s.pick('week', 'month')} later {name} has twice as many {thing}.", "*", 2),
            ]
        )
        s.say(happens)
        total = s.work(f"{name} has", total, sign, by, thing)
    s.say(f"How many {thing} does {name} have {s.pick('now', 'in the end')}?")


def _relate(s: Story, name: str, other: str, amount: int, thing: str) -> int:
    """Say how much `name` has compared with `other`, who has `amount`."""
    kind = s.number(0, 3)
    if kind == 0:
        words = s.pick(*FACTORS)
        s.say(f"{name} has {words} as many {thing} as {other}.")
        return s.work(f"{name} has", amount, "*", FACTORS[words], thing)
    if kind == 1:
        s.say(f"{name} has half as many {thing} as {other}.")
        return s.work(f"{name} has", amount, "/", 2, thing)
    k = s.number(2, 40)
    words, sign = ("more", "+") if kind == 2 else ("fewer", "-")
    s.say(f"{name} has {k} {words} {thing} than {other}.")
    return s.work(f"{name} has", amount, sign, k, thing)


def tell_comparison(s: Story) -> None:
    """Two or three people, each compared with one before."""
    people, thing = s.names(3 if s.chance(0.7) else 2), s.thing()
    amounts = [s.number(4, 60)]
    s.say(f"{people[0]} has {amounts[0]} {thing}.")
    for i in range(1, len(people)):
        other = s.number(0, i - 1)
        amounts.append(_relate(s, people[i], people[other], amounts[other], thing))
    if s.chance(0.3):
        s.say(f"How many {thing} does {people[-1]} have?")
        return
    total = amounts[0]
    for amount in amounts[1:]:
        total = s.work("Together they have", total, "+", amount, thing)
    s.say(f"How many {thing} do they have {s.pick('together', 'in all')}?")


def tell_inverse(s: Story) -> None:
    """What somebody has is told as a multiple of what is asked for."""
    (name, friend), thing, words = s.names(2), s.thing(), s.pick(*FACTORS)
    fewer = s.number(3, 40)
    amount = fewer * FACTORS[words]
    s.say(f"{name} has {amount} {thing}, {words} as many as {friend}.")
    fewer = s.work(f"{friend} has", amount, "/", FACTORS[words], thing)
    ending = s.number(0, 2)
    if ending == 0:
        s.say(f"How many {thing} does {friend} have?")
    elif ending == 1:
        s.say(f"How many {thing} do they have in all?")
        s.work("Together they have", amount, "+", fewer, thing)
    else:
        k = s.number(2, 30)
        s.say(f"{friend} buys {k} more {thing}.", f"How many {thing} does {friend} have now?")
        s.work(f"{friend} has", fewer, "+", k, thing)


def tell_sharing(s: Story) -> None:
    """Two people pool what they have, and share it out."""
    (first, second), thing = s.names(2), s.thing()
    groups, each = s.number(2, 9), s.number(3, 25)
    a = s.number(2, max(2, groups * each - 2))
    b = groups * each - a
    s.say(f"{first} has {a} {thing} and {second} has {b} {thing}.")
    total = s.work("Together they have", a, "+", b, thing)
    if s.chance():
        s.say(f"They share them equally among {groups} friends.")
        s.say(f"How many {thing} does each friend get?")
        s.work("Each friend gets", total, "/", groups, thing)
    else:
        s.say(f"They put them into bags of {each}.", "How many bags do they need?")
        bags = s.work("They need", total, "/", each, "bags")
        if s.chance():
            price = s.number(2, 12)
            s.sentences[-1] = f"Each bag sells for ${price}."
            s.say("How much money do they get?")
            s.work("They get", bags, "*", price, "$")


def tell_boxes(s: Story) -> None:
    """Boxes of things: some are broken, some are sold, some are packed again."""
    (name,), thing = s.names(1), s.thing()
    boxes, each = s.number(2, 10), s.number(3, 25)
    s.say(f"{name} has {boxes} boxes with {each} {thing} in each.")
    total = s.work(f"{name} has", boxes, "*", each, thing)
    when = "in all"
    if s.chance(0.7):
        k, when = s.number(2, 40), "now"
        what = s.pick("are broken", "are lost", "are given away")
        s.say(f"{k} of the {thing} {what}.")
        total = s.work(f"{name} has", total, "-", k, thing)
    if s.chance(0.4):
        price = s.number(2, 9)
        s.say(f"{name} sells the rest for ${price} each.", f"How much money does {name} get?")
        s.work(f"{name} gets", total, "*", price, "$")
    else:
        s.say(f"How many {thing} does {name} have {when}?")


def tell_garden(s: Story) -> None:
    """Rows of plants that bear fruit."""
    (name,), plant = s.names(1), s.pick("trees", "plants")
    rows, each, fruit = s.number(2, 6), s.number(2, 9), s.number(2, 9)
    s.say(f"{name} has {rows} rows of {each} {plant}.")
    total = s.work(f"{name} has", rows, "*", each, plant)
    if s.chance(0.3):
        k = s.number(2, 30)
        s.say(f"{k} of the {plant} are lost.")
        total = s.work(f"{name} has", total, "-", k, plant)
    if s.chance(0.3):
        s.say(f"How many {plant} does {name} have?")
        return
    s.say(f"Each gives {fruit} apples.")
    total = s.work("They give", total, "*", fruit, "apples")
    if s.chance(0.3):
        s.say(f"{name} sells half of the apples.", f"How many apples does {name} sell?")
        s.work(f"{name} sells", total, "/", 2, "apples")
    else:
        s.say(f"How many apples does {name} get?")


def tell_percent(s: Story) -> None:
    """A part of a school goes one way, and the others another."""
    total, percent = s.number(20, 250, 10), s.number(10, 90, 10)
    how, other = s.rng.sample(["ride a bus", "ride a bike", "walk", "play a game"], 2)
    s.say(f"There are {total} students in a school.", f"{percent}% of them {how}.")
    part = s.work(f"The students who {how} are", total, "%", percent)
    if s.chance(0.4):
        s.say(f"How many students {how}?")
        return
    s.say(f"The others {other}.", f"How many students {other}?")
    s.work(f"The students who {other} are", total, "-", part)


def tell_average(s: Story) -> None:
    """Three scores and their average."""
    (name,), average = s.names(1), s.number(5, 25)
    a, b = s.number(2, 40), s.number(2, 40)
    c = 3 * average - a - b
    s.sound = 0 < c < 100
    s.say(f"{name} has scores of {a}, {b} and {c}.")
    total = s.work("The first 2 are", a, "+", b)
    total = s.work("All scores are", total, "+", c)
    if s.chance(0.3):
        s.say("How much are all scores together?")
        return
    s.say("What is the average score?")
    s.work("The average is", total, "/", 3)


def tell_ages(s: Story) -> None:
    """Who is older, now and some years later."""
    (name, friend), age = s.names(2), s.number(4, 40)
    s.say(f"{name} is {age} years old.")
    if s.chance(0.4):
        words = s.pick(*FACTORS)
        s.say(f"{friend} is {words} as old as {name}.")
        other = s.work(f"{friend} is", age, "*", FACTORS[words])
    else:
        k, (words, sign) = s.number(2, 30), s.rng.choice([("older", "+"), ("younger", "-")])
        s.say(f"{friend} is {k} years {words} than {name}.")
        other = s.work(f"{friend} is", age, sign, k)
    ending = s.number(0, 2)
    if ending == 0:
        s.say("How old are they together?")
        s.work("Together they are", age, "+", other)
    else:
        k = s.number(2, 20)
        s.say(f"How old will {friend} be in {k} years?")
        s.work(f"{friend} will be", other, "+", k)
