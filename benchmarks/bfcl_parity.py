"""Agreement of our BFCL checker with the official one, on gold, damaged and model-written answers.

    python benchmarks/bfcl_parity.py [--official .venv-bfcl/bin/python] [--outputs FILE.jsonl …]

Gold answers are written from each item's ground truth, in the item's language; damaged ones are made from them in ways
that keep or break them (dropped, renamed, added and retyped arguments, other values, more, fewer and shuffled calls,
broken syntax, words around). `--outputs` adds what models wrote: JSON lines with `id` and `answer`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from provenance import ROOT, data_folder, provenance, save

from nearfar.agents.evaluation.bfcl import AST_CATEGORIES, CATEGORIES, judge, read_item
from nearfar.agents.evaluation.call_text import Call, write_call

OFFICIAL_VERSION = "2026.3.23"
DAMAGES_PER_ITEM = 6


def rows(folder: Path) -> list[dict[str, Any]]:
    """Every item of one turn."""
    found = []
    for category in CATEGORIES:
        with gzip.open(folder / "bfcl" / f"{category}.jsonl.gz", "rt", encoding="utf-8") as file:
            found += [json.loads(line) for line in file]
    return found


def main() -> None:
    """Compares and writes results/bfcl_parity.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--official", type=Path, default=ROOT / ".venv-bfcl" / "bin" / "python")
    parser.add_argument("--outputs", type=Path, nargs="*", default=[])
    parser.add_argument("--show", type=int, default=0, help="print so many disagreements")
    arguments = parser.parse_args()
    if not arguments.official.exists():
        raise SystemExit(f"skipped: no bfcl-eval at {str(arguments.official)!r}; see benchmarks/bfcl_official.py")
    items = {row["id"]: row for row in rows(data_folder())}
    cases = [*written(items), *recorded(items, arguments.outputs)]
    lines = "\n".join(json.dumps({"item": items[name], "answer": answer}) for _, name, answer in cases)
    command = [str(arguments.official), str(ROOT / "benchmarks" / "bfcl_official.py")]
    official = subprocess.run(command, input=lines, capture_output=True, text=True, check=True).stdout.splitlines()
    verdicts = [json.loads(line) for line in official]

    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    shown = 0
    for (kind, name, answer), theirs in zip(cases, verdicts, strict=True):
        item = read_item(items[name])
        assert item is not None
        ours = judge(item, answer)
        # Where the official checker raises, its run ends without a verdict; only a wrong answer brings that about.
        same = ours.is_correct == (theirs is True)
        tally = counts[kind.split(":")[0], item.category]
        tally.update(n=1, same=same, right=theirs is True, raised=isinstance(theirs, str))
        if not same:
            tally["ours_right" if ours.is_correct else "theirs_right"] += 1
            if shown < arguments.show:
                shown += 1
                print(kind, name, "ours:", ours.fault, "theirs:", theirs, "\n   ", repr(answer)[:400])
    told = " --outputs " + " ".join(path.name for path in arguments.outputs) if arguments.outputs else ""
    results = provenance(f"python benchmarks/bfcl_parity.py{told}") | {
        "official": {"package": "bfcl-eval", "version": OFFICIAL_VERSION},
        "kinds": {kind: total(counts, kind) for kind in dict.fromkeys(kind for kind, _ in counts)},
        "languages": {
            language: total(counts, category=categories)
            for language, categories in {
                "python": [name for name in AST_CATEGORIES if name not in ("simple_java", "simple_javascript")],
                "java": ["simple_java"],
                "javascript": ["simple_javascript"],
                "relevance": [name for name in CATEGORIES if name not in AST_CATEGORIES],
            }.items()
        },
        "all": total(counts),
        "by_kind_and_category": [
            {"kind": kind, "category": category, **summary(tally)} for (kind, category), tally in counts.items()
        ],
    }
    print(json.dumps({key: results[key] for key in ("kinds", "languages", "all")}, indent=1))
    save(results, "bfcl_parity")


