"""What an answer's own text tells: its arithmetic, its numbers, its end."""

from hypothesis import given
from hypothesis.strategies import floats, integers, sampled_from, text

from nearfar.router.answer_text import ANSWER_TEXT_SIGNALS, answer_text_signals

QUESTION = "A box has 12 pens. How many pens are in 3 boxes if 5 are lost?"


def test_sound_work_looks_sound():
    """Marked, whole, every number used, every calculation right, ending on the last result."""
    found = answer_text_signals(
        QUESTION, "There are 12 * 3 = <<12*3=36>>36 pens.\nWithout the lost 36 - 5 = 31.\n#### 31"
    )

    assert found["answer_is_marked"] == found["answer_is_whole"] == found["answer_ends_on_result"] == 1
    assert found["answer_wrong_share"] == found["answer_wrong_equations"] == found["answer_unused_share"] == 0
    assert found["answer_equations"] > 0


def test_a_slip_in_the_arithmetic_is_seen():
    """One of two calculations is wrong, and a number of the question is never named."""
    found = answer_text_signals(QUESTION, "12 * 3 = 35 and 35 + (2 - 3) = 34 pens")

    assert found["answer_wrong_share"] == 0.5
    assert found["answer_unused_share"] == 1 / 3
    assert found["answer_is_marked"] == 0


def test_final_numbers_are_told_apart():
    """A fraction, a negative one, one that the question has."""
    assert answer_text_signals("", "#### 2.33")["answer_is_whole"] == 0
    assert answer_text_signals("", "#### 2.33")["answer_recurring"] > 0
    assert answer_text_signals("", "#### -4")["answer_is_negative"] == 1
    assert answer_text_signals(QUESTION, "#### 12")["answer_is_in_question"] == 1


@given(integers(1, 999), integers(1, 999), sampled_from("+-*/"), integers(0, 3))
def test_calculations_are_checked_as_python_does(a, b, sign, off):
    """Right ones hold, also rounded; ones that are far off do not."""
    result = {"+": a + b, "-": a - b, "*": a * b, "/": a / b}[sign]
    stated = result + off * max(1.0, abs(result))

    found = answer_text_signals("", f"So ${a:,} {sign} ({b}) = ${stated:.2f}.")

    assert found["answer_wrong_share"] == float(off > 0)


@given(floats(0, 99).map(lambda x: f"{x:.1f}"), integers(1, 99))
def test_percent_signs_and_words_for_times_count(share, whole):
    """Models write them in many ways."""
    right = float(share) / 100 * whole

    for written in (
        f"{share}% x {whole} = {right:.2f}",
        f"{share}% × {whole} = {right:.2f}",
        f"{share} / 100 * {whole} = {right:.2f}",
    ):
        found = answer_text_signals("", written)
        assert found["answer_equations"] > 0
        assert found["answer_wrong_share"] == 0


@given(text(), text())
def test_any_text_has_all_signals(question, answer):
    """Finite, whatever it is."""
    found = answer_text_signals(question, answer)

    assert tuple(found) == ANSWER_TEXT_SIGNALS
    assert all(0 <= value < 3 for value in found.values())


@given(text(alphabet="0123456789.,+-*/()=$% x\n", max_size=60))
def test_half_a_calculation_is_none(answer):
    """Brackets that stay open, signs without numbers, division by zero: no signal fails."""
    assert set(answer_text_signals("1 and 2", answer)) == set(ANSWER_TEXT_SIGNALS)
