"""Break the contract in one small place at a time and see whether the tests notice.

    python scripts/mutate_contract.py --count 200 --seed 1 --report fuzz/mutations.md

A mutant changes one operator, comparison, constant or condition, or leaves one statement out. It
is killed if it differs from the model within `--games` games, or else, if it fails a test under
tests/contracts that is run on its sources. What does not compile, or compiles to the same bytes,
is not a valid mutant. The factory and its terms are not played: the tests judge them.
"""

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "contracts"
PLAYED = ("Task.vy", "stakes.vy", "seats.vy", "verdicts.vy", "packing.vy")
TESTED = ("TaskFactory.vy", "terms.vy")

SWAPS = {
    ">=": (">", "<"),
    "<=": ("<", ">"),
    ">": (">=", "<="),
    "<": ("<=", ">="),
    "==": ("!=",),
    "!=": ("==",),
    "+": ("-",),
    "-": ("+",),
    "*": ("//",),
    "//": ("*",),
    "+=": ("-=",),
    "-=": ("+=",),
    "^=": ("|=",),
    "|=": ("&=",),
    "and": ("or",),
    "or": ("and",),
    "not": ("",),
    "|": ("&",),
    "&": ("|",),
    "<<": (">>",),
    ">>": ("<<",),
    "min": ("max",),
    "True": ("False",),
    "False": ("True",),
}
TOKEN = re.compile(
    r"[+\-|^]=|//|\*\*|<<|>>|[<>=!]=|[<>+\-*|&]|\b(?:and|or|not|min|True|False|\d[\d_]*)\b"
)


@dataclass(frozen=True)
class Mutant:
    """One changed line."""

    file: str
    line: int
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: `{self.before.strip()}` → `{self.after.strip()}`"


def mutants(file: str) -> Iterator[Mutant]:
    """All mutants of one source file."""
    quoted = inside = False
    for number, line in enumerate((SOURCES / file).read_text().splitlines(), start=1):
        fence = line.count('"""')
        if quoted or fence:
            quoted ^= fence == 1
            continue
        if re.match(r"(@deploy|@external|@view|@pure|def )", line):
            inside = True
        elif re.match(r"(struct|event|interface|#|[\w]+: )", line):
            inside = False
        code = re.sub(r"(#.*|\"[^\"]*\")", lambda m: " " * len(m[0]), line)
        if not inside or not code.startswith("    "):
            continue
        yield from (Mutant(file, number, line, after) for after in _changed(line, code))


def _changed(line: str, code: str) -> Iterator[str]:
    for found in TOKEN.finditer(code):
        here = found[0]
        if here == "-" and code[found.start() :].startswith("->"):
            continue
        for other in SWAPS.get(here, (str(int(here) + 1),) if here[0].isdigit() else ()):
            yield line[: found.start()] + other + line[found.end() :]
    indent = re.match(r" *", line)[0]  # type: ignore[index]
    statement = code.strip()
    if re.match(r"(assert|log|self\.|stakes\.|committee\.|[\w.]+ [+|^-]?= )", statement) and (
        statement.count("(") == statement.count(")")
    ):
        yield f"{indent}pass"
    if found := re.match(r"( *(?:el)?if )(.*):$", line):
        yield f"{found[1]}True:"
        yield f"{found[1]}False:"


@cache
def compiled(folder: Path) -> tuple[bytes, bytes]:
    """Deployment and running code of the sources in a folder; the former carries their hash."""
    sys.path.insert(0, str(ROOT / "scripts"))
    from vyper.compiler import CompilerData
    from vyper.compiler.input_bundle import FilesystemInputBundle

    from build_contracts import blueprint

    bundle = FilesystemInputBundle([folder])
    data = CompilerData(bundle.load_file("Task.vy"), input_bundle=bundle)
    return blueprint(data.bytecode), data.bytecode_runtime


def judge(mutant: Mutant, games: int, tests: bool) -> str:
    """`model`, `tests`, `survived`, or `invalid`."""
    sys.path.insert(0, str(ROOT))
    from fuzz.campaign import play

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "contracts"
        shutil.copytree(SOURCES, folder)
        lines = (folder / mutant.file).read_text().splitlines()
        lines[mutant.line - 1] = mutant.after
        (folder / mutant.file).write_text("\n".join(lines) + "\n")
        if mutant.file in PLAYED:
            try:
                code, running = compiled(folder)
            except (Exception, SystemExit):  # whatever the compiler says
                return "invalid"
            if running == compiled(SOURCES)[1]:
                return "invalid"
            for seed in range(games):
                try:
                    play(seed, code)
                except Exception:  # any difference, or a call that the game cannot even decode
                    return "model"
        return "tests" if tests and not _passes(folder) else "survived"


def _passes(folder: Path) -> bool:
    tests = [p for p in (ROOT / "tests/contracts").glob("test_*.py") if "gas" not in p.name]
    tests = [p for p in tests if "artifacts" not in p.name]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests],
        cwd=ROOT,
        env=os.environ | {"FLOCKLLM_CONTRACTS": str(folder)},
        capture_output=True,
    )
    return done.returncode == 0


def main() -> None:
    """Judges a sample of all mutants, and writes down who survived."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="mutants to try")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--games", type=int, default=150)
    parser.add_argument("--files", nargs="*", default=PLAYED)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--quick", action="store_true", help="games only, no tests for survivors")
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    everyone = [mutant for file in options.files for mutant in mutants(file)]
    chosen = random.Random(options.seed).sample(everyone, min(options.count, len(everyone)))
    counts: dict[str, Counter[str]] = {file: Counter() for file in options.files}
    survivors = []
    with ProcessPoolExecutor(options.jobs) as pool:
        waiting = {
            pool.submit(judge, mutant, options.games, not options.quick): mutant
            for mutant in chosen
        }
        for future in as_completed(waiting):
            mutant, fate = waiting[future], future.result()
            counts[mutant.file][fate] += 1
            if fate == "survived":
                survivors.append(mutant)
            print(f"{fate:<9}{mutant}", flush=True)
    text = table(counts, len(everyone)) + "".join(f"\n- {mutant}" for mutant in survivors)
    print(text)
    if options.report:
        options.report.write_text(text + "\n")


def table(counts: dict[str, Counter[str]], everyone: int) -> str:
    """Mutants by file and fate."""
    lines = [
        f"{sum(c.total() for c in counts.values())} of {everyone} mutants tried.\n",
        "| file | valid | killed by the model | by tests | survived |",
        "|---|---|---|---|---|",
    ]
    for name, fates in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
        valid = fates.total() - fates["invalid"]
        lines.append(
            f"| {name} | {valid} | {fates['model']} | {fates['tests']} | {fates['survived']} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