def total(counts: dict[tuple[str, str], Counter[str]], kind: str | None = None, category: Any = None) -> dict[str, Any]:
    """The sum over kinds and categories."""
    found: Counter[str] = Counter()
    for (each_kind, each_category), tally in counts.items():
        if kind in (None, each_kind) and (category is None or each_category in category):
            found += tally
    return summary(found)


def summary(tally: Counter[str]) -> dict[str, Any]:
    """How many answers, and the share with the same verdict."""
    return {
        "n": tally["n"],
        "same_verdict": round(tally["same"] / max(1, tally["n"]), 5),
        "official_right": tally["right"],
        "official_raised": tally["raised"],
        "right_by_ours_alone": tally["ours_right"],
        "right_by_official_alone": tally["theirs_right"],
    }


# --- answers ---------------------------------------------------------------------------------------------------------


def written(items: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str, Any]]:
    """Kind, item id and answer: gold ones, and ones made from them."""
    draw = random.Random(0)
    for name, row in items.items():
        language = {"simple_java": "java", "simple_javascript": "javascript"}.get(name.rsplit("_", 1)[0], "python")
        if not row.get("ground_truth"):
            for answer in relevance_answers(row, draw):
                yield "relevance", name, answer
            continue
        calls = [gold_call(entry) for entry in row["ground_truth"]]
        yield "gold", name, text_of(calls, row, language)
        yield "gold_values", name, [{call.name: dict(call.arguments)} for call in calls]
        for damage in draw.sample(DAMAGES, DAMAGES_PER_ITEM):
            yield f"damaged:{damage.__name__}", name, damage(calls, row, language, draw)


def gold_call(entry: dict[str, Any]) -> Call:
    """The call of the first right values."""
    [(name, arguments)] = entry.items()
    found = {key: first(values) for key, values in arguments.items() if first(values) != ""}
    return Call(name, found)


def first(values: Any) -> Any:
    """The first right value; "" where an argument is to be left out."""
    value = next((each for each in values if each != ""), "") if isinstance(values, list) else values
    return plain(value)


def plain(value: Any) -> Any:
    """The value where a dictionary holds lists of right values."""
    if isinstance(value, dict):
        return {key: first(each) for key, each in value.items() if first(each) != ""}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [plain(each) for each in value]
    return value


def text_of(calls: list[Call], row: dict[str, Any], language: str) -> str:
    """The calls as source of the item's language."""
    if language == "python":
        return f"[{', '.join(write_call(call) for call in calls)}]"
    properties = row["function"][0]["parameters"]["properties"]
    parts = []
    for call in calls:
        shown = [f"{key}={source(value, properties.get(key, {}), language)}" for key, value in call.arguments.items()]
        parts.append(f"{call.name}({', '.join(shown)})")
    return f"[{', '.join(parts)}]"


def source(value: Any, schema: dict[str, Any], language: str) -> str:
    """A value of the schema's type as Java or JavaScript."""
    kind, item = schema.get("type", "any"), (schema.get("items") or {})
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"{value}{'L' if kind == 'long' else 'f' if kind == 'float' and language == 'java' else ''}"
    if isinstance(value, str):
        return value if kind == "any" and value.isidentifier() else json.dumps(value, ensure_ascii=False)
    if not isinstance(value, list | tuple | dict):
        return repr(value)
    if isinstance(value, list | tuple):
        inside = ", ".join(source(each, item or {"type": "String"}, language) for each in value)
        if language == "javascript":
            return f"[{inside}]"
        names = {"integer": "int", "any": "Object"}
        element = names.get(item.get("type", "any"), item.get("type", "Object"))
        return f"new {element}[]{{{inside}}}" if kind == "Array" else f"new ArrayList<>(Arrays.asList({inside}))"
    entries = [(key, source(each, {"type": "String"}, language)) for key, each in value.items()]
    if language == "javascript":
        return "{" + ", ".join(f"{key}: {each}" for key, each in entries) + "}"
    puts = " ".join(f'put("{key}", {each});' for key, each in entries)
    return f"new HashMap<String, Object>() {{{{ {puts} }}}}"


