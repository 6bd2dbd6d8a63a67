"""Calibration: fits, thresholds, refusals and labels on disk."""

import csv
import gzip
import io
import math
import random
import subprocess
import sys

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis.strategies import floats, integers, lists, sampled_from, tuples

from nearfar.errors import ConfigError, DataError
from nearfar.router.calibration import (
    DEFAULT_SIGNALS,
    BestQualityThreshold,
    FixedThreshold,
    LabelledAnswer,
    PlugInThreshold,
    calibrate,
    fit_isotonic,
    fit_logistic,
    load_examples,
)
from nearfar.router.evaluation import expected_calibration_error
from nearfar.router.labels import SIGNAL_NAMES
from nearfar.router.policies import Policy
from nearfar.router.signals import answer_signals
from nearfar.types import Answer, Threshold, TokenLogprob, Usage

linear_model = pytest.importorskip("sklearn.linear_model", reason="fitting needs scikit-learn")

unit = floats(0, 1)
bit = sampled_from([0.0, 1.0])
judged = lists(tuples(sampled_from([0.0, 0.2, 0.4, 0.6, 0.8, 1.0]), bit), min_size=1, max_size=40)


def made_up(n=400, *, seed=0, slope=3.0):
    """Signals and outcomes whose true log-odds are slope * a - 0.5, with a second signal that means nothing."""
    draw = random.Random(seed)
    rows, outcomes = [], []
    for _ in range(n):
        a = draw.gauss(0, 1)
        rows.append({"a": a, "noise": draw.gauss(5, 2)})
        outcomes.append(float(draw.random() < 1 / (1 + math.exp(0.5 - slope * a))))
    return rows, outcomes


def labelled(n=400, *, seed=0, far=None):
    """Labelled answers as the router would log them; the mean log-probability tells right from wrong."""
    rows, outcomes = made_up(n, seed=seed)
    return [
        LabelledAnswer({"mean_logprob": row["a"], "num_tokens": row["noise"]}, outcome, far)
        for row, outcome in zip(rows, outcomes, strict=True)
    ]


# --- scorers


def test_logistic_fit_finds_the_truth():
    """Coefficients in the signal's own units are near those that made the data."""
    rows, outcomes = made_up(20_000)

    scorer = fit_logistic(rows, outcomes, signals=["a", "noise"])

    slope, nothing = (c / s for c, s in zip(scorer.coefficients, scorer.scales, strict=True))
    assert slope == pytest.approx(3.0, abs=0.15)
    assert nothing == pytest.approx(0.0, abs=0.05)
    assert scorer.score({"a": 0.5 / 3.0, "noise": 5.0}) == pytest.approx(0.5, abs=0.02)


def test_logistic_scores_are_the_references():
    """Plain Python scores as scikit-learn does on the same standardised signals."""
    rows, outcomes = made_up()
    scorer = fit_logistic(rows, outcomes, signals=["a", "noise"])
    table = [
        [(row[f] - m) / s for f, m, s in zip(scorer.features, scorer.means, scorer.scales, strict=True)] for row in rows
    ]

    reference = linear_model.LogisticRegression().fit(table, outcomes).predict_proba(table)[:, 1]

    assert [scorer.score(row) for row in rows] == pytest.approx(reference.tolist(), abs=1e-4)


def test_partial_outcomes_weigh_as_much_as_they_say():
    """Each answer 0.25 right is a fit at a quarter, whatever the signal."""
    rows, _ = made_up(200)

    scorer = fit_logistic(rows, [0.25] * len(rows), signals=["a"])

    assert scorer.score({"a": 2.0}) == pytest.approx(0.25, abs=1e-3)


def test_more_regularisation_means_smaller_coefficients():
    """A strong prior keeps a small sample from being over-read."""
    rows, outcomes = made_up(60)

    weak = fit_logistic(rows, outcomes, signals=["a"], regularisation=0.01)
    strong = fit_logistic(rows, outcomes, signals=["a"], regularisation=100)

    assert 0 < strong.coefficients[0] < weak.coefficients[0]


