"""Ranking what was found: signals of a corpus, weights fitted on labelled queries, bridges from passage to passage."""

import gzip
import json

import pytest

from nearfar.errors import DataError
from nearfar.retrieval.fitted import FittedReranker, Judged
from nearfar.retrieval.judged import JudgedQuery, UsageMemory, read_corpus, read_queries, with_usage
from nearfar.types import Chunk, Hit

np = pytest.importorskip("numpy", reason="vectors are numpy's")
pytest.importorskip("bm25s", reason="bm25s is not installed")
pytest.importorskip("wordllama", reason="wordllama is not installed")

from nearfar.retrieval.bridges import BridgeRetriever, fit_bridges  # noqa: E402
from nearfar.retrieval.corpus import Corpus  # noqa: E402
from nearfar.retrieval.embedders import Remembered, StaticEmbedder  # noqa: E402
from nearfar.retrieval.ranking_report import LearnedRetriever, rank_and_measure  # noqa: E402

PLACES = (
    ("Anna Roe", "Anna Roe is a painter who was born in Velda."),
    ("Velda", "Velda is a town on the river Ombra, known for its cheese."),
    ("Ombra", "The Ombra flows for 90 km into the Grey Sea."),
    ("Carl Mott", "Carl Mott is a sculptor who was born in Tressel."),
    ("Tressel", "Tressel is a village in the hills, known for its wine."),
    ("Cheese", "Cheese is made of milk and is eaten everywhere."),
)


def chunk(title, text):
    """A passage whose id is its title."""
    return Chunk(text, title, 0, len(text), {"title": title}, id=title)


@pytest.fixture(scope="module")
def embedder():
    """The static one, loaded once."""
    return Remembered(StaticEmbedder())


@pytest.fixture(scope="module")
def corpus(embedder):
    """Six passages of which some lead to others."""
    return Corpus([chunk(title, text) for title, text in PLACES], embedder)


def ids(hits):
    """What was found, in order."""
    return [hit.chunk.id for hit in hits]


def test_a_corpus_gives_every_hit_the_same_signals(corpus):
    """Candidates that are asked for by id come too; signals agree with the index's own."""
    hits = corpus.candidates("a painter born in Velda", depth=2, extra=["Cheese"])

    assert ids(hits)[:2] == ["Anna Roe", "Velda"]
    assert set(ids(hits)) == {"Anna Roe", "Velda", "Cheese"}
    assert all(set(hit.signals) == {"bm25", "cosine", "title_cosine", "coverage"} for hit in hits)
    assert hits[0].signals["bm25"] == pytest.approx(float(corpus.bm25.scores("a painter born in Velda")[0]))
    assert hits[0].signals["coverage"] == pytest.approx(1)
    assert ids(corpus.search("cheese", k=3, filter={"source": "Velda"})) == ["Velda"]


def test_weights_follow_the_signal_that_tells(corpus):
    """Where only one signal is right, the fitted order is that signal's, and it survives a file."""
    rng = np.random.default_rng(0)
    examples = []
    for number in range(60):
        good, noise = rng.normal(size=8), rng.normal(size=8)
        hits = [
            Hit(chunk(str(place), "text"), 0.0, {"good": float(good[place]), "noise": float(noise[place])})
            for place in range(8)
        ]
        examples.append(Judged(hits, {str(int(good.argmax())): 1.0}))
        if number == 59:
            best = str(int(good.argmax()))

    reranker = FittedReranker.fit(examples[:-1])
    ranked = reranker.rerank(examples[-1].hits)

    assert ids(ranked)[0] == best
    assert sum(hit.score for hit in ranked) == pytest.approx(1)
    assert reranker.rerank([]) == []


def test_a_reranker_survives_its_file(tmp_path):
    """Saved and loaded it is the same; other files are refused by name."""
    reranker = FittedReranker(("a", "b"), (1.0, 2.0, 3.0, 4.0, 5.0, 0.1))

    reranker.save(tmp_path / "r.json")

    assert FittedReranker.load(tmp_path / "r.json") == reranker
    (tmp_path / "no.json").write_text('{"names": ["a"], "weights": [1], "kind": "fitted-reranker-1"}')
    with pytest.raises(DataError, match=r"no\.json"):
        FittedReranker.load(tmp_path / "no.json")


def test_a_signal_that_some_hits_lack_counts_as_the_least():
    """A hit that one index did not find is not above one that it found badly."""
    reranker = FittedReranker(("s",), (1.0, 1.0, 1.0))
    hits = [Hit(chunk(name, "t"), 0.0, signals) for name, signals in (("a", {}), ("b", {"s": 2.0}), ("c", {"s": 1.0}))]

    assert ids(reranker.rerank(hits)) == ["b", "a", "c"]


def test_nothing_to_fit_is_said():
    """Queries whose candidates are all alike teach nothing."""
    with pytest.raises(DataError, match="nothing to fit"):
        FittedReranker.fit([Judged([Hit(chunk("a", "t"), 0.0, {"s": 1.0})], {"a": 1.0})])


