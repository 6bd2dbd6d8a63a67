"""User grammars: what is wrong with them is told by its place, and texts are checked by them."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfar.models.gbnf import Grammar

VALID = [
    'root ::= "a"',
    'root ::= "yes" | "no"\n',
    "root ::= [^a-z\\]\\n]+ | .*",
    'root ::= item{2,3} # how many\nitem ::= ("a" | [0-9]{2})? "\\x41\\u00e9\\U0001F642"',
    'root ::=\n  "a" |\n  b-2\n\nb-2 ::= (\n "x"\n |\n "y" )',
    'root ::= a* b{1,} c{0,1}\r\na ::= "a"\r\nb ::= "b"\r\nc ::= ""\r\n',
    'root ::= "\\"" [\\\\"-] "\\t"',
    "root ::= <[5]> | <|im_end|>",
]

BROKEN = {
    "": "no rule 'root'",
    "   \n# nothing\n": "no rule 'root'",
    'foo ::= "a"': "no rule 'root'",
    "root := x": "'::=' is expected in line 1",
    "root ::= x": "rule 'x' is used and not defined",
    'root ::= "a': "not closed",
    "root ::= [a-z": "not closed",
    'root ::= "\\q"': "unknown escape",
    'root ::= ("a" | "b"': "')' is expected",
    'root ::= "a")': "the end of the rule is expected",
    "root ::= *": "needs something before it",
    'root ::= "a"{x}': "a repetition is",
    'root ::= "a"\n= "b"': "a rule's name is expected in line 2",
    f"root ::= {'(' * 200}": "nested too deeply",
    "%llguidance {}\nstart: /a/": "a rule's name is expected in line 1",
    "root ::= !<[7]>": "may not come",
    'root ::= "a"{5,2}': "least is more than its most in line 1, at '{5,2}'",
    'root ::= "a"{2001}': "more than 2000 times",
    f'root ::= "a"{{{"9" * 5000}}}': "more than 2000 times",
    "root ::= [z-a]": "'z-a' runs backwards",
    "root ::= []": "holds no character",
    r"root ::= [^\U00000000-\U0010FFFF]": "holds no character",
    r'root ::= "\UFFFFFFFF"': "no character",
    r'root ::= "\uD800"': "no character",
    'root ::= "a"**': "needs something before it",
    f"root ::= {'x ' * 10_001}\nx ::= .": "more than 10000 letters",
    f"root ::= {'.{2000}' * 6}": "more than 10000 letters",
    "root ::= .\n" + "\n".join(f"r{i} ::= r{i + 1}" for i in range(1001)): "more than 1000 rules",
    "root ::= .\n" + "\n".join(f"r{i} ::= {'(' * 50}.{')' * 50}" for i in range(20)): "more than 1000 rules",
}


@pytest.mark.parametrize("grammar", VALID)
def test_what_llama_cpp_takes_passes(grammar: str) -> None:
    """Every form of the notation, old and new."""
    assert Grammar(grammar).lark().startswith("root: ")


@pytest.mark.parametrize("grammar", BROKEN, ids=range(len(BROKEN)))
def test_what_is_broken_is_named_with_its_place(grammar: str) -> None:
    """The client learns what is wrong, in one line."""
    with pytest.raises(ValueError, match=re.escape(BROKEN[grammar])) as caught:
        Grammar(grammar)

    assert "\n" not in str(caught.value)


def test_lark_has_a_terminal_for_every_letter() -> None:
    """Its terminals are greedy: with longer ones "ab" | [a-z] "b" would not be what it is in GBNF."""
    lark = Grammar('root ::= "é/"? | x{2,} | [^\\n]{3}\nx ::= "é" | ""').lark()

    assert lark == (
        'root: (((C0 C1)){0,1} | (r1){2,} | (C2){3,3})\nr1: ((C0) | "")\n'
        r"C0: /[\x{E9}-\x{E9}]/"
        "\n"
        r"C1: /[\x{2F}-\x{2F}]/"
        "\n"
        r"C2: /[\x{0}-\x{9}\x{B}-\x{D7FF}\x{E000}-\x{10FFFF}]/"
    )


JSON = r"""
root ::= object
value ::= object | array | string | number | "true" | "false" | "null"
object ::= "{" ws (string ":" ws value ("," ws string ":" ws value)*)? "}" ws
array ::= "[" ws (value ("," ws value)*)? "]" ws
string ::= "\"" ([^"\\\x00-\x1f] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}))* "\"" ws
number ::= "-"? [0-9]+ ("." [0-9]+)? ws
ws ::= [ \t\n]*
"""


@pytest.mark.parametrize(
    ("grammar", "whole", "begun", "neither"),
    [
        ('root ::= "a"{2,3}', ["aa", "aaa"], ["", "a"], ["aaaa", "b", "aab"]),
        ('root ::= "ab" "x" | [a-z] "b" "y"', ["abx", "aby"], ["ab", "a"], ["abz", "bb x"]),
        ('root ::= root "a" | "b"', ["b", "baaa"], [""], ["a", "bab"]),
        ('root ::= a root | "b"\na ::= ""', ["b"], [""], ["bb"]),
        ('root ::= x x\nx ::= "x"?', ["", "x", "xx"], [], ["xxx"]),
        ("root ::= [^a]*", ["", "é\n\U0001f642"], [], ["ba"]),
        (JSON, ['{"a": [1, {"b": "x\\n"}], "c": null}'], ['{"a": [', '{"a": "tex'], ['{"a" 1', "{a}", "[]"]),
        ("root ::= " + "r0 r0\n" + "\n".join(f"r{i} ::= r{i + 1} r{i + 1}" for i in range(30)) + '\nr30 ::= "x"?',
         ["", "x", "xxxx"], [], ["y", "xy"]),
    ],
)  # fmt: skip
def test_texts_are_checked(grammar: str, whole: list[str], begun: list[str], neither: list[str]) -> None:
    """Left recursion, empty rules and millions of ways to read a text included."""
    own = Grammar(grammar)

    for text in whole:
        assert not own.refuses(text, is_whole=True)
        assert not own.refuses(text, is_whole=False)
    for text in begun:
        assert own.refuses(text, is_whole=True)
        assert not own.refuses(text, is_whole=False)
    for text in neither:
        assert own.refuses(text, is_whole=False)


def test_a_text_that_takes_too_long_to_check_is_not_refused() -> None:
    """Only what is certainly wrong is."""
    deep = Grammar('root ::= "a" root | "a"')

    assert deep.refuses("a" * 50 + "c", is_whole=True)
    assert not deep.refuses("a" * 5000 + "c", is_whole=True)


#: The same in GBNF and as a regular expression.
PAIRS = st.recursive(
    st.sampled_from([('"a"', "a"), ('"b"', "b"), ('"ab"', "(?:ab)"), ("[ab]", "[ab]"), ("[^a]", "[^a]"), (".", ".")]),
    lambda inner: (
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{0,2}", "{1,}"])).map(
            lambda p: (f"({p[0][0]}){p[1]}", f"(?:{p[0][1]}){p[1]}")
        )
        | st.tuples(inner, inner).map(lambda p: (f"{p[0][0]} {p[1][0]}", p[0][1] + p[1][1]))
        | st.tuples(inner, inner).map(lambda p: (f"({p[0][0]} | {p[1][0]})", f"(?:{p[0][1]}|{p[1][1]})"))
    ),
    max_leaves=6,
)


@given(pair=PAIRS, text=st.text("abc", max_size=6))
@settings(deadline=None)
def test_texts_are_checked_as_regular_expressions_are(pair: tuple[str, str], text: str) -> None:
    """Where a grammar is regular, `re` is the judge."""
    grammar, regex = pair

    assert Grammar(f"root ::= {grammar}").refuses(text, is_whole=True) == (re.fullmatch(regex, text) is None)