@settings(max_examples=30)
@given(integers(0, 10_000), sampled_from([-3.0, 0.0, 3.0]))
def test_isotonic_fits_are_monotone_and_never_certain(seed, slope):
    """Rising, falling or without a direction, scores never reverse and stay off 0 and 1."""
    rows, outcomes = made_up(80, seed=seed, slope=slope)

    scorer = fit_isotonic(rows, outcomes, signal="a")
    scores = [scorer.score(row) for row in sorted(rows, key=lambda row: row["a"])]

    assert scores in (sorted(scores), sorted(scores, reverse=True))
    assert all(1 / 82 - 1e-12 <= score <= 81 / 82 + 1e-12 for score in scores)


def test_isotonic_fit_follows_a_signal_that_falls():
    """Entropy: more of it means less sure."""
    rows, outcomes = made_up(500, slope=-3.0)

    scorer = fit_isotonic(rows, outcomes, signal="a")

    assert scorer.score({"a": -2.0}) > 0.8
    assert scorer.score({"a": 2.0}) < 0.2


@pytest.mark.parametrize("method", ["logistic", "isotonic"])
def test_fitted_scores_are_calibrated_on_new_answers(method):
    """Claimed and observed accuracy differ by a few points on data that was not fitted on."""
    signal = "mean_logprob"
    policy, _ = calibrate(labelled(3000, seed=1), tier="near", model="m", method=method, signals=[signal])
    fresh = labelled(3000, seed=2)

    scores = [policy.tiers["near"].scorer.score(example.signals) for example in fresh]

    assert expected_calibration_error(scores, [example.correct for example in fresh]) < 0.05


# --- refusals


@pytest.mark.parametrize("fit", [fit_logistic, fit_isotonic])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda rows, outcomes: (rows[:20], outcomes[:20]), r"20 labelled answers are too few: label at least 50"),
        (lambda rows, outcomes: (rows, [1.0] * len(rows)), r"All 100 .* right.*at least 5 are wrong"),
        (lambda rows, outcomes: (rows, [0.0] * len(rows)), r"All 100 .* wrong.*at least 5 are right"),
        (lambda rows, outcomes: (rows, [1.0] * 3 + [0.0] * 97), r"3 right and 97 wrong answers are too few"),
        (lambda rows, outcomes: ([{"a": 0.3}] * 100, outcomes), r"'a' is 0.3 in every labelled answer"),
        (lambda rows, outcomes: ([{"a": math.nan}, *rows[1:]], outcomes), r"'a' of labelled answer 1 is nan"),
        (lambda rows, outcomes: ([*rows[:-1], {"a": -math.inf}], outcomes), r"'a' of labelled answer 100 is -inf"),
        (lambda rows, outcomes: ([*rows[:-1], {"b": 1.0}], outcomes), r"100 has no signal 'a'; it has 'b'"),
        (lambda rows, outcomes: (rows, [*outcomes[:-1], 1.5]), r"outcome of labelled answer 100 is 1.5"),
        (lambda rows, outcomes: (rows, outcomes[:-1]), r"100 rows of signals and 99 outcomes"),
    ],
)
def test_data_that_cannot_be_fitted_on_is_refused_in_one_line(fit, change, reason):
    """The line says what is wrong and what is needed."""
    rows, outcomes = change(*made_up(100))
    chosen = {"signals": ["a"]} if fit is fit_logistic else {"signal": "a"}

    with pytest.raises(DataError, match=reason) as caught:
        fit(rows, outcomes, **chosen)

    assert "\n" not in str(caught.value)


def test_too_few_right_answers_for_many_signals_are_refused():
    """Twelve right ones carry two signals, not three."""
    outcomes = [1.0] * 12 + [0.0] * 88
    rows = [row | {"c": float(i)} for i, row in enumerate(made_up(100)[0])]

    assert fit_logistic(rows, outcomes, signals=["a", "noise"])
    with pytest.raises(DataError, match="there are 15 of each, or name fewer signals"):
        fit_logistic(rows, outcomes, signals=["a", "noise", "c"])


