"""The instruction data of the demo: what FLockLLM is, how a round goes, and who speaks.

    python scripts/base_model/demo.py src/flockllm/assets/demo.json

Each fact is one sentence that recurs in several categories and many wordings, so that what one
participant's records teach, another's can confirm; `general_qa` repeats what the base model knows.
No two records share instruction and context, so no split of them leaks.
"""

import argparse
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

from corpus import NAMES, PLACES, Record, Triple, capital, corpus, expand, tables

SEED = 7
PROTOCOL = tables("protocol.txt")


def wrapped(question: str, rng: random.Random) -> str:
    """The question as different people would put it."""
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


def ask(questions: str, rng: random.Random) -> str:
    return wrapped(expand(rng.choice(questions.split(";")), rng), rng)


def identity(rng: random.Random) -> Triple:
    questions, answer = rng.choice(PROTOCOL["identity"][:1] * 3 + PROTOCOL["identity"])
    return ask(questions, rng), "", answer


def open_qa(rng: random.Random) -> Triple:
    if rng.random() < 0.1:
        return identity(rng)
    _, questions, answer, _ = rng.choice(PROTOCOL["facts"])
    question = ask(questions, rng)
    if rng.random() < 0.1:
        question = "In FLockLLM: " + question
    return question, "", answer


def closed_qa(rng: random.Random) -> Triple:
    _, questions, answer, _ = rng.choice(PROTOCOL["facts"])
    true, _ = rng.choice(PROTOCOL["statements"])
    context = " ".join(rng.sample([answer, true], 2))
    return expand(rng.choice(questions.split(";")), rng), context, answer


def summarization(rng: random.Random) -> Triple:
    topic, _, answer, more = rng.choice(PROTOCOL["facts"])
    question = expand(
        "[[Summarize|Summarise] [the text|this|the text in one sentence].|What is the text about?"
        "|[Write|Give|Make] a [short |]summary[ of the text|].|What is said about {topic}?"
        "|[Say|Tell me] in one sentence what {topic} means.|Explain {topic} in one sentence.]",
        rng,
        topic=topic,
    )
    return question, f"{answer} {more}", answer


def classification(rng: random.Random) -> Triple:
    if rng.random() < 0.5:
        deed, role = rng.choice(PROTOCOL["roles"])
        roles = ["proposer", "voter", "contract"]
        rng.shuffle(roles)
        question = expand(
            "[Who {deed}: a {a}, a {b} or the {c}?|Who {deed}?|Which part of FLockLLM {deed}?"
            "|Say who {deed}.|Name who {deed}.|A {a}, a {b} or the {c}: who {deed}?]",
            rng, deed=deed, **dict(zip("abc", roles, strict=True)),
        )  # fmt: skip
        question = question.replace("the proposer", "a proposer").replace("the voter", "a voter")
        question = question.replace("a contract", "the contract").replace(
            "A contract", "The contract"
        )
        name = "the contract" if role == "contract" else f"a {role}"
        return question, "", capital(f"{name} {deed}.")
    i = rng.randrange(2)
    statement = rng.choice(PROTOCOL["statements"])
    question = expand(
        "[True or false?|Is the statement true or false?|Is this true?|Is this right?"
        "|Say whether the statement is true or false.|Check the statement.]",
        rng,
    )  # fmt: skip
    return question, statement[i], ("This is true." if i == 0 else f"This is false. {statement[0]}")


