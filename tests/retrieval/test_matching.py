"""Whether two questions ask the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.errors import DataError
from nearfar.retrieval.matching import LIKENESS, MatchPolicy, QuestionPair, likeness, match_signals, question_key
from nearfar.router.guarantees import AcceptedError

pytest.importorskip("Stemmer", reason="needs nearfar[retrieval]")

SAME = [
    ("Who played Thelma in Thelma and Louise?", "who plays thelma in thelma and louise"),
    ("What is the capital of France?", "Can you tell me what the capital of France is, please?"),
    (
        "In which country is the world's largest desalination plant?",
        "In what country is the worlds largest desalination plant",
    ),
    ("How many people live in Oslo?", "how many people live in oslo ??"),
    ("What was the name of the rocket used for the mission?", "What was the name of the rokcet used for the mission?"),
]
DIFFERENT = [
    ("Who directed Jaws?", "Who directed Jaws 2?"),
    ("What is the capital of France?", "What is the capital of Germany?"),
    ("Which animals can fly?", "Which animals cannot fly?"),
    ("Who was the first king of Norway?", "Who was the last king of Norway?"),
    ("Did Ann sell more apples than Bob?", "Did Bob sell more apples than Ann?"),
    ("Tom has 3 cats and 5 dogs. How many pets?", "Tom has 3 cats and 6 dogs. How many pets?"),
    ("Who built the tower?", "When was the tower built?"),
    ("What is three plus 4?", "What is four plus 4?"),
]


def test_likeness_parts_what_asks_the_same_from_what_does_not():
    """Every paraphrase is more like its original than any near miss."""
    worst = min(likeness(a, b) for a, b in SAME)
    best = max(likeness(a, b) for a, b in DIFFERENT)

    assert worst > best


@pytest.mark.parametrize(("a", "b"), [("12", "twelve"), ("1,000 men", "1000 men"), ("007", "7")])
def test_numbers_are_the_same_however_they_are_written(a, b):
    """Words, separators and leading zeros."""
    assert match_signals(f"What are {a}?", f"What are {b}?")["odd_numbers"] == 0


WORDS = "who is Ann Bob 7 seven not first last cats dogs the of ? . ’s + ß 数"
words = st.lists(
    st.sampled_from(
        [
            "who",
            "is",
            "Ann",
            "Bob",
            "7",
            "seven",
            "not",
            "first",
            "last",
            "cats",
            "dogs",
            "the",
            "of",
            "?",
            ".",
            "’s",
            "+",
            "ß",
            "数",
        ]
    ),
    max_size=12,
).map(" ".join)


@given(words, words)
def test_likeness_is_a_symmetric_score(a, b):
    """In [0, 1], the same from both sides, and 1 for the same words."""
    score = likeness(a, b)

    assert 0 <= score <= 1
    assert score == likeness(b, a)
    assert likeness(a, f"  {a}  ") == 1


@given(st.text(max_size=30), st.text(max_size=30))
def test_keys_are_the_questions_own(a, b):
    """Blanks around them aside; nothing has no key."""
    assert (question_key(a) == question_key(b)) == (a.strip() == b.strip())
    assert bool(question_key(a)) == bool(a.strip())


def test_policy_promises_what_the_fitter_does(tmp_path):
    """Threshold and guarantee are the fitter's, on pairs whose facts do not differ, and survive the disk."""
    pairs = [QuestionPair(a, b, True) for a, b in SAME for _ in range(40)]
    pairs += [QuestionPair(a, b, False) for a, b in DIFFERENT for _ in range(10)]

    policy = MatchPolicy.fit(pairs, AcceptedError(0.05, 0.1))
    policy.save(tmp_path / "p.json")

    assert policy == MatchPolicy.load(tmp_path / "p.json")
    assert policy.accuracy == 1.0
    assert policy.guarantee["alpha"] == 0.05
    assert all(likeness(a, b) < policy.threshold for a, b in DIFFERENT)
    assert policy.matcher == LIKENESS


def test_nothing_is_promised_where_nothing_can_be():
    """Right and wrong at the same likeness."""
    pairs = [QuestionPair(*SAME[0], bool(number % 2)) for number in range(100)]
    pairs += [QuestionPair(*DIFFERENT[1], bool(number % 2)) for number in range(100)]

    assert MatchPolicy.fit(pairs, AcceptedError(0.05, 0.1)).threshold is None


def test_policy_that_cannot_be_written_is_told(tmp_path):
    """With its path."""
    with pytest.raises(DataError, match=r"Cannot write '.*none/p\.json'"):
        MatchPolicy(0.5).save(tmp_path / "none" / "p.json")