def relevance_answers(row: dict[str, Any], draw: random.Random) -> list[Any]:
    """Answers that call something, and answers that do not."""
    function = row["function"][0] if row["function"] else {"name": "f", "parameters": {"properties": {}}}
    names = list(function["parameters"]["properties"])
    call = f"{function['name']}({', '.join(f'{name}=1' for name in names)})"
    answers = [
        "",
        "[]",
        f"[{call}]",
        call,
        f"```python\n{call}\n```",
        f"I would call {call}.",
        "None of the functions can be used.",
        "[[]]",
        f"[{call}, {call}]",
        f"{call}; {call}",
        "['no']",
        [],
        [{}],
        [{function["name"]: {}}],
        "null",
        f"[{function['name']}]",
    ]
    return draw.sample(answers, 3)


# --- damages: each makes an answer of gold calls ---------------------------------------------------------------------


def _changed(calls: list[Call], draw: random.Random, change: Any) -> list[Call]:
    """The calls with one of them changed."""
    place = draw.randrange(len(calls))
    arguments = dict(calls[place].arguments)
    return [*calls[:place], change(calls[place].name, arguments), *calls[place + 1 :]]


def dropped_argument(calls: list[Call], row: Any, language: str, draw: random.Random) -> Any:
    def change(name: str, arguments: dict[str, Any]) -> Call:
        if arguments:
            arguments.pop(draw.choice(sorted(arguments)))
        return Call(name, arguments)

    return text_of(_changed(calls, draw, change), row, language)


def added_argument(calls: list[Call], row: Any, language: str, draw: random.Random) -> Any:
    def change(name: str, arguments: dict[str, Any]) -> Call:
        schema = next((each for each in row["function"] if each["name"] == name), row["function"][0])
        missing = [key for key in schema["parameters"]["properties"] if key not in arguments]
        return Call(name, arguments | {draw.choice([*missing, "extra"]): draw.choice([1, "a", True, [], {}])})

    return text_of(_changed(calls, draw, change), row, language)


def other_value(calls: list[Call], row: Any, language: str, draw: random.Random) -> Any:
    def change(name: str, arguments: dict[str, Any]) -> Call:
        if arguments:
            key = draw.choice(sorted(arguments))
            arguments[key] = _other(arguments[key], draw)
        return Call(name, arguments)

    return text_of(_changed(calls, draw, change), row, language)