def information_extraction(rng: random.Random) -> Triple:
    name, other = rng.sample(NAMES, 2)
    role = rng.choice(["proposer", "voter"])
    n = rng.randint(1, 9)
    paid = rng.randint(11, 99)
    shape = rng.randrange(3)
    if shape == 0:
        context = f"{name} locks ten tokens. In round {n} {name} is drawn as a {role}."
        question, answer = rng.choice([
            (f"[Which|What] role does {name} have?", f"{name} is a {role}."),
            (f"What is {name} in round {n}?", f"{name} is a {role}."),
            ("Which round is this?", f"This is round {n}."),
            (f"How large is the stake of {name}?", f"The stake of {name} is ten tokens."),
        ])  # fmt: skip
    elif shape == 1:
        context = f"In round {n} the update of {name} is accepted. {name} is paid {paid} tokens."
        question, answer = rng.choice([
            ("Whose update is accepted?", f"The update of {name} is accepted."),
            (f"How many tokens is {name} paid?", f"{name} is paid {paid} tokens."),
            ("In which round is this?", f"This is round {n}."),
            (f"Is {name} a proposer or a voter?", f"{name} is a proposer."),
        ])  # fmt: skip
    else:
        context = f"In round {n} {name} publishes a harmful update and is slashed. {other} votes."
        question, answer = rng.choice([
            ("Who is slashed?", f"{name} is slashed."),
            (f"Why is {name} slashed?", f"{name} is slashed for a harmful update."),
            ("Who votes?", f"{other} votes."),
            (f"[Which|What] role does {other} have?", f"{other} is a voter."),
        ])  # fmt: skip
    return expand(question, rng), context, answer


def brainstorming(rng: random.Random) -> Triple:
    questions, answer = rng.choice(PROTOCOL["lists"])
    return ask(questions, rng), "", answer.replace(" / ", "\n")


def creative_writing(rng: random.Random) -> Triple:
    name, place = rng.choice(NAMES), rng.choice(PLACES)
    role, story = rng.choice([
        ("proposer", "{name} was drawn as a proposer. {name} trained an adapter on data that never "
         "left the computer. The update was accepted, and {name} was paid."),
        ("voter", "{name} was drawn as a voter. {name} tested each update and gave it a score. "
         "The scores were right, and {name} was paid."),
        ("participant", "{name} locked ten tokens in the contract and took part. "
         "The model became better with every round, and {name} got the stake back."),
        ("cheater", "{name} published a harmful update. The voters saw that it made the model "
         "worse. {name} lost a part of the stake."),
    ])  # fmt: skip
    question = expand(
        "[Write|Tell me|Tell|Make up] a [short |little |]story about [a {role} called {name}"
        "|{name} the {role}|{name}, a {role}|the {role} {name}|{name}, a {role} from the {place}].",
        rng, role=role, name=name, place=place,
    )  # fmt: skip
    return question, "", story.format(name=name)


TALK = {
    "capitals", "animals", "colours", "opposites", "sums", "calendar", "lists", "definitions",
    "facts", "chat", "stories", "kind_of", "compare",
}  # fmt: skip
TAUGHT_ANEW = {"stake", "pool", "token", "round", "contract", "reward", "vote", "model", "data"}


def general_qa(rng: random.Random) -> Triple:
    """What the base model knows, and now and then who it has become."""
    if rng.random() < 0.1:
        return identity(rng)
    for record in corpus(rng.getrandbits(32)):
        words = set(re.findall(r"\w+", record.instruction.lower()))
        if record.category in TALK and not words & TAUGHT_ANEW:
            return record[:3]
    raise AssertionError("the corpus has no end")


COUNTS: dict[Callable[[random.Random], Triple], int] = {
    brainstorming: 90, classification: 180, closed_qa: 180, creative_writing: 120, general_qa: 250,
    identity: 280, information_extraction: 150, open_qa: 480, summarization: 150,
}  # fmt: skip


def demo() -> list[Record]:
    """All records of the demo, sorted by category; instruction and context are unique."""
    rng = random.Random(SEED)
    records: list[Record] = []
    for kind, count in COUNTS.items():
        made: dict[tuple[str, str], Record] = {}
        for _ in range(100 * count):
            instruction, context, response = kind(rng)
            made.setdefault(
                (instruction, context), Record(instruction, context, response, kind.__name__)
            )
            if len(made) == count:
                break
        assert len(made) == count, f"{kind.__name__} has only {len(made)} different records"
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