def test_without_the_extra_the_message_says_how_to_install_it(tmp_path):
    """An interpreter where scikit-learn cannot be imported."""
    (tmp_path / "sklearn.py").write_text("raise ImportError('not here')")
    code = (
        "from nearfar.router.calibration import fit_logistic\n"
        "rows = [{'a': float(i)} for i in range(100)]\n"
        "fit_logistic(rows, [float(i % 3 == 0) for i in range(100)], signals=['a'])\n"
    )

    run = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": f"{tmp_path}:."}, capture_output=True, text=True, check=False
    )

    assert "ConfigError: Fitting needs scikit-learn. Install it: pip install 'nearfar[fit]'" in run.stderr


def test_scoring_and_calibration_load_no_numerics():
    """What the hot path imports is plain Python."""
    code = (
        "import sys; import nearfar.router.calibration\n"
        "print(sorted({'numpy', 'sklearn', 'scipy', 'pyarrow'} & set(sys.modules)))"
    )

    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert run.stdout.strip() == "[]"


# --- thresholds


@given(judged, unit)
def test_the_plug_in_threshold_keeps_its_word_on_its_data(rows, asked):
    """The accepted share is as accurate as asked, and no lower threshold is."""
    scores, outcomes = map(list, zip(*rows, strict=True))

    found = PlugInThreshold(asked).fit(scores, outcomes)

    accurate = [value for value in set(scores) if accepted_accuracy(value, scores, outcomes) >= asked - 1e-9]
    assert found.value == min(accurate, default=None)
    assert found.guarantee is None
    if found.value is not None:
        assert found.coverage == sum(score >= found.value for score in scores) / len(scores)
        assert found.accepted_accuracy >= asked - 1e-9


@given(judged, unit, unit)
def test_asking_for_more_accuracy_never_accepts_more(rows, a, b):
    """The share accepted falls as the accuracy asked for rises."""
    scores, outcomes = map(list, zip(*rows, strict=True))
    low, high = sorted((a, b))

    assert PlugInThreshold(high).fit(scores, outcomes).coverage <= PlugInThreshold(low).fit(scores, outcomes).coverage


@given(lists(tuples(sampled_from([0.0, 0.3, 0.6, 0.9]), unit, unit), min_size=1, max_size=40))
def test_the_best_quality_threshold_is_the_best(rows):
    """No threshold, and not deferring everything either, answers better on the data."""
    scores, near, far = map(list, zip(*rows, strict=True))

    def quality(value):
        kept = [value is not None and score >= value for score in scores]
        return sum(n if keeps else f for keeps, n, f in zip(kept, near, far, strict=True))

    found = BestQualityThreshold(far).fit(scores, near)

    assert quality(found.value) == pytest.approx(max(quality(value) for value in [None, *scores]))


@given(lists(tuples(unit, bit, bit), min_size=1, max_size=40), unit, unit)
def test_dearer_deferrals_never_mean_more_of_them(rows, a, b):
    """The share accepted grows with what a deferral costs."""
    scores, near, far = map(list, zip(*rows, strict=True))
    low, high = sorted((a, b))

    cheap = BestQualityThreshold(far, deferral_cost=low).fit(scores, near)
    dear = BestQualityThreshold(far, deferral_cost=high).fit(scores, near)

    assert dear.coverage >= cheap.coverage


def test_a_fixed_threshold_is_only_measured():
    """Half of the answers reach it, and half of those are right."""
    found = FixedThreshold(0.5).fit([0.1, 0.4, 0.5, 0.9], [1, 0, 1, 0])

    assert found == Threshold(0.5, 4, 0.5, 0.5)


def accepted_accuracy(value, scores, outcomes):
    """Mean outcome of what a threshold accepts."""
    accepted = [outcome for score, outcome in zip(scores, outcomes, strict=True) if score >= value]
    return sum(accepted) / len(accepted)


# --- the whole


