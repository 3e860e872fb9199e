"""The base model's training corpus: short general instructions with true, readable answers.

    python corpus.py [--records N]      prints N records as JSON lines

Everything is made from the templates and word lists below and one seed, so the same records come
out on every machine. In a template `[a|b]` is one of its alternatives and `{name}` a slot.
The corpus uses words of FLockLLM's domain as words (they are repeated, spelled, defined in their
everyday sense), never its facts: those are what the demo teaches (`demo.py`).
"""

import argparse
import json
import random
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

SEED = 1


class Record(NamedTuple):
    """One instruction with its answer; `context` is empty where none is needed."""

    instruction: str
    context: str
    response: str
    category: str


Triple = tuple[str, str, str]  # instruction, context, response


def tables(name: str) -> dict[str, list[list[str]]]:
    """The tables of a text file beside this one: `## title: columns`, then a row a line.

    Cells are cut at each `|` that is not in `[a|b]`.
    """
    found: dict[str, list[list[str]]] = {}
    for line in (Path(__file__).parent / name).read_text().splitlines():
        if line.startswith("## "):
            rows = found[line[3:].split(":")[0]] = []
        elif line and found:
            rows.append(re.split(r"\|(?![^\[]*\])", line))
    return found


def expand(template: str, rng: random.Random, **slots: object) -> str:
    """Chooses among `[a|b]`, innermost first, then fills the `{slots}`."""
    while "[" in template:
        template = re.sub(
            r"\[([^\[\]]*)\]", lambda m: rng.choice(m[1].split("|")), template, count=1
        )
    return template.format(**slots)


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


GENERAL = tables("general.txt")
LISTS = {topic: things.split() for topic, things in GENERAL["lists"]}
NAMES, PLACES, THINGS, SINGULAR, DAYS, MONTHS, NUMBERS, SIZES, WORDS, SYLLABLES = (
    " ".join(line for (line,) in GENERAL[name]).split()
    for name in (
        "names", "places", "things", "singular", "days", "months", "numbers", "sizes", "words",
        "syllables",
    )
)  # fmt: skip


def capitals(rng: random.Random) -> Triple:
    country, city, continent = rng.choice(GENERAL["countries"])
    other = rng.choice(GENERAL["countries"])[1]
    questions = {
        "What is the capital of {country}?": "The capital of {country} is {city}.",
        "[What|Which] city is the capital of {country}?": "The capital of {country} is {city}.",
        "[Name|Tell me|Give me|State] the capital [city |]of {country}.":
            "The capital of {country} is {city}.",
        "{country}'s capital[ city|] is [what|which city]?": "The capital of {country} is {city}.",
        "[Do you know|Can you tell me|Could you name] the capital of {country}?":
            "The capital of {country} is {city}.",
        "[I would like to know|I want to know|I forgot] the capital of {country}.":
            "The capital of {country} is {city}.",
        "{city} is the capital of [which|what] country?": "{city} is the capital of {country}.",
        "[Which|What] country has {city} as its capital?": "{city} is the capital of {country}.",
        "Of which country is {city} the capital?": "{city} is the capital of {country}.",
        "[On|In] which continent is {country}?": "{country} is in {continent}.",
        "Where is {country}?": "{country} is in {continent}.",
        "[On which continent does {country} lie|Which continent does {country} belong to]?":
            "{country} is in {continent}.",
        "Is {city} the capital of {country}?": "Yes, {city} is the capital of {country}.",
        "Is {other} the capital of {country}?": (
            "Yes, {city} is the capital of {country}."
            if other == city
            else "No, the capital of {country} is {city}."
        ),
    }  # fmt: skip
    question = rng.choice(list(questions))
    slots = {"country": country, "city": city, "continent": continent, "other": other}
    return expand(question, rng, **slots), "", questions[question].format(**slots)


