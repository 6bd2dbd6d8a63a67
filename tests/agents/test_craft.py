"""Tools made from solved problems: made, verified, merged, stored, found, and trusted by measure."""

import json
import math

import pytest

pytest.importorskip("pydantic_monty", reason="needs nearfar[agents]")
pytest.importorskip("wordllama", reason="needs nearfar[retrieval]")

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from support.gateway import router_of

from nearfar.agents.code_monty import MontyRunner
from nearfar.agents.craft import CraftedFunction, Library, Problem, Steering, apply, craft, verify
from nearfar.agents.craft_model import ModelMaker, read_function
from nearfar.agents.craft_worked import WorkedMaker, name_of, quantities, tool_of
from nearfar.errors import DataError
from nearfar.retrieval.embedders import find_embedder
from nearfar.testing import ScriptedModel

# Four of GSM8K's training problems (openai/grade-school-math, MIT).
CLIPS = Problem(
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many clips did "
    "Natalia sell altogether in April and May?",
    72,
    "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nNatalia sold 48+24 = <<48+24=72>>72 clips altogether.",
)
WENG = Problem(
    "Weng earns $12 an hour for babysitting. Yesterday, she just did 50 minutes of babysitting. How much did she earn?",
    10,
    "Weng earns 12/60 = $<<12/60=0.2>>0.2 per minute.\nWorking 50 minutes, she earned 0.2 x 50 = $<<0.2*50=10>>10.",
)
LETTERS = Problem(
    "James writes a 3-page letter to 2 different friends twice a week. How many pages does he write a year?",
    624,
    "He writes each friend 3*2=<<3*2=6>>6 pages a week\nSo he writes 6*2=<<6*2=12>>12 pages every week\n"
    "That means he writes 12*52=<<12*52=624>>624 pages a year",
)
SALE = Problem(
    "A shop sells a $1,200 sofa at 20% off. What does it cost now?",
    960,
    "The sofa is 1200*20% = $<<1200*20*.01=240>>240 cheaper.\nIt costs 1200-240 = $<<1200-240=960>>960.",
)


@pytest.fixture
async def runner():
    """monty."""
    runner = MontyRunner(workers=1)
    yield runner
    await runner.aclose()


async def test_worked_solution_becomes_a_function_of_its_numbers(runner):
    """The question's numbers are parameters, the rest constants; the function gives the answer, and others'."""
    tool = tool_of(CLIPS)

    assert tool.formula == "(p0 + (p0 / 2))"
    assert tool.examples[0].arguments == (48,)
    assert "48" not in tool.code
    assert await verify(tool, runner) == ""
    assert (await apply(tool, [10], runner)).value == 15


@pytest.mark.parametrize("problem", [CLIPS, WENG, LETTERS, SALE])
async def test_functions_stand_the_test_of_their_source(runner, problem):
    """Each solves the problem that it was made of, in the sandbox."""
    tool = tool_of(problem)

    assert tool is not None
    assert await verify(tool, runner) == ""
    assert len(tool.name.split("_")) <= 9
    assert tool.name.isidentifier()


@pytest.mark.parametrize(
    "solution", ["", "It is 72.", "<<48+1=49>>49", "<<__import__('os')=72>>72", "<<48//=72>>72", "<<(48=72>>72"]
)
async def test_what_is_no_calculation_makes_no_tool(runner, solution):
    """Code that does not lead to the answer, or is none, does not get in."""
    crafted = await craft([replace(CLIPS, solution=solution)], WorkedMaker(), runner)

    assert crafted.num_kept == 0
    assert sum(crafted.refused.values()) == 1


async def test_wrong_answers_are_refused_and_counted(runner):
    """A solution whose marks are right for themselves and wrong for the problem is seen through by running it."""
    lying = replace(CLIPS, solution="<<48/2=72>>72")

    crafted = await craft([CLIPS, lying], WorkedMaker(), runner)

    assert (crafted.num_made, crafted.num_verified, crafted.num_kept) == (2, 1, 1)
    assert crafted.refused == {"it gives another answer than its source": 1}


async def test_same_formulas_become_one_tool(runner):
    """Two problems of one kind make one tool, which both vouch for; equal names of others are told apart."""
    other = Problem(
        "Ann picked 10 pears on Monday and half as many on Tuesday. How many pears did Ann pick?",
        15,
        "<<10/2=5>>5 <<10+5=15>>15",
    )
    third = replace(other, answer=20, solution="<<10*2=20>>20")

    crafted = await craft([CLIPS, other, third], WorkedMaker(), runner)

    assert crafted.num_kept == 2
    first = crafted.library.tools[0]
    assert (first.num_problems, len(first.examples)) == (2, 2)
    assert len({tool.name for tool in crafted.library.tools}) == 2


async def test_library_is_verified_again_when_it_is_read(runner, tmp_path):
    """A tool that was changed in its file does not come back, and is told."""
    crafted = await craft([CLIPS, WENG], WorkedMaker(), runner)
    path = tmp_path / "tools.jsonl"
    crafted.library.save(path)
    same = await Library.load(path, runner)
    lines = path.read_text().splitlines()
    changed = json.loads(lines[0])
    changed["code"] = changed["code"].replace("return", "return 1 +")
    path.write_text("\n".join([json.dumps(changed), lines[1]]))
    again = await Library.load(path, runner)

    assert same.tools == crafted.library.tools
    assert len(again.tools) == 1
    assert again.refused == {changed["name"]: "it gives another answer than its source"}


