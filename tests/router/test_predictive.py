"""Predictive routers: what they learn, that files keep it, and what they refuse."""

import random
import sys
from dataclasses import replace

import pytest

from nearfar.errors import ConfigError, DataError
from nearfar.router.predictive import ROUTERS, RoutingExample, RoutingQuery, make
from nearfar.router.predictive.blend import Blend, out_of_fold
from nearfar.router.predictive.files import load, save
from nearfar.router.predictive.fitting import fold_numbers
from nearfar.router.predictive.kernel import FormKernel
from nearfar.router.predictive.queries import SURFACE, question_key, surface_features
from nearfar.router.routing_evaluation import routing_metrics

np = pytest.importorskip("numpy", reason="routers are fitted with numpy")
kernel_ridge = pytest.importorskip("sklearn.kernel_ridge", reason="routers are fitted with scikit-learn")

HARD = ["integral", "theorem", "eigenvalue", "proof", "tensor", "manifold"]
EASY = ["capital", "colour", "animal", "river", "fruit", "weather"]
TEXT_ROUTERS = ["auto", "tfidf-ridge", "forest", "boosting", "ridge", "logistic"]
EMBEDDING_ROUTERS = ["ridge", "logistic", "knn", "sw-ranking", "matrix-factorization"]


class WordEmbedder:
    """Texts as counts of their words, hashed into a few places: a real embedder, only a poor one."""

    name = "words-32"
    dim = 32

    def embed(self, texts):
        rows = np.zeros((len(texts), self.dim), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in text.lower().split():
                row[sum(word.encode()) % self.dim] += 1
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


class Noise:
    """A router that learns nothing and says something else of every text."""

    kind = "noise"
    reads_signals = is_embedding_based = False

    def fit(self, examples):
        return self

    def predict(self, asked):
        return [random.Random(query.text).gauss(0, 1) for query in asked]


def queries(n, seed=0):
    """Hard and easy questions; the weak model gets the hard ones wrong, mostly, and says so by its confidence."""
    draw = random.Random(seed)
    made = []
    for i in range(n):
        is_hard = draw.random() < 0.5
        words = draw.choices(HARD if is_hard else EASY, k=3)
        text = f"What about the {words[0]} of {words[1]} and {words[2]} number {i}?"
        weak = float(draw.random() < (0.2 if is_hard else 0.9))
        confidence = draw.random() * 0.5 + 0.4 * weak
        made.append(RoutingExample(text, {"confidence": confidence}, weak, float(draw.random() < 0.9)))
    return made


def apgr(scores, examples):
    """Of the scores, on these queries."""
    return routing_metrics(scores, [each.weak for each in examples], [each.strong for each in examples]).apgr


@pytest.mark.parametrize("name", TEXT_ROUTERS)
def test_text_routers_learn_what_is_hard(name):
    """On questions that were not in training, each one beats a random choice by far; the form alone tells little."""
    train, test = queries(400), queries(300, seed=1)

    scores = make(name).fit(train).predict(test)

    assert apgr(scores, test) > (0.5 if name in ("ridge", "logistic") else 0.68)


@pytest.mark.parametrize("name", EMBEDDING_ROUTERS)
def test_embedding_routers_learn_what_is_hard(name):
    """The same with vectors for words."""
    train, test = queries(400), queries(300, seed=1)

    scores = make(name, embedder=WordEmbedder()).fit(train).predict(test)

    assert apgr(scores, test) > 0.68


def test_a_hybrid_beats_its_signal_and_its_text():
    """Joined, the near answer's confidence and the question say more than either."""
    train, test = queries(600), queries(600, seed=1)

    joined = apgr(make("hybrid", signals=["confidence"]).fit(train).predict(test), test)

    assert joined > apgr([-each.signals["confidence"] for each in test], test)
    assert joined > apgr(make("auto").fit(train).predict(test), test)


def test_other_tables_tell_a_hybrid_what_is_hard(tmp_path):
    """Where words are many and labels few, other models' outcomes on other queries help, and a file keeps that."""

    def asked(n, seed):
        draw, found = random.Random(seed), []
        for i in range(n):
            word = draw.randrange(150)  # the odd ones are hard for any model but the strong one
            weak = float(draw.random() < (0.2 if word % 2 else 0.9))
            text = f"What of {'abcdefghijklmno'[word // 10] * 2}{'pqrstuvwxy'[word % 10] * 2} in part {seed} of {i}?"
            found.append(RoutingExample(text, {"confidence": draw.random() + 0.3 * weak}, weak, 1.0))
        return found

    train, test, others = asked(100, 1), asked(400, 2), asked(1000, 3)
    router = make("hybrid", signals=["confidence"], also=[others]).fit(train)
    alone = make("hybrid", signals=["confidence"]).fit(train)
    save(router, tmp_path / "a.router", weak="small", strong="large", examples=train)

    assert apgr(router.predict(test), test) > apgr(alone.predict(test), test) + 0.02
    assert load(tmp_path / "a.router")[0].predict(test) == pytest.approx(router.predict(test), abs=1e-4)


def test_a_form_kernel_is_kernel_ridge_on_the_form():
    """Its numbers are scikit-learn's, one column a target, for queries it has seen and others."""
    train, test = queries(150), queries(40, seed=1)
    form = np.array([each.surface for each in [*train, *test]])
    mean, scale = form[:150].mean(axis=0), form[:150].std(axis=0)
    form = 0.1 * np.clip((form - mean) / np.where(scale < 1e-6, 1, scale), -5, 5)
    targets = np.array([[each.weak, each.strong] for each in train])
    reference = kernel_ridge.KernelRidge(kernel="rbf", gamma=0.5, alpha=1.5).fit(
        form[:150], targets - targets.mean(axis=0)
    )

    found = FormKernel().fit(train, targets).predict([*train, *test])

    assert found == pytest.approx(reference.predict(form) + targets.mean(axis=0), abs=1e-4)


def test_models_that_always_agree_teach_nothing():
    """A table on which every model is always right says nothing about what is hard, and is refused."""
    flat = [replace(each, weak=1.0, strong=1.0) for each in queries(100, seed=3)]

    with pytest.raises(DataError, match="equally well on all its queries"):
        make("hybrid", signals=["confidence"], also=[flat]).fit(queries(60))


def test_labelled_questions_of_other_tables_are_left_out():
    """What other models made of a labelled question says nothing of unseen ones: it is not learned from."""
    train, test = queries(60, seed=5), queries(100, seed=6)
    others = queries(400, seed=7)
    same = [replace(each, weak=1 - each.weak, strong=1 - each.strong) for each in train]

    def told(also):
        return make("hybrid", signals=["confidence"], also=[also]).fit(train).predict(test)

    assert told([*others, *same]) == told(others)
    with pytest.raises(DataError, match="0 queries of another table are left"):
        told(same)


def test_a_missing_signal_is_no_confidence_of_zero():
    """A query without the signal is scored by its text, between the surest and the least sure."""
    router = make("hybrid", signals=["confidence"]).fit(queries(600))

    low, none, high = router.predict(
        [RoutingQuery("the river", signals) for signals in ({"confidence": 0.05}, {}, {"confidence": 0.95})]
    )

    assert low > none > high


@pytest.mark.parametrize("name", [*ROUTERS])
def test_a_file_keeps_a_router(name, tmp_path):
    """Saved and loaded, every router gives the same scores; so does one fitted to the same examples again."""
    embedder, signals = WordEmbedder(), ["confidence"] if name == "hybrid" else []
    train, test = queries(120), queries(40, seed=1)
    router = make(name, embedder=embedder, signals=signals).fit(train)

    save(router, tmp_path / "a.router", weak="small", strong="large", examples=train, embedder=embedder)
    loaded, content = load(tmp_path / "a.router", weak="small", strong="large", embedder=embedder)

    assert loaded.predict(test) == pytest.approx(router.predict(test), abs=1e-4)
    assert (content.kind, content.n) == (name, 120)
    again = make(name, embedder=embedder, signals=signals).fit(train)
    assert again.predict(test) == pytest.approx(router.predict(test), abs=1e-9)


@pytest.mark.parametrize("name", ["forest", "boosting"])
def test_trees_are_walked_as_scikit_learn_walks_them(name):
    """A query's score does not depend on who else is asked, and one at a time gives what all at once give."""
    train, test = queries(200), queries(30, seed=1)
    router = make(name).fit(train)

    assert [router.predict([query])[0] for query in test] == pytest.approx(router.predict(test), abs=1e-12)
    assert len(set(router.predict(test))) > 5


def test_a_router_of_other_models_is_refused(tmp_path):
    """Scores say something about one pair of models, and vectors about one embedder."""
    train = queries(60)
    router = make("knn", embedder=WordEmbedder()).fit(train)
    path = tmp_path / "a.router"
    save(router, path, weak="small", strong="large", examples=train, embedder=WordEmbedder())

    class Other(WordEmbedder):
        name = "other"

    with pytest.raises(ConfigError, match="'small' as the weak model, not 'tiny'"):
        load(path, weak="tiny", embedder=WordEmbedder())
    with pytest.raises(ConfigError, match="words-32"):
        load(path, embedder=Other())
    with pytest.raises(ConfigError, match="words-32"):
        load(path)


@pytest.mark.parametrize("content", [b"", b"\xff\x00nonsense", b"\x81\xa4kind\xa4auto"])
def test_what_is_no_router_file_is_refused(content, tmp_path):
    """By name, in one line."""
    path = tmp_path / "a.router"
    path.write_bytes(content)

    with pytest.raises(DataError, match=r"a\.router.*not a router file"):
        load(path)


def test_a_half_file_is_refused(tmp_path):
    """A file that was cut off, or whose state lacks a part, is named and not read."""
    train = queries(60)
    path = tmp_path / "a.router"
    save(make("auto").fit(train), path, weak="a", strong="b", examples=train)
    path.write_bytes(path.read_bytes()[:-50])

    with pytest.raises(DataError, match="Fit it anew"):
        load(path)


@pytest.mark.parametrize("name", ["auto", "tfidf-ridge", "forest", "logistic"])
def test_bad_labels_are_refused(name):
    """Too few, nothing to tell apart, no number: each with its reason."""
    same = [RoutingExample(each.text, {}, 1.0, 1.0) for each in queries(50)]
    holed = [*queries(50), RoutingExample("what?", {}, float("nan"), 1.0)]

    with pytest.raises(DataError, match="10 labelled queries"):
        make(name).fit(queries(10))
    with pytest.raises(DataError, match="nothing to learn"):
        make(name).fit(same)
    with pytest.raises(DataError, match="query 51 has a quality that is no number"):
        make(name).fit(holed)


def test_useless_signals_are_refused():
    """A signal that is the same everywhere, or nowhere a number, is an error and no silent zero."""
    flat = [RoutingExample(each.text, {"confidence": 0.5}, each.weak, each.strong) for each in queries(60)]
    holed = [RoutingExample(each.text, {"confidence": float("nan")}, each.weak, each.strong) for each in queries(60)]

    with pytest.raises(DataError, match=r"'confidence' is 0\.5 on every"):
        make("hybrid", signals=["confidence"]).fit(flat)
    with pytest.raises(DataError, match="'confidence' as a finite number"):
        make("hybrid", signals=["confidence"]).fit(holed)


def test_names_and_needs_are_checked():
    """An unknown name lists the known ones; what a router needs is said."""
    with pytest.raises(ConfigError, match="'tfidf-ridge'"):
        make("nonsense")
    with pytest.raises(ConfigError, match="--embedder"):
        make("knn")
    with pytest.raises(ConfigError, match="--signal"):
        make("hybrid")
    with pytest.raises(ConfigError, match="reads the text alone"):
        make("forest", signals=["confidence"])
    with pytest.raises(ConfigError, match="--also"):
        make("auto", also=[queries(40)])


def test_a_question_is_in_one_fold():
    """The same question with other options, case or spaces never straddles training and test."""
    texts = [
        f"{start} is number {i}?{end}" for i in range(50) for start, end in (("What", ""), ("what ", "\nA. x\nB. y"))
    ]

    folds = fold_numbers([RoutingQuery(text) for text in texts], 5)

    assert folds[0::2] == folds[1::2]
    assert len(set(folds)) == 5
    assert question_key("What is 2?\nA. 1\nB. 2") == question_key("what is 2")


def test_out_of_fold_scores_are_of_unseen_queries():
    """Labels that are pure noise give no better than chance, however well they can be learned by heart."""
    draw = random.Random(3)
    letters = "abcdefghijklmnop"
    noise = [
        RoutingExample(
            " ".join("".join(draw.choices(letters, k=2)) for _ in range(6)), {}, draw.choice([0.0, 1.0]), 1.0
        )
        for _ in range(300)
    ]

    assert apgr(out_of_fold(make("forest"), noise, 5), noise) < 0.6
    assert apgr(make("forest").fit(noise).predict(noise), noise) > 0.6


@pytest.mark.parametrize("text", ["", "?", "\n\nA. \nB. ", "∑∑∑", "1" * 5000, "\ud800", "word " * 5000])
def test_any_text_has_features(text):
    """As many numbers as names, all finite."""
    features = surface_features(text)

    assert len(features) == len(SURFACE)
    assert all(np.isfinite(features))
    assert RoutingQuery(text).grams is not None


def test_the_sentence_that_asks_is_read():
    """A number at its end, and money with cents, are told apart from numbers elsewhere."""
    at_end = dict(
        zip(SURFACE, surface_features("He eats one a day. How much does he spend after 60 days?"), strict=True)
    )
    before = dict(zip(SURFACE, surface_features("If he has 60 days, at $4.50 a day, how much is it?"), strict=True))

    assert at_end["ask_ends_with_number"] == 1
    assert at_end["ask_last_number_nearness"] > 0.5
    assert before["ask_ends_with_number"] == 0
    assert (before["num_decimal_dollars"], at_end["num_decimal_dollars"]) == (1, 0)


def test_options_that_are_near_each_other_are_told():
    """Likeness and overlap rise with common words; bare numbers, verdicts and their spread are seen; none is zero."""

    def form(*options):
        letters = (f"\n{letter}. {option}" for letter, option in zip("ABCD", options, strict=False))
        return dict(zip(SURFACE, surface_features("Which law of motion holds?" + "".join(letters)), strict=True))

    apart, near = form("Ohm", "rain", "seven", "king"), form("first law", "second law", "third law", "law of motion")
    numbers, verdicts = form("5 N", "50 N", "500 N"), form("True, True", "True, False", "False, False")

    assert near["option_likeness"] > apart["option_likeness"] == 0
    assert near["option_overlap_max"] == 1
    assert near["option_common_words"] == 1
    assert near["option_spelling_likeness"] > apart["option_spelling_likeness"]
    assert numbers["bare_number_option_share"] == verdicts["verdict_option_share"] == 1
    assert numbers["option_number_spread"] == pytest.approx(np.log(100))
    assert apart["bare_number_option_share"] == apart["verdict_option_share"] == 0
    assert not any(value for name, value in form().items() if "option_" in name)


def test_reading_routers_needs_no_numpy():
    """The protocol and the names cost no heavy import."""
    import subprocess

    code = (
        "import sys, nearfar.router.predictive as p; p.ROUTERS; print('numpy' in sys.modules, 'sklearn' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["False", "False"]


def test_a_blend_weighs_its_members_by_what_they_know():
    """A member that knows nothing of the gain gets next to no weight; below the least number all weigh the same."""
    train = queries(400)
    members = [make("tfidf-ridge"), Noise()]

    weighed = Blend(members).fit(train)
    equal = Blend(members, least_weighted=500).fit(train)

    assert weighed.weights[0] > 5 * weighed.weights[1] >= 0
    assert equal.weights == (0.5, 0.5)
    assert apgr(weighed.predict(queries(300, seed=1)), queries(300, seed=1)) > 0.68


@pytest.mark.parametrize("quality", [0.0, 1.0])
def test_a_hybrid_bears_a_model_that_is_always_or_never_right(quality, tmp_path):
    """The text tells nothing of it then, and the signals still do."""
    train = [replace(each, strong=quality) for each in queries(200)]
    router = make("auto", signals=["confidence"], embedder=WordEmbedder()).fit(train)
    save(router, tmp_path / "a.router", weak="small", strong="large", examples=train, embedder=WordEmbedder())

    loaded, content = load(tmp_path / "a.router", embedder=WordEmbedder())

    assert content.embedder == "words-32"
    assert loaded.predict(train) == pytest.approx(router.predict(train), abs=1e-4)
    scores = router.predict(train)
    right, wrong = ([x for x, each in zip(scores, train, strict=True) if each.weak == kind] for kind in (1.0, 0.0))
    assert sum(right) / len(right) < sum(wrong) / len(wrong) - 0.3
