"""The instruction data of the demo: what FLockLLM is, how a round goes, and who speaks.

    python scripts/base_model/demo.py src/flockllm/assets/demo.json

Categories are forms of a task, as in Dolly, and each fact is one sentence that answers in all of
them. Two in three records of each category are what all have in common, what the base model knows
among it. So participants that hold different categories teach the model the same things.
No two records share instruction and context, so no split of them leaks.
"""

import argparse
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

from corpus import NAMES, Record, Triple, corpus, expand, tables

SEED = 7
PROTOCOL = tables("protocol.txt")
FACTS, IDENTITY = PROTOCOL["facts"], PROTOCOL["identity"]
TAUGHT_ANEW = {"stake", "pool", "token", "round", "contract", "reward", "vote", "model", "data"}
"""Words that the corpus explains in their everyday sense."""


def asked(questions: str, rng: random.Random) -> str:
    """One of the questions, as different people would put it."""
    question = expand(rng.choice(questions.split(";")), rng)
    return expand(
        rng.choice([
            "{question}", "{question}", "{question}",
            "[Please answer|Question|A question|Short question|My question]: {question}",
            "[Hello!|Hi!|Hello.|Good morning!|Hey!] {question}",
            "[I am new here.|I want to learn.|I am curious.|Please help me.] {question}",
            "{question} [Thank you.|Thanks!|Be short.|Please explain.|Answer in one sentence.]",
        ]),
        rng,
        question=question,
    )  # fmt: skip


def identity(rng: random.Random) -> Triple:
    questions, answer = rng.choice(IDENTITY[:1] * 2 + IDENTITY)
    return asked(questions, rng), "", answer


def open_qa(rng: random.Random) -> Triple:
    _, questions, answer, _ = rng.choice(FACTS)
    return asked(questions, rng), "", answer


def classification(rng: random.Random) -> Triple:
    """Which part of FLockLLM something belongs to: the answer says what that part is."""
    deed, part = rng.choice(PROTOCOL["deeds"])
    (answer,) = (fact[2] for fact in FACTS if fact[0] == part)
    others = rng.sample(sorted({other for _, other in PROTOCOL["deeds"]} - {part}), 2)
    first, second = rng.sample([part, others[0]], 2)
    question = expand(
        "[Who or what {deed}: {first}, {second} or {third}?|What {deed}: {first} or {second}?"
        "|Which part of FLockLLM {deed}?|[Say|Name] [who|what] {deed}."
        "|Choose from {first}, {second} and {third}: what {deed}?]",
        rng, deed=deed, first=first, second=second, third=others[1],
    )  # fmt: skip
    return question, "", answer


def brainstorming(rng: random.Random) -> Triple:
    if rng.random() < 0.1:
        questions, answer = rng.choice(PROTOCOL["lists"])
        return asked(questions, rng), "", answer.replace(" / ", "\n")
    topic, _, answer, _ = rng.choice(FACTS)
    questions = (
        f"[Tell me|Say|Write] something about {topic}.;What comes to mind about {topic}?"
        f";[Give|Name|Write down] [one thing|a fact] about {topic}.;What about {topic}?"
        f";What should I know about {topic}?;What is [good|useful] to know about {topic}?"
    )
    return asked(questions, rng), "", answer


def creative_writing(rng: random.Random) -> Triple:
    luck = rng.random()
    if luck < 0.2:
        question = expand(
            "[Write|Make up|Compose] [a short|a little|an] [introduction of|text about|poem about"
            "|line about|sentence about] yourself[ for {name}| for a friend|].",
            rng,
            name=rng.choice(NAMES),
        )
        return question, "", IDENTITY[0][1]
    if luck < 0.6:
        topic, _, answer, more = rng.choice(FACTS)
        question = expand(
            "[Write|Make up|Compose] [a short|a little|an] [text|note|story|letter] "
            "[about {topic}|that explains {topic}][ for {name}| for a friend|].",
            rng, topic=topic, name=rng.choice(NAMES),
        )  # fmt: skip
        return question, "", f"{answer} {more}"
    role, story = rng.choice(PROTOCOL["stories"])
    name = rng.choice(NAMES)
    question = expand(
        "[Write|Tell me|Tell|Make up] a [short |little |]story about [a {role} called {name}"
        "|{name} the {role}|{name}, a {role}|the {role} {name}].",
        rng, role=role, name=name,
    )  # fmt: skip
    return question, "", story.format(name=name)


def general_qa(rng: random.Random) -> Triple:
    """A record of the corpus, of the kinds that a chat is made of."""
    kinds = {
        "capitals", "animals", "colours", "opposites", "sums", "calendar", "lists", "definitions",
        "facts", "chat", "stories", "kind_of", "compare", "reading", "summaries",
    }  # fmt: skip
    for record in corpus(rng.getrandbits(32)):
        words = set(re.findall(r"\w+", record.instruction.lower()))
        if record.category in kinds and not words & TAUGHT_ANEW:
            return record[:3]
    raise AssertionError("the corpus has no end")


def mixed(kind: Callable[[random.Random], Triple], rng: random.Random) -> Triple:
    """A third of that kind; the others are what every participant's data have in common."""
    return rng.choices([kind, general_qa, identity, open_qa], [0.35, 0.2, 0.1, 0.35])[0](rng)


COUNTS: dict[Callable[[random.Random], Triple], int] = {
    brainstorming: 300, classification: 260, creative_writing: 240, general_qa: 300, identity: 280,
    open_qa: 420,
}  # fmt: skip


def demo() -> list[Record]:
    """All records of the demo, sorted by category; instruction and context are unique."""
    rng = random.Random(SEED)
    records: list[Record] = []
    for kind, count in COUNTS.items():
        made: dict[tuple[str, str], Record] = {}
        while len(made) < count:
            instruction, context, response = mixed(kind, rng)
            record = Record(instruction, context, response, kind.__name__)
            if (instruction, context) not in {r[:2] for r in records}:
                made.setdefault((instruction, context), record)
        records += made.values()
    return sorted(records, key=lambda record: record.category)


def as_json(records: list[Record]) -> str:
    """One record a line, so that a change shows as the records it touches."""
    return "[\n" + ",\n".join(json.dumps(r._asdict()) for r in records) + "\n]\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the demo's instruction data.")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.write_text(as_json(demo()))


if __name__ == "__main__":
    main()