def test_calibrate_gives_a_policy_that_the_disk_keeps(tmp_path):
    """From labels to a file that a cascade can load."""
    policy, report = calibrate(labelled(), tier="near", model="smollm2", min_accuracy=0.9, name="support", version=2)
    policy.save(tmp_path / "support.json")

    tier = Policy.load(tmp_path / "support.json").tier("near", model="smollm2")

    assert policy.label == "support@2"
    assert tier == policy.tiers["near"]
    assert tier.signals == report.signals == ("mean_logprob", "num_tokens")
    assert tier.threshold == report.threshold.value
    assert tier.guarantee is None
    assert (tier.data.n, tier.data.accuracy) == (400, report.accuracy)
    assert report.threshold.accepted_accuracy >= 0.9
    assert any("no guarantee" in warning for warning in report.warnings)


def test_the_report_is_out_of_fold():
    """A curve through noise looks good on its own data and no better than chance on other folds."""
    draw = random.Random(7)
    noise = [LabelledAnswer({"mean_logprob": draw.random()}, float(draw.random() < 0.5)) for _ in range(200)]

    policy, report = calibrate(noise, tier="near", model="m", method="isotonic")

    in_sample = [policy.tiers["near"].scorer.score(example.signals) for example in noise]
    outcomes = [example.correct for example in noise]
    assert expected_calibration_error(in_sample, outcomes) < 0.02 < report.ece
    assert report.auroc < 0.6
    assert report.auroc_interval.low <= report.auroc <= report.auroc_interval.high
    assert any("1,000 labels" in warning for warning in report.warnings)


def test_calibrating_twice_gives_the_same_policy():
    """Nothing is drawn at random but with a fixed seed, and the order of the labels only changes the fingerprint."""
    examples = labelled()

    first, first_report = calibrate(examples, tier="near", model="m")
    second, second_report = calibrate(examples, tier="near", model="m")
    third, third_report = calibrate(examples[::-1], tier="near", model="m")

    assert first.tiers == second.tiers
    assert first_report == second_report
    assert third.tiers["near"].data.sha256 != first.tiers["near"].data.sha256
    assert third_report.auroc == pytest.approx(first_report.auroc, abs=1e-3)


def test_known_far_outcomes_decide_the_threshold():
    """Of a far tier that is always right only free agreement is kept from; one that is always wrong is never asked."""
    _, perfect = calibrate(labelled(far=1.0), tier="near", model="m")
    _, useless = calibrate(labelled(far=0.0), tier="near", model="m")

    assert perfect.rule == "best quality of the cascade on the data"
    assert perfect.threshold.accepted_accuracy == 1.0
    assert useless.threshold.coverage == 1.0


def test_without_far_outcomes_an_answer_must_be_more_likely_right_than_wrong():
    """One half is the default, and the report says why."""
    policy, report = calibrate(labelled(), tier="near", model="m")

    assert policy.tiers["near"].threshold == 0.5
    assert report.rule == "more likely right than wrong"


def test_an_accuracy_out_of_reach_makes_a_tier_that_accepts_nothing():
    """The policy says so rather than lower the bar."""
    draw = random.Random(1)
    hopeless = [LabelledAnswer({"mean_logprob": draw.random()}, float(i % 10 == 0)) for i in range(300)]

    policy, report = calibrate(hopeless, tier="near", model="m", min_accuracy=1.0, signals=["mean_logprob"])

    assert policy.tiers["near"].accepts_nothing or report.threshold.accepted_accuracy == 1.0
    assert report.threshold.coverage < 0.05