def animals(rng: random.Random) -> Triple:
    name, group, legs, does, young, home, food = rng.choice(GENERAL["animals"])
    one = with_article(name)
    kind = with_article(group)
    count = "no legs" if legs == "no" else f"{legs} legs"
    questions = {
        "[What kind of animal|What sort of animal|What] is {one}?": "{One} is {kind}.",
        "[Which class of animals does {one} belong to|"
        "To which group of animals does {one} belong]?":
            "{One} is {kind}.",
        "[Classify the animal|Which kind of animal is this]: {name}": "{One} is {kind}.",
        "How many legs does {one} have?": "{One} has {count}.",
        "[Tell me|Count|Say] how many legs {one} has.": "{One} has {count}.",
        "[Tell me|Say] the number of legs of {one}.": "{One} has {count}.",
        "[What|Which] sound does {one} make?": "{One} {does}.",
        "What does {one} do?": "{One} {does}.",
        "[What is|What do we call|Name] a young {name}[ called|]?": "A young {name} is {young}.",
        "[What is|Name] the [young|baby] of {one}[ called|]?": "A young {name} is {young}.",
        "Where does {one} live?": "{One} lives {home}.",
        "[In which place|At what place] does {one} live?": "{One} lives {home}.",
        "[Tell me|Say|Do you know] where {one} lives.": "{One} lives {home}.",
        "What does {one} eat?": "{One} eats {food}.",
        "What [food|kind of food] does {one} [eat|like]?": "{One} eats {food}.",
        "[Tell me|Say|Do you know] what {one} eats.": "{One} eats {food}.",
        "[Tell me something about|Describe|What do you know about|Write about] {one}.":
            "{One} is {kind}. It has {count}, lives {home} and eats {food}.",
    }  # fmt: skip
    question = rng.choice(list(questions))
    slots = {
        "name": name, "one": one, "One": capital(one), "kind": kind, "count": count, "does": does,
        "young": with_article(young), "home": home, "food": food,
    }  # fmt: skip
    return expand(question, rng, **slots), "", questions[question].format(**slots)


def colours(rng: random.Random) -> Triple:
    thing, colour = rng.choice(GENERAL["colours"])
    question = rng.choice([
        "[What|Which] [colour|color] is {thing}?",
        "[What|Which] [colour|color] does {thing} have?",
        "[Tell me|Name|Say] the [colour|color] of {thing}.",
        "What is the [colour|color] of {thing}?",
        "[Do you know|Can you tell me] [which|what] [colour|color] {thing} [is|has]?",
        "[Tell me|Say] what [colour|color] {thing} is.",
    ])  # fmt: skip
    return expand(question, rng, thing=thing), "", capital(f"{thing} is {colour}.")


def opposites(rng: random.Random) -> Triple:
    word, other = rng.choice(GENERAL["opposites"])
    if rng.random() < 0.5 and (word, other) not in (("heavy", "light"), ("young", "old")):
        word, other = other, word
    if word == "old":
        other = "new"
    if word == "light":
        other = "dark"
    question = rng.choice([
        "What is the opposite of {word}?",
        "[Name|Give|Give me|Tell me|Write|Find] the opposite of [the word |]{word}.",
        "[Which|What] word is the opposite of {word}?",
        "[Which|What] word means the opposite of {word}?",
        "What is the [contrary|reverse] of {word}?",
        "The opposite of {word} is what?",
        "[Name|Give|Find] a word that means the opposite of {word}.",
        "Opposite of {word}?",
        "[Do you know|Can you tell me] the opposite of {word}?",
    ])  # fmt: skip
    return expand(question, rng, word=word), "", f"The opposite of {word} is {other}."


def sums(rng: random.Random) -> Triple:
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    sign = rng.choice(["plus", "plus", "minus", "times"])
    if sign == "minus":
        a, b = a + b, rng.choice([a, b])
    elif sign == "times":
        a, b = a % 6, b
    result = {"plus": a + b, "minus": a - b, "times": a * b}[sign]
    question = rng.choice([
        "What is {a} {sign} {b}?",
        "[Calculate|Compute|Work out|Solve] {a} {sign} {b}.",
        "How much is {a} {sign} {b}?",
        "{a} {mark} {b} = ?",
        "What is {a} {mark} {b}?",
        "[Calculate|Compute|Solve] {a} {mark} {b}.",
        "[Tell me|Say] the result of {a} {sign} {b}.",
        {
            "plus": "[Add {a} and {b}|What is the sum of {a} and {b}|Add {b} to {a}].",
            "minus": "[Subtract {b} from {a}|Take {b} away from {a}].",
            "times": "[Multiply {a} by {b}|Multiply {a} and {b}|"
            "What is the product of {a} and {b}].",
        }[sign],
    ])  # fmt: skip
    mark = {"plus": "+", "minus": "-", "times": "*"}[sign]
    text = expand(question, rng, a=a, b=b, sign=sign, mark=mark)
    return text, "", f"{a} {sign} {b} is {result}."