@pytest.mark.parametrize("line", ["{", "[]", '{"name": "a b"}', '{"name": "x", "examples": [{}]}'])
async def test_file_that_is_no_library_says_which_line(runner, tmp_path, line):
    """The line's number is told."""
    path = tmp_path / "tools.jsonl"
    path.write_text(line + "\n")

    with pytest.raises(DataError, match="line 1"):
        await Library.load(path, runner)


async def test_tools_are_found_by_three_views(runner):
    """A problem of the same kind finds its tool first, by all views; an empty library finds nothing."""
    crafted = await craft([CLIPS, WENG, LETTERS, SALE], WorkedMaker(), runner)
    finder = crafted.library.index(find_embedder("static"), WorkedMaker().describe)

    (first, *others) = finder.find("Tom earns $9 an hour for gardening. Today he did 20 minutes. How much did he earn?")

    assert first.tool.formula == tool_of(WENG).formula
    assert first.votes == 3  # its only source problem is among the best ten in each view
    assert len(others) == 2
    assert 1 > first.score > others[0].score > 0
    assert Library([]).index(find_embedder("static"), WorkedMaker().describe).find("x") == []


async def test_model_writes_functions_too(runner):
    """What a model writes is verified like all else: right code stays, wrong code, chatter and no call do not."""
    good = (
        'Here:\n```python\ndef add_half(count: int):\n    """The count and half of it."""\n'
        "    more = count / 2\n    return count + more\n\nprint(add_half(48))\n```"
    )
    wrong = "def f(a):\n    return a\nf(48)"
    script = [good, wrong, "I cannot do that.", "def f(a):\n    return a\n", "def f(a, b):\n    return a\nf(1)"]
    maker = ModelMaker(router_of(ScriptedModel(script)))

    crafted = await craft([CLIPS] * 5, maker, runner)

    (tool,) = crafted.library.tools
    assert (crafted.num_made, crafted.num_verified) == (2, 1)
    assert (tool.name, tool.description, tool.parameters) == ("add_half", "The count and half of it.", ("count",))


def test_functions_of_one_kind_have_one_formula():
    """Names of functions, parameters and descriptions do not tell tools apart; what they compute does."""
    one = read_function('def f(a, b):\n    "x"\n    return a * b\nf(1, 2)', CLIPS)
    two = read_function("def g(c, d):\n    return c * d\ng(3, 4)", CLIPS)
    other = read_function("def g(c, d):\n    return c + d\ng(3, 4)", CLIPS)

    assert one.formula == two.formula != other.formula


async def test_crafted_function_is_a_tool(runner):
    """A role may call it with numbers by name; what it cannot compute is an error that the role sees."""
    tool = CraftedFunction(tool_of(WENG), runner)
    broken = CraftedFunction(replace(tool_of(WENG), code="def x(): pass"), runner)
    arguments = dict.fromkeys(tool.spec.parameters["required"], 6.0)

    seen = await tool.call(arguments)

    assert seen.structured == 6 / 60 * 6
    assert tool.hints.read_only
    assert (await broken.call(arguments)).kind == "error"


def test_numbers_are_read_in_digits_words_and_percent():
    """With the word that follows, which names the parameter."""
    found = quantities("He paid $1,200.50 for two sofas, 20% off, on May 3rd; route 66b is no number of it.")

    assert [(each.value, each.label) for each in found][:3] == [(1200.5, "for"), (2.0, "sofas"), (20.0, "percent")]


@given(st.text(max_size=300))
def test_any_question_has_a_name_and_quantities(text):
    """Whatever stands in a question, its name is an identifier of at most nine parts."""
    assert name_of(text).isidentifier()
    assert all(math.isfinite(each.value) for each in quantities(text))


_outcome = st.tuples(st.floats(-1, 1), st.booleans(), st.booleans())


@given(st.lists(_outcome, min_size=1, max_size=40))
def test_steering_is_never_worse_than_either_way_on_what_it_was_fitted(outcomes):
    """The cut gives as many right answers as it says, and at least as many as all text or all code."""
    scores, code, text = map(list, zip(*outcomes, strict=True))

    rule = Steering.fit(scores, code, text)
    right = [c if rule.trusts_code(s) else t for s, c, t in outcomes]

    assert math.isclose(rule.steered_accuracy, sum(right) / len(right))
    assert rule.steered_accuracy >= max(sum(code), sum(text)) / len(right) - 1e-12


def test_steering_without_tools_is_text():
    """Where no tool was ever found, code is never trusted."""
    rule = Steering.fit([-math.inf, -math.inf], [False, False], [True, False])

    assert not rule.trusts_code(0.9)
    assert rule.code_accuracy is None
    with pytest.raises(ValueError, match="one length"):
        Steering.fit([], [], [])