def _other(value: Any, draw: random.Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return draw.choice([value + 1, float(value), str(value), -value, bool(value)])
    if isinstance(value, float):
        return draw.choice([value + 0.5, int(value), str(value), round(value, 1)])
    if isinstance(value, str):
        return draw.choice([value + "x", value.upper(), value.replace(" ", "-"), value.replace("'", '"'), [value], 3])
    if isinstance(value, list):
        tails = [value[::-1], value[:-1], [*value, *value[:1]], tuple(value), [str(each) for each in value], []]
        return draw.choice(tails)
    if isinstance(value, dict):
        keys = sorted(value)
        made = [{key: value[key] for key in keys[1:]}, value | {"extra": 1}, {}, str(value), [value]]
        if keys:
            made.append(value | {keys[0]: _other(value[keys[0]], draw)})
        return draw.choice(made)
    return None


def renamed_function(calls: list[Call], row: Any, language: str, draw: random.Random) -> Any:
    names = [each["name"] for each in row["function"]] + ["other", calls[0].name.upper(), calls[0].name.split(".")[-1]]
    return text_of(_changed(calls, draw, lambda name, args: Call(draw.choice(names), args)), row, language)


def renamed_argument(calls: list[Call], row: Any, language: str, draw: random.Random) -> Any:
    def change(name: str, arguments: dict[str, Any]) -> Call:
        return Call(
            name, {f"{key}_" if place == 0 else key: value for place, (key, value) in enumerate(arguments.items())}
        )

    return text_of(_changed(calls, draw, change), row, language)


def more_calls(calls: list[Call], row: Any, language: str, draw: random.Random) -> Any:
    return text_of([*calls, draw.choice(calls)], row, language)


def fewer_calls(calls: list[Call], row: Any, language: str, draw: random.Random) -> Any:
    return text_of(calls[1:], row, language)


def shuffled_calls(calls: list[Call], row: Any, language: str, draw: random.Random) -> Any:
    return text_of(draw.sample(calls, len(calls)), row, language)


def shuffled_arguments(calls: list[Call], row: Any, language: str, draw: random.Random) -> Any:
    def change(name: str, arguments: dict[str, Any]) -> Call:
        return Call(name, dict(draw.sample(sorted(arguments.items()), len(arguments))))

    return text_of(_changed(calls, draw, change), row, language)


def broken_syntax(calls: list[Call], row: Any, language: str, draw: random.Random) -> Any:
    text = text_of(calls, row, language)
    cut = draw.randrange(1, len(text) - 1)
    choices = [text[:cut], text[cut:], text.replace("(", " ", 1), text.replace("=", ":", 1), text.replace(",", "", 1)]
    return draw.choice([*choices, text.replace(")", "", 1), text + ")", text.replace("=", "==", 1)])


def words_around(calls: list[Call], row: Any, language: str, draw: random.Random) -> Any:
    text = text_of(calls, row, language)
    return draw.choice(
        [f"Sure: {text}", f"{text}\nThat is it.", f"```\n{text}\n```", f"`{text}`", f" {text[1:-1]} ", text + ";"]
    )


def other_literals(calls: list[Call], row: Any, language: str, draw: random.Random) -> Any:
    text = text_of(calls, row, language)
    for old, new in [
        ("True", "true"),
        ("true", "True"),
        ("'", '"'),
        ('"', "'"),
        ("[]", "()"),
        (".0", ""),
        ("=[", "=("),
    ]:
        if draw.random() < 0.5:
            text = text.replace(old, new)
    return text


def computed(calls: list[Call], row: Any, language: str, draw: random.Random) -> Any:
    def change(name: str, arguments: dict[str, Any]) -> Call:
        return Call(name, {key: _Source(draw.choice(forms(value))) for key, value in arguments.items()})

    def forms(value: Any) -> list[str]:
        return [
            f"{value!r}",
            f"{value!r} + 0",
            f"-{value!r}",
            "-5",
            "2**3",
            "x",
            "f(1)",
            "f(a=1)",
            "x[0]",
            "a.b",
            "f'{x}'",
        ]

    changed = _changed(calls, draw, change)
    return f"[{', '.join(write_call(call) for call in changed)}]"


class _Source:
    """Shows as the source that it is given."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def as_values(calls: list[Call], row: Any, language: str, draw: random.Random) -> Any:
    changed = _changed(calls, draw, lambda name, args: Call(name, {k: _json_other(v, draw) for k, v in args.items()}))
    return [{call.name: dict(call.arguments)} for call in changed]


def _json_other(value: Any, draw: random.Random) -> Any:
    value = value if draw.random() < 0.6 else _other(value, draw)
    return list(value) if isinstance(value, tuple) else value


DAMAGES = [
    dropped_argument,
    added_argument,
    other_value,
    renamed_function,
    renamed_argument,
    more_calls,
    fewer_calls,
    shuffled_calls,
    shuffled_arguments,
    broken_syntax,
    words_around,
    other_literals,
    computed,
    as_values,
]


def recorded(items: dict[str, Any], paths: list[Path]) -> Iterator[tuple[str, str, Any]]:
    """What models wrote."""
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["id"] in items:
                yield "model", row["id"], row["answer"]


if __name__ == "__main__":
    main()