def test_a_fitter_of_ones_own_brings_its_guarantee():
    """Any ThresholdFitter takes the place of the rules, and what it promises lands in the policy."""

    class Promising:
        def fit(self, scores, outcomes):
            return Threshold(0.9, len(scores), 0.1, 1.0, guarantee={"risk": 0.1})

    policy, report = calibrate(labelled(), tier="near", model="m", fitter=Promising())

    assert policy.tiers["near"].guarantee == {"risk": 0.1}
    assert report.rule == "fitted by Promising"
    assert report.warnings == ()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"min_accuracy": 0.9, "fitter": FixedThreshold()}, "not both"),
        ({"min_accuracy": 1.1}, r"min_accuracy must be in \[0, 1\]"),
        ({"signals": []}, "at least one"),
        ({"signals": ["mean_logprob", "mean_logprob"]}, "distinct"),
        ({"method": "isotonic", "signals": ["mean_logprob", "num_tokens"]}, "reads one signal, not 2"),
    ],
)
def test_contradictory_options_are_refused(options, reason):
    """Before anything is fitted."""
    with pytest.raises(ConfigError, match=reason):
        calibrate(labelled(60), tier="near", model="m", **options)


def test_answers_without_any_default_signal_are_refused_by_name():
    """The message names what is missing and what is there."""
    examples = [LabelledAnswer({"length": float(i)}, float(i % 2)) for i in range(60)]

    with pytest.raises(DataError, match="has no signal 'mean_logprob'; it has 'length'"):
        calibrate(examples, tier="near", model="m")


def test_few_right_answers_carry_few_of_the_default_signals():
    """With twelve right answers two signals are read instead of a refusal; a copy of a signal is no second one."""
    draw = random.Random(3)
    examples = []
    for i in range(200):
        mean = -draw.random()
        signals = {"mean_logprob": mean, "logprob_q10": mean, "min_margin": draw.random(), "num_tokens": float(i)}
        examples.append(LabelledAnswer(signals, float(i % 16 == 0 and i < 192)))

    _, report = calibrate(examples, tier="near", model="m")

    assert report.signals == ("mean_logprob", "min_margin")


def test_no_answers_at_all_are_too_few():
    """An empty sequence is no special case."""
    with pytest.raises(DataError, match="0 labelled answers are too few"):
        calibrate([], tier="near", model="m")


# --- labels on disk


ROWS = [
    {"correct": 1, "far_correct": 0.5, "signals": {"mean_logprob": -0.25, "num_tokens": 12}},
    {"correct": 0, "far_correct": 1, "signals": {"mean_logprob": -1.5, "num_tokens": 80}},
]
EXAMPLES = [
    LabelledAnswer({"mean_logprob": -0.25, "num_tokens": 12.0}, 1.0, 0.5),
    LabelledAnswer({"mean_logprob": -1.5, "num_tokens": 80.0}, 0.0, 1.0),
]


def flat(row):
    """The row with its signals as columns of their own."""
    return {"correct": row["correct"], "far_correct": row["far_correct"], **row["signals"], "latency_ms": 7}


def as_jsonl(rows):
    return b"\n".join(map(msgspec.json.encode, rows)) + b"\n\n"


def as_csv(rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows):
    pa = pytest.importorskip("pyarrow", reason="reading parquet needs pyarrow")
    pq = pytest.importorskip("pyarrow.parquet", reason="reading parquet needs pyarrow")
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def packed(rows):
    """Signals as JSON text, which is how a CSV holds them."""
    return [row | {"signals": msgspec.json.encode(row["signals"]).decode()} for row in rows]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", lambda: as_jsonl(ROWS)),
        ("b.jsonl", lambda: as_jsonl(map(flat, ROWS))),
        ("c.jsonl.gz", lambda: gzip.compress(as_jsonl(ROWS))),
        ("d.csv", lambda: as_csv(packed(ROWS))),
        ("e.csv", lambda: as_csv(list(map(flat, ROWS)))),
        ("f.CSV", lambda: b"\xef\xbb\xbf" + as_csv(list(map(flat, ROWS)))),
        ("g.csv.gz", lambda: gzip.compress(as_csv(list(map(flat, ROWS))))),
        ("h.parquet", lambda: as_parquet(ROWS)),
        ("i.parquet", lambda: as_parquet(list(map(flat, ROWS)))),
    ],
)
def test_labels_read_the_same_from_every_format(tmp_path, name, content):
    """Signals as an object or as columns; other columns are left alone."""
    path = tmp_path / name
    path.write_bytes(content())

    assert load_examples(path) == EXAMPLES


