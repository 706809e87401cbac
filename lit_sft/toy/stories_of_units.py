"""Stories about dollars, hours, miles and pages."""

from lit_sft.toy.story import GOODS, THINGS, Story


def tell_shopping(s: Story) -> None:
    """One or two kinds of goods, and perhaps the change from a bill."""
    (name,), (first, second) = s.names(1), s.rng.sample(THINGS, 2)
    k, price = s.number(2, 9), s.number(2, 15)
    if s.chance():
        s.say(f"{name} buys {k} {first} for ${price} each.")
    else:
        s.say(f"The {first} cost ${price} each.", f"{name} buys {k} {first}.")
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


def tell_sale(s: Story) -> None:
    """A price, some percent off, and perhaps several pieces."""
    (name,), item = s.names(1), s.pick(*GOODS)
    price, percent = s.number(20, 250, 10), s.number(10, 60, 10)
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


def tell_saving(s: Story) -> None:
    """What is missing for something dear, and how long it takes to save it."""
    (name,), item = s.names(1), s.pick(*GOODS)
    a_week, weeks, has = s.number(3, 25), s.number(2, 10), s.number(5, 90)
    s.say(f"{name} wants a {item} that costs ${has + a_week * weeks}.", f"{name} has ${has}.")
    left = s.work(f"{name} needs", has + a_week * weeks, "-", has, "$")
    if s.chance(0.3):
        s.say(f"How much more money does {name} need?")
        return
    s.say(f"{name} saves ${a_week} a week.", f"How many weeks does {name} need?")
    s.work(f"{name} needs", left, "/", a_week, "weeks")


def tell_wages(s: Story) -> None:
    """Hours a day, days, dollars an hour, and what becomes of the money."""
    (name,) = s.names(1)
    hours, days, wage = s.number(2, 8), s.number(2, 5), s.number(3, 20)
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
    pace, days, rest = s.number(3, 20), s.number(2, 9), s.number(2, 9)
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
    speed, hours = s.number(3, 25), s.number(2, 9)
    moves = s.pick("drives", "rides", "travels")
    s.say(f"{name} {moves} at {speed} miles an hour for {hours} hours.")
    total = s.work(f"{name} {moves}", speed, "*", hours, "miles")
    ending = s.number(0, 2)
    if ending == 0:
        k = s.number(2, 80)
        s.say(f"Then {name} {moves} {k} more miles.")
        total = s.work("The trip is", total, "+", k, "miles")
    elif ending == 1:
        speed, hours = s.number(10, 90, 10), s.number(2, 5)
        s.say(f"Then {name} {moves} at {speed} miles an hour for {hours} more hours.")
        more = s.work(f"Then {name} {moves}", speed, "*", hours, "miles")
        total = s.work("The trip is", total, "+", more, "miles")
    s.say(f"How many miles is the {s.pick('whole', 'full')} trip?")


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


def tell_machine(s: Story) -> None:
    """The pace of a machine, from one time to another."""
    pace, hours, more, thing = s.number(3, 25), s.number(2, 9), s.number(2, 9), s.thing()
    s.say(f"A machine makes {pace * hours} {thing} in {hours} hours.")
    each = s.work("In an hour it makes", pace * hours, "/", hours, thing)
    s.say(f"How many {thing} does it make in {more} hours?")
    total = s.work(f"In {more} hours it makes", each, "*", more, thing)
    if s.chance(0.4):
        k = s.number(2, 30)
        s.sentences[-1] = f"It runs for {more} hours, and {k} of the {thing} are broken."
        s.say(f"How many good {thing} does it make?")
        s.work("It makes", total, "-", k, thing)
