"""Grammars as values: what they take, how they are written, and that every beginning can be finished."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.models.gbnf import Grammar
from nearfar.models.grammar import (
    ANY,
    Chars,
    Either,
    Node,
    Repeated,
    Text,
    accepts,
    by_prefix,
    completed,
    either,
    gbnf,
    optional,
    ranges_of,
    sampled,
    sequence,
    without,
)

LETTERS = Chars(((ord("a"), ord("c")),))
texts = st.text(alphabet='abcé<"\\', max_size=3)
leaves = st.one_of(texts.map(Text), st.sampled_from([LETTERS, Chars(((233, 233), (97, 97)))]))


def nodes(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    return st.one_of(
        st.lists(inner, max_size=3).map(lambda parts: sequence(*parts)),
        st.lists(inner, min_size=1, max_size=3).map(either),
        st.builds(
            lambda body, least, more: Repeated(body, least, None if more is None else least + more),
            inner,
            st.integers(0, 2),
            st.none() | st.integers(0, 2),
        ),
    )


grammars = st.recursive(leaves, nodes, max_leaves=6)


def expression(node: Node) -> str:
    """The same as a regular expression of Python's."""
    if isinstance(node, Text):
        return re.escape(node.text)
    if isinstance(node, Chars):
        return f"[{''.join(f'{chr(low)}-{chr(high)}' for low, high in node.ranges)}]"
    if isinstance(node, Either):
        return f"(?:{'|'.join(map(expression, node.options))})"
    if isinstance(node, Repeated):
        most = "" if node.most is None else node.most
        return f"(?:{expression(node.body)}){{{node.least},{most}}}"
    return "".join(f"(?:{expression(part)})" for part in node.parts)


@given(grammars, st.text(alphabet='abcé<"\\', max_size=8))
def test_it_takes_what_the_regular_expression_takes(grammar: Node, text: str) -> None:
    """On any text."""
    assert accepts(grammar, text) == bool(re.fullmatch(expression(grammar), text))


@given(grammars, st.randoms(use_true_random=False), st.integers(0, 20))
def test_every_beginning_is_finished_in_the_shortest_way(grammar: Node, chance: random.Random, cut: int) -> None:
    """A text of the grammar, cut anywhere, goes on as it began and ends no later than it did."""
    text = sampled(grammar, chance)
    begun = text[:cut]

    finished, taken = completed(grammar, begun)

    assert accepts(grammar, text)
    assert accepts(grammar, finished)
    assert (finished[:taken], taken) == (begun, len(begun))
    assert len(finished) <= len(text)


@given(grammars, st.text(max_size=8))
def test_anything_is_finished_from_where_it_strays(grammar: Node, text: str) -> None:
    """What is not a beginning is one up to some character."""
    finished, taken = completed(grammar, text)

    assert accepts(grammar, finished)
    assert finished.startswith(text[:taken])


@given(grammars)
def test_its_shortest_and_longest_are_its_own(grammar: Node) -> None:
    """The shortest is taken; the longest bounds every sample."""
    assert accepts(grammar, grammar.shortest)
    for seed in range(5):
        length = len(sampled(grammar, random.Random(seed)))
        assert length >= len(grammar.shortest)
        assert grammar.longest is None or length <= grammar.longest


@given(grammars)
def test_it_is_written_in_llama_cpps_notation(grammar: Node) -> None:
    """The reader of that notation finds nothing wrong."""
    Grammar(gbnf(grammar))


@given(st.lists(st.tuples(texts, st.sampled_from([Text("!"), LETTERS])), min_size=1, max_size=8), texts)
def test_shared_beginnings_are_there_once(options: list[tuple[str, Node]], text: str) -> None:
    """The same texts as the options one by one, with no two that begin alike side by side."""
    shared = by_prefix(options)
    apart = either(sequence(begin, rest) for begin, rest in options)

    for end in ("", "!", "a", "c"):
        assert accepts(shared, text + end) == accepts(apart, text + end)


def test_a_node_that_is_used_twice_is_one_rule() -> None:
    """A schema that refers to one definition from many places stays small."""
    node: Node = Text("x")
    for _ in range(40):
        node = either([sequence("(", node, node, ")"), node])

    assert len(gbnf(node)) < 5_000
    assert node.shortest == "x"


def test_a_written_grammar_reads_as_expected() -> None:
    """Escapes, classes and counts."""
    grammar = sequence(
        '"', Repeated(Chars(((0x30, 0x39), (0x4E2D, 0x4E2D))), 2, 4), optional(Text("\n")), Repeated(Text("a"), 3, 3)
    )

    assert gbnf(grammar) == 'root ::= "\\"" [0-9\\U00004E2D]{2,4} "\\U0000000A"? "a"{3}\n'


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)).map(sorted).map(tuple), max_size=5),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)).map(sorted).map(tuple), max_size=5),
)
def test_sets_of_characters_are_sets(first: list[tuple[int, int]], second: list[tuple[int, int]]) -> None:
    """Union and difference, whatever the ranges."""

    def members(pairs: object) -> set[int]:
        return {code for low, high in pairs for code in range(low, high + 1)}  # type: ignore[attr-defined]

    one, other = ranges_of(first), ranges_of(second)

    assert members(one) == members(first)
    assert members(without(one, other)) == members(first) - members(second)
    assert list(one) == sorted(one)


def test_any_character_is_no_half_of_a_pair() -> None:
    """Such a half cannot be written in UTF-8."""
    assert ANY.holds("\U0010ffff")
    assert not ANY.holds("\ud800")


@pytest.mark.parametrize("build", [lambda: Chars(()), lambda: either([]), lambda: Repeated(LETTERS, 2, 1)])
def test_a_grammar_of_nothing_cannot_be_made(build: object) -> None:
    """It would have no shortest text."""
    with pytest.raises(ValueError, match=r"empty|nothing"):
        build()  # type: ignore[operator]
