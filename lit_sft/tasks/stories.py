"""The stories of `WordProblems`: who has what, and what happens to it."""

from collections.abc import Callable

from lit_sft.tasks.story import THINGS, Story

FACTORS = {"twice": 2, "3 times": 3, "4 times": 4, "5 times": 5}


def tell_changes(s: Story) -> None:
    """Somebody's things come and go, one to three times."""
    (name, friend), thing = s.names(2), s.thing()
    total = s.number(5, 90)
    s.say(f"{name} {s.pick('has', 'starts with')} {total} {thing}.")
    for _ in range(s.number(1, 3)):
        k, lead = s.number(2, 60), f"{name} has"
        happens, sign, by = s.rng.choice(
            [
                (f"{name} {s.pick('buys', 'finds', 'makes')} {k} more {thing}.", "+", k),
                (f"{friend} gives {name} {k} {thing}.", "+", k),
                (f"{name} {s.pick('loses', 'sells', 'gives away')} {k} {thing}.", "-", k),
                (f"{name} gives {k} of the {thing} to {friend}.", "-", k),
                (f"{name} gives half of the {thing} to {friend}.", "/", 2),
                (f"A {s.pick('week', 'month')} later {name} has twice as many {thing}.", "*", 2),
            ]
        )
        s.say(happens)
        total = s.work(lead, total, sign, by, thing)
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
    people, thing = s.names(s.number(2, 3)), s.thing()
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


def tell_shopping(s: Story) -> None:
    """One or two kinds of goods, and perhaps the change from a bill."""
    (name,), (first, second) = s.names(1), s.rng.sample(THINGS, 2)
    k, price = s.number(2, 9), s.number(2, 15)
    if s.chance():
        s.say(f"{name} buys {k} {first} for ${price} each.")
    else:
        s.say(f"{first.capitalize()} cost ${price} each.", f"{name} buys {k} {first}.")
    total = s.work(f"The {first} cost", k, "*", price, "$")
    if s.chance():
        k, price = s.number(2, 9), s.number(2, 12)
        s.say(f"{name} also buys {k} {second} for ${price} each.")
        more = s.work(f"The {second} cost", k, "*", price, "$")
        total = s.work(f"{name} pays", total, "+", more, "$")
    if s.chance():
        bill = int(s.pick("50", "100", "200"))
        s.say(f"How much change does {name} get from ${bill}?")
        s.work("The change is", bill, "-", total, "$")
    else:
        s.say(f"How much does {name} {s.pick('pay', 'spend')} in all?")


def tell_wages(s: Story) -> None:
    """Hours a day, days, dollars an hour, and what becomes of the money."""
    (name,) = s.names(1)
    hours, days, wage = s.number(2, 8), s.number(2, 6), s.number(5, 20)
    s.say(f"{name} works {hours} hours a day for {days} days and earns ${wage} an hour.")
    total = s.work(f"{name} works", hours, "*", days, "hours")
    total = s.work(f"{name} earns", total, "*", wage, "$")
    ending = s.number(0, 3)
    if ending == 0:
        s.say(f"How much does {name} earn?")
    elif ending == 1:
        k = s.number(10, 90)
        s.say(f"{name} spends ${k}.", f"How much money does {name} have left?")
        s.work(f"{name} has", total, "-", k, "$")
    elif ending == 2:
        s.say(f"{name} saves half of the money.", f"How much does {name} save?")
        s.work(f"{name} saves", total, "/", 2, "$")
    else:
        k = s.number(10, 90, 5)
        s.say(f"{name} also gets ${k} as a gift.", f"How much money does {name} have in all?")
        s.work(f"{name} has", total, "+", k, "$")


def tell_reading(s: Story) -> None:
    """A book, some pages a day, and what is left of it."""
    (name,) = s.names(1)
    pace, days, rest = s.number(4, 30), s.number(2, 9), s.number(2, 9)
    pages = pace * (days + rest)
    s.say(f"A book has {pages} pages.", f"{name} reads {pace} pages a day.")
    if s.chance(0.3):
        s.say(f"How many days does {name} need to read the book?")
        s.work(f"{name} needs", pages, "/", pace, "days")
        return
    s.say(f"{name} has read for {days} days.")
    done = s.work(f"{name} has read", pace, "*", days, "pages")
    left = s.work("There are", pages, "-", done, "pages")
    if s.chance():
        s.say("How many pages are left?")
    else:
        s.say(f"How many more days does {name} need?")
        s.work(f"{name} needs", left, "/", pace, "days")


def tell_travel(s: Story) -> None:
    """Miles an hour, once or twice."""
    (name,) = s.names(1)
    speed, hours = s.number(3, 70), s.number(2, 9)
    moves = s.pick("drives", "rides", "travels")
    s.say(f"{name} {moves} at {speed} miles an hour for {hours} hours.")
    total = s.work(f"{name} {moves}", speed, "*", hours, "miles")
    ending = s.number(0, 2)
    if ending == 0:
        k = s.number(2, 80)
        s.say(f"Then {name} {moves} {k} more miles.")
        total = s.work("The trip is", total, "+", k, "miles")
    elif ending == 1:
        speed, hours = s.number(3, 60), s.number(2, 5)
        s.say(f"Then {name} {moves} at {speed} miles an hour for {hours} more hours.")
        more = s.work(f"Then {name} {moves}", speed, "*", hours, "miles")
        total = s.work("The trip is", total, "+", more, "miles")
    s.say(f"How many miles is the {s.pick('whole', 'full')} trip?")


def tell_sharing(s: Story) -> None:
    """Two people pool what they have, and share it out."""
    (first, second), thing = s.names(2), s.thing()
    groups, each = s.number(2, 9), s.number(3, 30)
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