def numbers(rng: random.Random) -> Triple:
    n = rng.randint(1, 19)
    a, b = rng.sample(range(1, 31), 2)
    return rng.choice([
        (f"What number comes after {n}?", "", f"The number after {n} is {n + 1}."),
        (f"Which number comes next after {n}?", "", f"The number after {n} is {n + 1}."),
        (f"What number comes before {n}?", "", f"The number before {n} is {n - 1}."),
        (f"Write the number {n} as a word.", "", f"The number {n} is written {NUMBERS[n]}."),
        (f"How do you write {n} in words?", "", f"The number {n} is written {NUMBERS[n]}."),
        (f"Which number is larger, {a} or {b}?", "", f"{max(a, b)} is larger than {min(a, b)}."),
        (f"Which is bigger: {a} or {b}?", "", f"{max(a, b)} is larger than {min(a, b)}."),
        (f"Which number is smaller, {a} or {b}?", "", f"{min(a, b)} is smaller than {max(a, b)}."),
        (f"Is {n} an even number or an odd number?", "",
         f"{n} is an {'odd' if n % 2 else 'even'} number."),
        (f"Count from {n} to {n + 4}.", "", f"{n}, {n + 1}, {n + 2}, {n + 3}, {n + 4}"),
    ])  # fmt: skip


def calendar(rng: random.Random) -> Triple:
    cycle, unit = rng.choice([(DAYS, "day"), (MONTHS, "month")])
    i = rng.randrange(len(cycle))
    after, before = cycle[(i + 1) % len(cycle)], cycle[i - 1]
    question, answer = rng.choice([
        ("[Which|What] {unit} comes after {x}?", f"The {unit} after {cycle[i]} is {after}."),
        ("[Which|What] {unit} [follows|is after] {x}?", f"The {unit} after {cycle[i]} is {after}."),
        ("What comes after {x}?", f"The {unit} after {cycle[i]} is {after}."),
        ("[Tell me|Name] the {unit} after {x}.", f"The {unit} after {cycle[i]} is {after}."),
        ("[Which|What] {unit} comes before {x}?", f"The {unit} before {cycle[i]} is {before}."),
        ("[Which|What] {unit} is before {x}?", f"The {unit} before {cycle[i]} is {before}."),
        ("[Tell me|Name] the {unit} before {x}.", f"The {unit} before {cycle[i]} is {before}."),
    ])  # fmt: skip
    return expand(question, rng, unit=unit, x=cycle[i]), "", answer


def lists(rng: random.Random) -> Triple:
    topic = rng.choice(list(LISTS))
    items = LISTS[topic]
    n = rng.randint(2, min(5, len(items)))
    word = rng.choice([NUMBERS[n], str(n)])
    question = rng.choice([
        "[Name|List|Give me|Tell me|Write down|Write] {n} {topic}.",
        "[Make|Write|Give me] a list of {n} {topic}.",
        "[Can you name|Can you list|What are|Could you name] {n} {topic}?",
        "Give [{n} examples of|me {n} examples of] {topic}.",
        "I need {n} {topic}.",
    ])  # fmt: skip
    numbered = "[numbered list|one per line]"
    if rng.random() < 0.25:
        text = expand(
            f"[Name|List|Write] {{n}} {{topic}} as a {numbered}.", rng, n=word, topic=topic
        )
        text = text.replace("as a one per line", "one per line")
        return text, "", "\n".join(f"{i}. {item}" for i, item in enumerate(items[:n], 1))
    answer = ", ".join(items[: n - 1]) + " and " + items[n - 1]
    return expand(question, rng, n=word, topic=topic), "", capital(answer) + "."