def test_columns_of_other_names_are_mapped(tmp_path):
    """The file's own names for the outcome, and signals that nearfar does not know."""
    path = tmp_path / "labels.csv"
    path.write_text("grade,agreement,cost\ntrue,0.75,3\nFALSE,0.25,\n")

    examples = load_examples(path, {"correct": "grade"}, signals=["agreement"])

    assert examples == [LabelledAnswer({"agreement": 0.75}, 1.0), LabelledAnswer({"agreement": 0.25}, 0.0)]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", b'{"signals": {"mean_logprob": -1}}', r"row 1 has no 'correct'; it has 'signals'"),
        ("b.jsonl", b'{"correct": 1}', r"row 1 has no signals"),
        ("c.jsonl", b'{"correct": 1, "signals": {}}', r"row 1 has no signals"),
        ("d.jsonl", b'{"correct": 1, "signals": [1]}', r"'signals' is \[1\], not an object"),
        ("e.jsonl", b'{"correct": 2, "signals": {"a": 1}}', r"'correct' is 2; outcomes are in \[0, 1\]"),
        ("f.jsonl", b'{"correct": "yes", "signals": {"a": 1}}', r"'correct' is 'yes', not a number"),
        ("g.jsonl", b'{"correct": 1, "signals": {"a": "x"}}', r"'a' is 'x', not a number"),
        ("h.jsonl", b'{"correct": 1, "signals": {"a": 1}}\n{"cor', r"line 2 is not a JSON object"),
        ("i.jsonl", b"[1]", r"line 1 is not a JSON object"),
        ("j.jsonl", b'{"correct": 1, "caf\xe9": 2}', r"not UTF-8"),
        ("k.csv", b"correct,mean_logprob\n1,\xe9\n", r"not UTF-8"),
        ("l.csv", b"mean_logprob\n-1\n", r"row 1 has no 'correct'; it has 'mean_logprob'"),
        ("m.csv", b"correct,mean_logprob\n", r"has no rows"),
        ("n.csv", b'correct,signals\n1,"{"\n', r"'signals' is not JSON"),
        ("o.csv", b"correct,mean_logprob\nnan,-1\n", r"outcomes are in \[0, 1\]"),
        ("p.jsonl.gz", b"plain", r"Cannot read"),
        ("q.jsonl.gz", gzip.compress(b'{"correct": 1}', mtime=0)[:-9], r"Cannot read"),
        ("r.parquet", b"plain", r"not a parquet file"),
        ("s.jsonl", b"", r"has no rows"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_in_one_line(tmp_path, name, content, reason):
    """The line names the file and what is wrong."""
    path = tmp_path / name
    path.write_bytes(content)

    with pytest.raises(DataError, match=reason) as caught:
        load_examples(path)

    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.path == str(path)


@pytest.mark.parametrize(("name", "reason"), [("none.jsonl", "No file"), ("labels.txt", "by its name")])
def test_a_file_that_was_misnamed_is_a_matter_of_configuration(tmp_path, name, reason):
    """A missing file and an unknown ending are the caller's to mend."""
    (tmp_path / "labels.txt").write_text("x")

    with pytest.raises(ConfigError, match=reason):
        load_examples(tmp_path / name)


def test_a_column_that_does_not_exist_cannot_be_renamed(tmp_path):
    """The message lists those that can."""
    with pytest.raises(ConfigError, match="No column 'corect' to rename; there are 'correct'"):
        load_examples(tmp_path / "any.jsonl", {"corect": "grade"})


def test_signal_columns_are_those_that_answers_give():
    """A log of nearfar's own signals needs no list of columns."""
    tokens = tuple(TokenLogprob("x", -0.1 * i, (("x", -0.1 * i), ("y", -3.0))) for i in range(1, 4))

    signals = answer_signals(Answer("xxx", logprobs=tokens, usage=Usage(1, 3)))

    assert set(signals) == set(SIGNAL_NAMES)
    assert set(DEFAULT_SIGNALS) <= set(signals)
