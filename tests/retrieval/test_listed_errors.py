"""Past mistakes: found by likeness, read from a file, refused where the file is none."""

import json

import pytest

from nearfar.errors import ConfigError, DataError
from nearfar.retrieval.listed_errors import ListedErrors
from nearfar.types import ErrorCase

np = pytest.importorskip("numpy", reason="vectors are numpy's")


class Letters:
    """Texts as counts of their letters: a real embedder, only a poor one."""

    name = "letters"
    dim = 26

    def embed(self, texts):
        rows = np.array([[text.lower().count(chr(97 + i)) for i in range(26)] for text in texts], np.float32)
        rows = rows.reshape(len(texts), self.dim)
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)

    embed_queries = embed


CASES = [ErrorCase("aaa", "1", "2"), ErrorCase("aab", "3", "4", reason="why"), ErrorCase("zzz", "5", "6")]


async def test_the_likest_come_first():
    """With their cosines, and at most k."""
    errors = ListedErrors(CASES, Letters())

    found = await errors.similar("aaaa", 2)

    assert [case.question for case, _ in found] == ["aaa", "aab"]
    assert [cosine for _, cosine in found] == pytest.approx([1.0, 2 / 5**0.5])
    assert await errors.similar("aaaa", 0) == []
    assert len(await errors.similar("aaaa", 9)) == 3
    assert await ListedErrors([], Letters()).similar("aaaa", 3) == []


def test_a_file_gives_its_cases(tmp_path):
    """One object a line; what a case may leave out is empty."""
    path = tmp_path / "cases.jsonl"
    path.write_text('{"question": "q", "wrong": "w", "right": "r"}\n\n{"question": "p", "wrong": "w", "right": "r"}\n')

    errors = ListedErrors.load(path, Letters())

    assert errors.cases == (ErrorCase("q", "w", "r"), ErrorCase("p", "w", "r"))


@pytest.mark.parametrize(
    "content", ["", "[1]", "nonsense", json.dumps({"question": "q", "wrong": "w"}), '{"question": 1}', "\xff"]
)
def test_a_file_without_cases_is_refused(content, tmp_path):
    """By name, in one line."""
    path = tmp_path / "cases.jsonl"
    path.write_bytes(content.encode("latin-1"))

    with pytest.raises(DataError, match=r"cases\.jsonl") as caught:
        ListedErrors.load(path, Letters())
    assert "\n" not in str(caught.value)


def test_no_file_is_refused(tmp_path):
    """A setting that names nothing."""
    with pytest.raises(ConfigError, match="No such file"):
        ListedErrors.load(tmp_path / "none.jsonl", Letters())