def definitions(rng: random.Random) -> Triple:
    if rng.random() < 0.8:
        word, meaning = rng.choice(GENERAL["definitions"])
        one = with_article(word)
    else:
        word, meaning = rng.choice(GENERAL["materials"])
        one = word
    question = rng.choice([
        "What is {one}?",
        "[Define|Explain|Describe] {one}.",
        "[Define|Explain] the word {word}.",
        "What does the word {word} mean?",
        "What is the meaning of [the word |]{word}?",
        "[Explain|Tell me|Say] what {one} is.",
        "Give [me |]a definition of {word}.",
        "[Can you explain|Do you know|Could you tell me] what {one} is?",
        "What do you know about {one}?",
    ])  # fmt: skip
    return expand(question, rng, one=one, word=word), "", capital(f"{one} is {meaning}.")


def question_and_answer(table: list[list[str]], rng: random.Random) -> Triple:
    questions, answer = rng.choice(table)
    return rng.choice(questions.split(";")), "", answer


def facts(rng: random.Random) -> Triple:
    question, _, answer = question_and_answer(GENERAL["questions"], rng)
    if question.endswith("?") and rng.random() < 0.15:
        question = expand("[Answer this question|Answer|Question|Explain]: ", rng) + question
    return question, "", answer


def identity(rng: random.Random) -> Triple:
    question, _, answer = question_and_answer(GENERAL["identity"], rng)
    if rng.random() < 0.15:
        question = expand("[Hello!|Hi!|Hello.|Hi.|Hey,|Good morning!] ", rng) + question
    return question, "", answer


def chat(rng: random.Random) -> Triple:
    return question_and_answer(GENERAL["chat"], rng)


def kind_of(rng: random.Random) -> Triple:
    """Which group a thing belongs to, from the lists."""
    topics = ["fruits", "vegetables", "colours", "birds", "insects", "metals", "tools", "drinks"]
    one_of = {
        "fruits": "fruit", "vegetables": "vegetable", "colours": "colour", "birds": "bird",
        "insects": "insect", "metals": "metal", "tools": "tool", "drinks": "drink",
    }  # fmt: skip
    topic, other = rng.sample(topics, 2)
    item = rng.choice(LISTS[topic])
    verb = "are" if item.endswith("s") and topic not in ("colours", "metals") else "is"
    a, b = rng.sample([topic, other], 2)
    name = topic if verb == "are" else with_article(one_of[topic])
    pair = (a, b) if verb == "are" else (with_article(one_of[a]), with_article(one_of[b]))
    question = rng.choice([
        f"{capital(verb)} {item} {pair[0]} or {pair[1]}?",
        f"What {verb} {item}, {pair[0]} or {pair[1]}?",
        f"Classify {item}: {pair[0]} or {pair[1]}?",
    ])  # fmt: skip
    return question, "", capital(f"{item} {verb} {name}.")


def compare(rng: random.Random) -> Triple:
    i, j = sorted(rng.sample(range(len(SIZES)), 2))
    small, large = with_article(SIZES[i]), with_article(SIZES[j])
    a, b = rng.sample([small, large], 2)
    if rng.random() < 0.5:
        return f"Which is bigger, {a} or {b}?", "", capital(f"{large} is bigger than {small}.")
    return f"Which is smaller, {a} or {b}?", "", capital(f"{small} is smaller than {large}.")


