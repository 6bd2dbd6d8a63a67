"""The check of user grammars, which keeps llama.cpp from printing to the terminal."""

import pytest

from nearfar.models import gbnf

VALID = [
    'root ::= "a"',
    'root ::= "yes" | "no"\n',
    "root ::= [^a-z\\]\\n]+ | .*",
    'root ::= item{2,3} # how many\nitem ::= ("a" | [0-9]{2})? "\\x41\\u00e9\\U0001F642"',
    'root ::=\n  "a" |\n  b-2\n\nb-2 ::= (\n "x"\n |\n "y" )',
    'root ::= a* b{1,} c{0,1}\r\na ::= "a"\r\nb ::= "b"\r\nc ::= ""\r\n',
    'root ::= "\\"" [\\\\"-] "\\t"',
    "root ::= <[5]> | !<[7]>",
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
}


@pytest.mark.parametrize("grammar", VALID)
def test_what_llama_cpp_takes_passes(grammar: str) -> None:
    """Every form of the notation, old and new."""
    gbnf.check(grammar)


@pytest.mark.parametrize("grammar", BROKEN)
def test_what_is_broken_is_named_with_its_place(grammar: str) -> None:
    """The client learns what is wrong, in one line."""
    with pytest.raises(ValueError, match=BROKEN[grammar].replace("{", r"\{").replace(")", r"\)")) as caught:
        gbnf.check(grammar)

    assert "\n" not in str(caught.value)