def tell_sale(s: Story) -> None:
    """A price, some percent off, and perhaps several pieces."""
    (name,), item = s.names(1), s.pick("coat", "bike", "lamp", "chair", "game", "watch")
    price, percent = s.number(20, 300, 10), s.number(10, 60, 10)
    s.say(f"A {item} costs ${price}.", f"It is on sale for {percent}% off.")
    saved = s.work("The sale takes off", price, "%", percent, "$")
    if s.chance(0.3):
        s.say(f"How much money does {name} save on the {item}?")
        return
    price = s.work(f"The {item} costs", price, "-", saved, "$")
    if s.chance():
        s.say(f"How much does {name} pay for the {item}?")
    else:
        k = s.number(2, 5)
        s.say(f"{name} buys {k} of them.", f"How much does {name} pay in all?")
        s.work(f"{name} pays", price, "*", k, "$")


def tell_boxes(s: Story) -> None:
    """Boxes of things: some are broken, some are sold, some are packed again."""
    (name,), thing = s.names(1), s.thing()
    boxes, each = s.number(2, 12), s.number(3, 30)
    s.say(f"{name} has {boxes} boxes with {each} {thing} in each.")
    total = s.work(f"{name} has", boxes, "*", each, thing)
    if s.chance(0.7):
        k = s.number(2, 40)
        what = s.pick("are broken", "are lost", "are given away")
        s.say(f"{k} of the {thing} {what}.")
        total = s.work(f"{name} has", total, "-", k, thing)
    if s.chance(0.4):
        price = s.number(2, 9)
        s.say(f"{name} sells the rest for ${price} each.", f"How much money does {name} get?")
        s.work(f"{name} gets", total, "*", price, "$")
    else:
        s.say(f"How many {thing} does {name} have {s.pick('now', 'in all')}?")


def tell_percent(s: Story) -> None:
    """A part of a school goes one way, and the others another."""
    total, percent = s.number(20, 500, 10), s.number(10, 90, 10)
    how, other = s.rng.sample(["ride a bus", "ride a bike", "walk", "play a game"], 2)
    s.say(f"There are {total} students in a school.", f"{percent}% of them {how}.")
    part = s.work(f"The students who {how} are", total, "%", percent)
    if s.chance(0.4):
        s.say(f"How many students {how}?")
        return
    s.say(f"The others {other}.", f"How many students {other}?")
    s.work(f"The students who {other} are", total, "-", part)


def tell_duration(s: Story) -> None:
    """Hours and minutes, added up in minutes."""
    (name,), what = s.names(1), s.pick("game", "movie", "class")
    hours, minutes = s.number(2, 9), s.number(5, 55, 5)
    s.say(f"A {what} lasts {hours} hours and {minutes} minutes.")
    total = s.work("The hours are", hours, "*", 60, "minutes")
    total = s.work(f"The {what} lasts", total, "+", minutes, "minutes")
    ending = s.number(0, 2)
    if ending == 0:
        s.say(f"How many minutes does the {what} last?")
    elif ending == 1:
        k = s.number(10, 90, 5)
        s.say(f"{name} has been there for {k} minutes.", "How many minutes are left?")
        s.work("There are", total, "-", k, "minutes")
    else:
        s.say("How many minutes do 2 of them last?")
        s.work("They last", total, "*", 2, "minutes")


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


def tell_saving(s: Story) -> None:
    """What is missing for something dear, and how long it takes to save it."""
    (name,), item = s.names(1), s.pick("coat", "bike", "lamp", "chair", "game", "watch")
    a_week, weeks, has = s.number(3, 30), s.number(2, 12), s.number(5, 90)
    s.say(f"{name} wants a {item} that costs ${has + a_week * weeks}.", f"{name} has ${has}.")
    left = s.work(f"{name} needs", has + a_week * weeks, "-", has, "$")
    if s.chance(0.3):
        s.say(f"How much more money does {name} need?")
        return
    s.say(f"{name} saves ${a_week} a week.", f"How many weeks does {name} need?")
    s.work(f"{name} needs", left, "/", a_week, "weeks")


def tell_garden(s: Story) -> None:
    """Rows of plants that bear fruit."""
    (name,), plant = s.names(1), s.pick("trees", "plants")
    rows, each, fruit = s.number(2, 9), s.number(2, 12), s.number(2, 9)
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


def tell_average(s: Story) -> None:
    """Three scores and their average."""
    (name,), average = s.names(1), s.number(10, 90)
    a, b = s.number(5, 99), s.number(5, 99)
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


def tell_machine(s: Story) -> None:
    """The pace of a machine, from one time to another."""
    pace, hours, more, thing = s.number(3, 40), s.number(2, 9), s.number(2, 12), s.thing()
    s.say(f"A machine makes {pace * hours} {thing} in {hours} hours.")
    each = s.work("In an hour it makes", pace * hours, "/", hours, thing)
    s.say(f"How many {thing} does it make in {more} hours?")
    total = s.work(f"In {more} hours it makes", each, "*", more, thing)
    if s.chance(0.4):
        k = s.number(2, 30)
        s.sentences[-1] = f"It runs for {more} hours, and {k} of the {thing} are broken."
        s.say(f"How many good {thing} does it make?")
        s.work("It makes", total, "-", k, thing)


STORIES: tuple[Callable[[Story], None], ...] = (
    tell_changes,
    tell_comparison,
    tell_inverse,
    tell_shopping,
    tell_wages,
    tell_reading,
    tell_travel,
    tell_sharing,
    tell_sale,
    tell_boxes,
    tell_percent,
    tell_duration,
    tell_ages,
    tell_saving,
    tell_garden,
    tell_average,
    tell_machine,
)