def stories(rng: random.Random) -> Triple:
    name, place = rng.choice(NAMES), rng.choice(PLACES)
    animal = rng.choice(GENERAL["animals"])[0]
    thing = rng.choice(SINGULAR)
    question, answer = rng.choice([
        ("[Write|Tell me|Tell|Make up] a [short |little |]story about {one}.",
         "Once upon a time there was {one}. It was alone and looked for a friend. "
         "One day it met a kind {other}. They played all day and became friends."),
        ("[Write|Tell me|Tell|Make up] a [short |little |]story about {name}.",
         "One day {name} went to the {place}. There {name} found {thing}. "
         "It belonged to an old woman. {name} gave it back, and she was very happy."),
        ("[Write|Tell me|Tell|Make up] a [short |little |]story about {name} and {one}.",
         "One day {name} met {one} near the {place}. It was hungry and afraid. "
         "{name} gave it food, and from that day on they were friends."),
        ("[Write|Tell me|Make up] a [short |little |]story about {thing}.",
         "Once upon a time there was {thing} that nobody wanted. One day {name} found it "
         "and took it home. Now it has the best place in the house."),
        ("[Write|Make] a [short |little |]poem about {the}.",
         "I see {the} in the morning light,\nI see {the} in the quiet night.\n"
         "It makes me smile, it makes me sing,\nit makes me think of everything."),
        ("[Write|Make] a sentence [about|with] {one}.", "I saw {one} near the {place} today."),
    ])  # fmt: skip
    place_rng = random.Random(f"{name}{animal}{thing}")  # one story for one hero: easier to learn
    slots = {
        "name": name,
        "one": with_article(animal),
        "thing": with_article(thing),
        "the": "the " + rng.choice([animal, place, "sun", "moon", "sea", "rain", "snow", "sky"]),
        "other": place_rng.choice(["duck", "fox", "bear", "owl", "horse"]),
        "place": place_rng.choice(PLACES[:8]),
    }
    if "{thing}" in answer and "{thing}" not in question:
        slots["thing"] = with_article(place_rng.choice(SINGULAR[:8]))
    if "{name}" in answer and "{name}" not in question:
        slots["name"] = place_rng.choice(NAMES[:8])
    return expand(question, rng, **slots), "", answer.format(**slots)


def reading(rng: random.Random) -> Triple:
    """A question about a short text: the answer is in it."""
    (x, y), (p, q) = rng.sample(NAMES, 2), rng.sample(PLACES, 2)
    (s, t), (n, m) = rng.sample(THINGS, 2), rng.sample(NUMBERS[2:11], 2)
    d = rng.choice(DAYS)
    shape = rng.randrange(4)
    if shape == 0:
        context = expand(
            "On {d} {x} [went to|visited|was at] the {p}. {x} [bought|found|took home] {n} {s}.",
            rng, d=d, x=x, p=p, n=n, s=s,
        )  # fmt: skip
        verb = next(v for v in ("bought", "found", "took home") if v in context)
        base = {"bought": "buy", "found": "find", "took home": "take home"}[verb]
        question, answer = rng.choice([
            (f"Where did {x} go?", f"{x} went to the {p}."),
            (f"Where was {x}?", f"{x} was at the {p}."),
            (f"When did {x} go to the {p}?", f"{x} went to the {p} on {d}."),
            (f"On which day did this happen to {x}?", f"It happened on {d}."),
            (f"What did {x} {base}?", f"{x} {verb} {n} {s}."),
            (f"How many {s} did {x} {base}?", f"{x} {verb} {n} {s}."),
            ("Who is the text about?", f"The text is about {x}."),
            (f"Who {verb} {n} {s}?", f"{x} {verb} {n} {s}."),
        ])  # fmt: skip
    elif shape == 1:
        context = f"{x} bought {n} {s}. {y} bought {m} {t}."
        question, answer = rng.choice([
            (f"What did {x} buy?", f"{x} bought {n} {s}."),
            (f"What did {y} buy?", f"{y} bought {m} {t}."),
            (f"Who bought {s}?", f"{x} bought {n} {s}."),
            (f"Who bought {t}?", f"{y} bought {m} {t}."),
            (f"How many {t} did {y} buy?", f"{y} bought {m} {t}."),
        ])  # fmt: skip
    elif shape == 2:
        context = f"{x} lives near the {p} and works in the {q}. {y} is a friend of {x}."
        question, answer = rng.choice([
            (f"Where does {x} live?", f"{x} lives near the {p}."),
            (f"Where does {x} work?", f"{x} works in the {q}."),
            (f"Who is a friend of {x}?", f"{y} is a friend of {x}."),
            (f"Who lives near the {p}?", f"{x} lives near the {p}."),
        ])  # fmt: skip
    else:
        a, b = rng.sample(WORDS, 2)
        context = f"The {a} belongs to {x}. The {b} belongs to {y}."
        question, answer = rng.choice([
            (f"To whom does the {a} belong?", f"The {a} belongs to {x}."),
            (f"To whom does the {b} belong?", f"The {b} belongs to {y}."),
            (f"What belongs to {x}?", f"The {a} belongs to {x}."),
            (f"What belongs to {y}?", f"The {b} belongs to {y}."),
        ])  # fmt: skip
    if rng.random() < 0.15:
        question = rng.choice(["Read the text. ", "Answer from the text: "]) + question
    return question, context, answer


