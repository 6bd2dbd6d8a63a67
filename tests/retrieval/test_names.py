"""Names in texts, and which of many names a text mentions."""

import pytest

from nearfar.retrieval.names import Mentions, names, plain, title_name


def test_names_are_capitalised_runs_without_their_edges():
    """Articles at the edges fall, connecting words inside stay."""
    assert names("The Duke of York met Zoë in Paris.") == {"duke of york", "zoe", "paris"}


@pytest.mark.parametrize(
    ("title", "name"), [("Cats (musical)", "cats"), ("Beyoncé", "beyonce"), ("(What's the Story)", "what s the story")]
)
def test_a_title_loses_its_qualifier(title, name):
    """But never its whole name."""
    assert title_name(title) == name


def test_mentions_are_whole_words_of_any_case():
    """A name within another word is not mentioned, a longer name that begins with a shorter one is found beside it."""
    mentions = Mentions(["york", "new york city", "cat", "paris"])

    assert mentions.within("They left NEW York City in a caterpillar.") == {"york", "new york city"}
    assert mentions.within(plain("Comparison")) == set()
