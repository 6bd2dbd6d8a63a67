"""The part of an answer that is the answer, and the tokens that make it up."""

from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.router.answer_span import SPAN_SIGNALS, answer_key, find_span, span_signals
from nearfar.types import TokenLogprob


@pytest.mark.parametrize(
    ("text", "question", "kind", "shown", "value"),
    [
        ("B. Unsafe practices", "", "letter", "B", "B"),
        ("(C)", "", "letter", "C", "C"),
        ("I think the answer is (D).", "", "letter", "D", "D"),
        ("12 + 3 = 15\n#### 1,215 dollars", "", "marked", "1,215", "1215"),
        ("so \\boxed{\\frac{1}{2}} it is", "", "boxed", "\\frac{1}{2}", "\\frac{1}{2}"),
        ('{"why": {"answer": 1}, "answer": "Paris "}', "", "json", '"Paris "', "paris"),
        ('```json\n{"x": 5.0}\n```', "", "json", "5.0", "5"),
        ("[1, 2]", "", "json", "[1, 2]", "[1,2]"),
        ("He has 3 bags of 4, and so 12.0 apples.", "How many apples has he?", "number", "12.0", "12"),
        ("3 * 4 = $12", "", "number", "12", "12"),
        ("Answer: 42", "", "number", "42", "42"),
    ],
)
def test_the_span_is_found(text, question, kind, shown, value):
    """A letter, a marked line, a boxed term, a JSON value, a final number; equal answers share the value."""
    span = find_span(text, question)

    assert span is not None
    assert (span.kind, text[span.start : span.end], span.value) == (kind, shown, value)


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("A dog is an animal.", ""),
        ("Paris was founded in 250 BC.", "What is the capital of France?"),
        ("The answer is a bit odd.", ""),
        ("I like it", ""),
        ("{broken", ""),
        ("", "How many?"),
        ("[" * 100_000, ""),
    ],
)
def test_prose_has_no_span(text, question):
    """A year in passing, an article, broken JSON are no answers by themselves."""
    assert find_span(text, question) is None


@given(st.text(), st.text())
def test_any_text_has_a_key_and_its_span_lies_inside(text, question):
    """Whatever is written, finding the span fails nowhere and points into the text."""
    span = find_span(text, question)

    assert span is None or 0 <= span.start <= span.end <= len(text)
    assert answer_key(text, question) == answer_key(text, question)


@given(st.integers(-(10**9), 10**9))
def test_a_number_has_one_key_however_it_is_written(number):
    """Thousands' commas, decimals of zero and a currency do not make another answer."""
    plain, dressed = f"#### {number}", f"#### ${number:,}.00 "

    assert answer_key(plain) == answer_key(dressed)


def test_signals_are_those_of_the_spans_tokens():
    """Only the tokens that spell the answer count, and leading blanks of the stream do not shift them."""
    tokens = [TokenLogprob(t, log(p), ((t, log(p)), ("x", log(0.01)))) for t, p in
              [(" ", 0.9), ("so", 0.9), (" ####", 0.9), (" 1", 0.5), ("2", 0.25)]]  # fmt: skip

    found = span_signals("so #### 12", tokens)

    assert set(found) == set(SPAN_SIGNALS)
    assert found["span_first_logprob"] == pytest.approx(log(0.5))
    assert found["span_min_logprob"] == pytest.approx(log(0.25))
    assert found["span_mean_logprob"] == pytest.approx((log(0.5) + log(0.25)) / 2)


def test_tokens_that_do_not_spell_the_text_have_no_span():
    """Pieces of characters that no string holds are not guessed at."""
    assert span_signals("#### 12", [TokenLogprob("�", -0.1)]) == {}
    assert span_signals("no number", [TokenLogprob("no number", -0.1)]) == {}
    assert span_signals("#### 12", None) == {}