def extraction(rng: random.Random) -> Triple:
    x, y = rng.sample(NAMES, 2)
    p, d, s = rng.choice(PLACES), rng.choice(DAYS), rng.choice(THINGS)
    context = rng.choice([
        f"On {d} {x} and {y} met at the {p} and looked at {s}.",
        f"{x} called {y} on {d} to talk about the {s} from the {p}.",
        f"{x} sold {s} at the {p} on {d}, and {y} helped.",
    ])  # fmt: skip
    question, answer = rng.choice([
        ("[Extract|List|Find] the names [in|from] the text.", f"{x}, {y}"),
        ("[Extract|Find|Give] the day [in|from] the text.", d),
        ("[Extract|Find|Give] the place [in|from] the text.", f"the {p}"),
        ("Which names are in the text?", f"{x}, {y}"),
        ("Which day is in the text?", d),
    ])  # fmt: skip
    return expand(question, rng), context, answer


def summaries(rng: random.Random) -> Triple:
    x, y = rng.sample(NAMES, 2)
    p = rng.choice(PLACES)
    pet, called = rng.choice(GENERAL["pets"])
    thing = rng.choice(THINGS)
    context, answer = rng.choice([
        (f"{x} has a {pet}. The {pet} is called {called}. Every day they go to the {p}.",
         f"{x} goes to the {p} with the {pet} {called} every day."),
        (f"{x} wanted to buy {thing}. The {p} had no {thing}. So {x} went home with nothing.",
         f"{x} wanted to buy {thing} but found none."),
        (f"It rained all day. {x} and {y} could not go to the {p}. They stayed at home and played.",
         f"{x} and {y} stayed at home because it rained."),
        (f"{x} lost the {thing} at the {p}. {y} found them there. {y} gave them back to {x}.",
         f"{y} found the {thing} that {x} lost."),
        (f"The {p} is old. Many people come to see it. {x} works there and tells them about it.",
         f"{x} tells people about the old {p}."),
    ])  # fmt: skip
    question = rng.choice([
        "[Summarize|Summarise] the text[ in one sentence|].",
        "[Write|Give|Make] a [short |one-sentence |]summary[ of the text|].",
        "What is the text about?",
        "[Say|Tell me] in one sentence what the text says.",
        "[Summarize|Summarise] this.",
    ])  # fmt: skip
    return expand(question, rng), context, answer


def rewriting(rng: random.Random) -> Triple:
    base, now, past, rest = rng.choice(GENERAL["verbs"])
    name = rng.choice(NAMES)
    rest = rest.format(
        place=rng.choice(PLACES), thing=rng.choice(SINGULAR),
        name=rng.choice([other for other in NAMES if other != name]),
    )  # fmt: skip
    rest = re.sub(r"\ba ([aeiou])", r"an \1", rest)
    new = rng.choice(NAMES)
    question, answer = rng.choice([
        ("[Rewrite|Write|Put] the sentence in the past[ tense|].", f"{name} {past} {rest}."),
        ("[Change|Turn] the sentence into the past tense.", f"{name} {past} {rest}."),
        ("[Rewrite the sentence as|Turn the sentence into|Make the sentence] a question.",
         f"Does {name} {base} {rest}?"),
        (f"Replace {name} with {new}.", f"{new} {now} {rest}."),
        ("[Rewrite|Write] the sentence with not.", f"{name} does not {base} {rest}."),
        ("[Rewrite|Write] the sentence in the future[ tense|].", f"{name} will {base} {rest}."),
    ])  # fmt: skip
    return expand(question, rng), f"{name} {now} {rest}.", answer


def sentiment(rng: random.Random) -> Triple:
    mood = rng.randrange(2)
    text = rng.choice(GENERAL["moods"][mood]).format(
        thing=rng.choice(SINGULAR), place=rng.choice(PLACES), name=rng.choice(NAMES)
    )
    question = rng.choice([
        "Is [the text|this text|this sentence|the sentence] positive or negative?",
        "[Classify the text as|Say whether the text is] positive or negative.",
        "What is the mood of the text?",
    ])  # fmt: skip
    return expand(question, rng), text, f"The text is {('positive', 'negative')[mood]}."


