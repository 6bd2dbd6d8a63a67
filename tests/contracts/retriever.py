"""What every `Retriever` keeps to: subclass `RetrieverContract`, and build one in `make_retriever`."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from nearfar.types import Chunk, Retriever

ANIMALS = (
    ("cats", "Cats purr when they are content and hunt mice at night.", {"kind": "mammal", "legs": 4}),
    ("dogs", "Dogs bark at strangers and fetch sticks for their people.", {"kind": "mammal", "legs": 4}),
    ("hens", "Hens lay eggs, peck at grain and sleep on a perch.", {"kind": "bird", "legs": 2}),
    ("owls", "Owls hunt mice at night and hardly make a sound.", {"kind": "bird", "legs": 2}),
    ("trout", "Trout swim upstream in cold water to spawn.", {"kind": "fish", "legs": 0}),
)


def animals() -> list[Chunk]:
    """Five passages that differ in their words and in their metadata."""
    return [Chunk(text, f"zoo/{name}.txt", 0, len(text), metadata) for name, text, metadata in ANIMALS]


class RetrieverContract:
    """The suite."""

    def make_retriever(self, chunks: Sequence[Chunk]) -> Retriever:
        """The retriever under test, over the chunks."""
        raise NotImplementedError

    @pytest.fixture
    def retriever(self) -> Retriever:
        """Over the five passages."""
        return self.make_retriever(animals())

    def test_passage_with_the_words_comes_first(self, retriever):
        """A query in a passage's own words finds the passage, its place and its metadata."""
        hit = retriever.search("fetch sticks and bark", k=3)[0]

        assert hit.chunk == animals()[1]

    @pytest.mark.parametrize("k", [0, 1, 2, 50])
    def test_hits_are_few_distinct_and_sorted(self, retriever, k):
        """At most k hits, each chunk once, best first."""
        hits = retriever.search("hunt mice at night", k=k)

        assert len(hits) <= k
        assert len({hit.chunk.id for hit in hits}) == len(hits)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)

    def test_more_hits_begin_with_the_fewer(self, retriever):
        """Asking for more changes nothing about the first ones."""
        few, many = retriever.search("hunt mice at night", k=2), retriever.search("hunt mice at night", k=5)

        assert [hit.chunk.id for hit in few] == [hit.chunk.id for hit in many][:2]
        assert len(few) == 2

    @pytest.mark.parametrize(
        ("wanted", "names"),
        [
            ({"kind": "bird"}, {"owls"}),
            ({"kind": ["mammal", "fish"]}, {"cats"}),
            ({"kind": "bird", "legs": 2}, {"owls"}),
            ({"source": "zoo/owls.txt"}, {"owls"}),
            ({"source": "zoo/*"}, {"owls", "cats"}),
            ({"kind": "reptile"}, set()),
            ({"unheard": "of"}, set()),
        ],
    )
    def test_filter_keeps_all_that_it_wants_and_nothing_else(self, retriever, wanted, names):
        """Of the two night hunters, those come first that the filter lets through, and no other chunk comes at all."""
        hits = retriever.search("hunt mice at night", k=max(1, len(names)), filter=wanted)

        assert {hit.chunk.source for hit in hits} == {f"zoo/{name}.txt" for name in names}

    def test_filter_does_not_shorten_the_result(self, retriever):
        """The k best that satisfy the filter are found, however far down they stand without it."""
        assert [hit.chunk.source for hit in retriever.search("cold water mice", k=1, filter={"kind": "fish"})] == [
            "zoo/trout.txt"
        ]

    @pytest.mark.parametrize("query", ["", "   ", "?!", "\x00", "the of and", "xyzzy" * 500, "mice " * 2000, "\ud800"])
    def test_odd_queries_find_something_or_nothing(self, retriever, query):
        """Whatever is asked, the answer is a list of hits."""
        assert len(retriever.search(query, k=3)) <= 3

    def test_many_threads_get_what_one_gets(self, retriever):
        """Searches at the same time do not disturb each other."""
        queries = ["hunt mice", "lay eggs", "bark at strangers", "swim upstream"] * 10
        alone = [[hit.chunk.id for hit in retriever.search(query, k=3)] for query in queries]

        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda query: [hit.chunk.id for hit in retriever.search(query, k=3)], queries))

        assert together == alone

    def test_nothing_to_search_in_finds_nothing(self):
        """A retriever over no chunks has no hits."""
        assert self.make_retriever([]).search("mice", k=3) == []