def test_a_passage_is_known_by_the_queries_that_it_answered(corpus, embedder):
    """A query in other words finds what its like found; a labelled query does not see itself."""
    labelled = [JudgedQuery("1", "where does the Grey Sea's water come from", {"Ombra": 1.0})]
    memory = UsageMemory(labelled, embedder)

    likeness = memory.likeness("where does the Grey Sea's water come from")

    assert likeness == {"Ombra": pytest.approx(1, abs=1e-5)}
    assert memory.likeness("where does the Grey Sea's water come from", but="1") == {}
    hit = with_usage(corpus.candidates("x", depth=0, extra=["Ombra"]), likeness)[0]
    assert hit.signals["usage_same"] == pytest.approx(0.2, abs=1e-5)


#: Two-hop questions on the passages, and what answers them.
QUESTIONS = (
    ("On which river is the town where Anna Roe was born?", {"Anna Roe": 1.0, "Velda": 1.0}),
    ("What is the birthplace of Carl Mott known for?", {"Carl Mott": 1.0, "Tressel": 1.0}),
    ("Into which sea does the river of Velda flow?", {"Velda": 1.0, "Ombra": 1.0}),
)


def test_a_bridge_leads_to_the_passage_that_the_question_does_not_name(corpus):
    """The passage that the first one names comes up, before what merely shares words with the question."""
    bridges = BridgeRetriever(corpus)

    found = bridges.search("What is the birthplace of Carl Mott known for?", k=2)

    assert ids(found) == ["Carl Mott", "Tressel"]
    assert found[1].signals["named_by_start"] > 0.5
    assert ids(bridges.search("Carl Mott", k=3, filter={"source": "Tressel"})) == ["Tressel"]


def test_bridges_are_fitted_on_labelled_questions(corpus):
    """Every question gets a ranking by weights that did not see it, and the weights find the pairs."""
    queries = [JudgedQuery(str(number), text, gold) for number, (text, gold) in enumerate(QUESTIONS)]

    weights, rankings = fit_bridges([(corpus, queries)], rounds=2, folds=3)

    assert [len(group) for group in rankings] == [3]
    found = BridgeRetriever(corpus, weights).search(QUESTIONS[0][0], k=2)
    assert set(ids(found)) == {"Anna Roe", "Velda"}


def test_labelled_queries_teach_a_retriever(corpus):
    """What no word or vector shows is learned from labels."""
    queries = [
        JudgedQuery(str(number), text, {name: 1.0})
        for number, (text, name) in enumerate(
            [
                ("lactose for lunch", "Ombra"),
                ("lactose at lunch", "Ombra"),
                ("grapes pressed", "Tressel"),
                ("pressed grapes", "Tressel"),
            ]
        )
    ]

    taught = LearnedRetriever(corpus, queries)

    assert ids(taught.search("lunch with lactose", k=1)) == ["Ombra"]


def test_a_report_measures_every_stage(corpus, embedder):
    """Baselines first, what was fitted last, gains against the stage before."""
    queries = [JudgedQuery(str(number), text, gold) for number, (text, gold) in enumerate(QUESTIONS)]

    train = [JudgedQuery(f"{each.id}-{copy}", each.text, each.relevant) for each in queries for copy in range(7)]

    report = rank_and_measure(corpus.chunks, queries, train, embedder, multi_hop=True, resamples=20)
    untaught = rank_and_measure(corpus.chunks, queries, train[:5], embedder, resamples=20)

    names = [stage.name for stage in report.stages]
    assert names[0] == "bm25"
    assert names[-1] == "bridges"
    assert len(names) == 6
    assert [stage.name for stage in untaught.stages] == names[:3]
    assert report.stages[0].gain is None
    assert report.best.figures["recall@5"].value >= report.stages[0].figures["recall@5"].value
    assert set(report.rankings) == {"0", "1", "2"}


def test_folders_are_read_and_faults_are_named(tmp_path):
    """Plain or gzipped; a broken line is named with its number."""
    with gzip.open(tmp_path / "corpus.jsonl.gz", "wt") as file:
        file.write(json.dumps({"id": 7, "title": "T", "text": "body"}) + "\n")
    (tmp_path / "queries.jsonl").write_text('{"text": "q", "qrels": {"7": 1, "8": 0}}\n\n{"text": "q"}\n')

    documents = read_corpus(tmp_path)

    assert (documents[0].id, documents[0].metadata["title"]) == ("7", "T")
    with pytest.raises(DataError, match=r"Line 3 of .*qrels"):
        read_queries(tmp_path / "queries.jsonl")
    with pytest.raises(DataError, match=r"no '.*missing\.jsonl'"):
        read_queries(tmp_path / "missing.jsonl")
    (tmp_path / "one.jsonl").write_text('{"text": "q", "qrels": {"7": 1, "8": 0}}')
    assert read_queries(tmp_path / "one.jsonl", known={"7": 0}) == [JudgedQuery("1", "q", {"7": 1.0})]
    with pytest.raises(DataError, match="none of the documents"):
        read_queries(tmp_path / "one.jsonl", known={"9": 0})