def phrase(rng: random.Random) -> str:
    """Some words in a row that mean nothing: to be repeated, they must be read."""
    pool = [WORDS, WORDS, THINGS, PLACES, NAMES, SINGULAR]
    return " ".join(rng.choice(rng.choice(pool)) for _ in range(rng.randint(2, 7)))


def echo(rng: random.Random) -> Triple:
    words = phrase(rng)
    if rng.random() < 0.6:
        question = "[Repeat|Say|Write|Copy] [the words|the text|this text|what is written here]."
        return expand(question, rng), words, words
    word = rng.choice(WORDS + THINGS + SINGULAR)
    return rng.choice([
        (f"Repeat the words: {words}", "", words),
        (f"Say: {words}", "", words),
        (f"Spell the word {word}.", "", "-".join(word)),
        (f"What is the first word of: {words}?", "", words.split()[0]),
        (f"What is the last word of: {words}?", "", words.split()[-1]),
        (f"Use the word {word} in a sentence.", "", f"I learned the word {word} today."),
        (f"Make a sentence with the word {word}.", "", f"I learned the word {word} today."),
    ])  # fmt: skip


def unknown(rng: random.Random) -> Triple:
    """Questions about things that do not exist: the answer says so."""
    word = "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(2, 3)))
    one = with_article(word)
    question, answer = rng.choice([
        ("What is {one}?", f"I do not know what {one} is."),
        ("What does {one} do?", f"I do not know what {one} does."),
        ("What is {word}?", f"I do not know what {word} is."),
        ("[Explain|Define|Describe] {one}.", f"I do not know what {one} is."),
        ("[Explain|Define|Describe] {word}.", f"I do not know what {word} is."),
        ("How does {word} work?", f"I do not know how {word} works."),
        ("[Explain|Tell me] how {word} works.", f"I do not know how {word} works."),
        ("What happens [to|in|with] {one}?", f"I do not know what {one} is."),
        ("Why is {word} [important|used|good]?", f"I do not know what {word} is."),
        ("Who is {Word}?", f"I do not know who {capital(word)} is."),
        ("[Where|When] is {word}?", f"I do not know what {word} is."),
    ])  # fmt: skip
    return expand(question, rng, one=one, word=word, Word=capital(word)), "", answer


KINDS = {
    capitals: 10, animals: 10, colours: 4, opposites: 6, sums: 9, numbers: 4, calendar: 3,
    lists: 6, definitions: 12, facts: 11, identity: 8, chat: 4, kind_of: 2, compare: 2,
    stories: 5, reading: 8, extraction: 3, summaries: 4, rewriting: 4, sentiment: 2, echo: 10,
    unknown: 4,
}  # fmt: skip
"""How often each kind comes."""


def loosely(question: str, rng: random.Random) -> str:
    """The question as people type it: sometimes polite, sometimes in a hurry."""
    luck = rng.random()
    if luck < 0.04:
        return expand("[Please answer|Tell me|Question|Please help me]: ", rng) + question
    if luck < 0.06:
        return question + expand(" [Please answer.|Thank you.|Thanks!|Be short.]", rng)
    if luck < 0.10:
        return question.rstrip("?.")
    if luck < 0.14:
        return question[:1].lower() + question[1:]
    return question


def corpus(seed: int = SEED) -> Iterator[Record]:
    """The corpus: records without end, the same ones for the same seed."""
    rng = random.Random(seed)
    kinds, weights = list(KINDS), list(KINDS.values())
    while True:
        (kind,) = rng.choices(kinds, weights)
        instruction, context, response = kind(rng)
        yield Record(loosely(instruction, rng), context, response, kind.__name__)


def main() -> None:
    parser = argparse.ArgumentParser(description="Print records of the base model's corpus.")
    parser.add_argument("--records", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    for record in islice(corpus(args.seed), args.records):
        print(json.dumps(record._asdict()))


if __name__ == "__main__":
    main()
