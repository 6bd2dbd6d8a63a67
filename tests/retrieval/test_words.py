"""Words as BM25 sees them."""

import pytest

from nearfar.retrieval.words import words

pytest.importorskip("Stemmer", reason="needs nearfar[retrieval]")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cats and the dogs", ["cat", "dog"]),
        ("os.path.join", ["os.path.join", "os", "path", "join"]),
        ("read_file()", ["read_fil", "read", "file"]),
        ("HttpClient", ["httpclient", "http", "client"]),
        ("HTTP", ["http"]),
        ("größer als 3.14", ["größer", "al", "3.14", "3", "14"]),
        ("", []),
        ("?! --", []),
    ],
)
def test_words_are_stemmed_and_names_also_split(text, expected):
    """Each text becomes the words that are counted."""
    assert words(text) == expected
