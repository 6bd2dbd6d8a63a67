"""What else was tried towards the goals that the shipped routers miss, other tables included.

    python benchmarks/routing_attempts.py gsm8k | mmlu | cascade | design | folds | signals --keep FOLDER

FOLDER holds MiniLM's vectors, made by `python benchmarks/routing.py vectors --keep FOLDER`. Members of a blend have
equal weights, so that nothing is chosen on what is measured; folds are those of benchmarks/routing.py and two other
draws of them. A question of the test fold is seen in no table: other tables give outcomes of training questions, or of
questions that the measured table has not (the same words before the options, or a cosine of 0.8 between word vectors,
count as the same). `design` takes the shipped judge of a cascade apart, in draws 1 to 3, on which it was chosen, and in
draw 0, which benchmarks/routing.py publishes. `folds` says what more labels would give it: 5, 10 and 20 folds leave 80,
90 and 95 % of the table to learn from. `signals` has it with fewer signals and more tables, in draws 1 to 8, on which
they were compared, and in draw 0. Writes results/routing_attempts_<table>.json.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import scipy.sparse as sp
from provenance import provenance, save
from routing import DATA, LLAMA, MMLU_PRO, NEAR_DUPLICATE, PACKAGES, PAIRS, Keeper, apart, examples_of
from scipy.linalg import cho_factor, cho_solve
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer, TfidfVectorizer
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics.pairwise import linear_kernel, rbf_kernel
from sklearn.utils.extmath import randomized_svd

from nearfar.retrieval.embedders import StaticEmbedder
from nearfar.router.predictive import RoutingExample, RoutingQuery
from nearfar.router.predictive.fitting import fold_numbers
from nearfar.router.predictive.kernel import FormKernel
from nearfar.router.predictive.ngrams import NgramRidge
from nearfar.router.predictive.queries import question_key
from nearfar.router.routing_evaluation import bootstrap_metrics, routing_metrics
from nearfar.router.routing_table import load_routed

NUM_FOLDS = 5
#: Scores are kept by the code that made them.
CODE = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
Predictor = Callable[[Any, Any], Any]  # positions to learn from, positions to predict → predictions

_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


@dataclass
class Table:
    """A table's queries as arrays."""

    examples: Sequence[RoutingExample]
    minilm: Any
    form: Any = field(init=False)
    gains: Any = field(init=False)
    _known: dict[Any, Any] = field(default_factory=dict, init=False)  # predictions that several blends share

    def __post_init__(self) -> None:
        self.form = np.array([each.surface for each in self.examples])
        self.gains = np.array([each.gain for each in self.examples])

    @classmethod
    def load(cls, rows: Sequence[Any], keeper: Keeper) -> Table:
        """The rows with their vectors."""
        examples, minilm = examples_of(rows), keeper.minilm()
        if minilm is None:
            raise SystemExit("MiniLM is not installed and --keep has no vectors of it.")
        return cls(examples, minilm.embed([each.text for each in examples]))

    @cached_property
    def static(self) -> Any:
        """The texts' static vectors."""
        return StaticEmbedder().embed([each.text for each in self.examples])

    @cached_property
    def grams(self) -> Any:
        """Which words and word pairs each query has."""
        return CountVectorizer(analyzer=lambda query: query.grams, binary=True).fit_transform(self.examples).tocsr()

    def words(self, learn: Any, targets: Any) -> Predictor:
        """Ridge on words and word pairs, of those that two queries or more have."""
        known = self.grams[learn]
        common = np.flatnonzero(known.getnnz(axis=0) >= 2)
        rarity = TfidfTransformer().fit(known[:, common])
        ridge = Ridge(alpha=8, solver="sparse_cg", tol=1e-3).fit(rarity.transform(known[:, common]), targets)
        return lambda positions: ridge.predict(rarity.transform(self.grams[positions][:, common]))

    def linear(self, *blocks: Any, penalty: float = 20.0, num_features: int = 0) -> Callable[[Any, Any], Predictor]:
        """Ridge on the form, lightly weighted, and on blocks as they are; or on random Fourier features of them.

        Source: Rahimi and Recht 2007, "Random features for large-scale kernel machines".
        """

        def fit(learn: Any, targets: Any) -> Predictor:
            mean, scale = self.form[learn].mean(0), self.form[learn].std(0)
            form = 0.1 * np.clip((self.form - mean) / np.where(scale < 1e-6, 1, scale), -5, 5)
            matrix = np.hstack([form, *blocks])
            if num_features:
                draw = np.random.default_rng(0)
                directions = draw.normal(0, 0.3**0.5, (matrix.shape[1], num_features))
                matrix = (2 / num_features) ** 0.5 * np.cos(
                    matrix @ directions + draw.uniform(0, 2 * np.pi, num_features)
                )
            ridge = Ridge(alpha=penalty, solver="cholesky").fit(matrix[learn], targets)
            return lambda positions: ridge.predict(matrix[positions])

        return fit

    def kernel(self, learn: Any, targets: Any) -> Predictor:
        """Ridge with a Gaussian kernel over form and MiniLM's vectors."""
        mean, scale = self.form[learn].mean(0), np.maximum(self.form[learn].std(0), 1e-6)
        form = 0.1 * np.clip((self.form - mean) / scale, -5, 5)
        matrix, middle = np.hstack([form, self.minilm]).astype(np.float32), targets.mean(0)
        ridge = KernelRidge(kernel="rbf", gamma=0.5, alpha=4).fit(matrix[learn], (targets - middle).astype(np.float32))
        return lambda positions: ridge.predict(matrix[positions]) + middle

    def forest(self, learn: Any, targets: Any) -> Predictor:
        """Randomised trees on form and topics."""
        vectorizer = TfidfVectorizer(analyzer=lambda query: query.words, min_df=3, binary=True)
        _, _, topics = randomized_svd(vectorizer.fit_transform([self.examples[i] for i in learn]), 15, random_state=0)
        coordinates = vectorizer.transform(self.examples) @ topics.T
        features = np.hstack([self.form, coordinates]).astype(np.float32)
        trees = ExtraTreesRegressor(
            100, min_samples_leaf=15, max_features=0.3, bootstrap=True, max_samples=0.7, random_state=0
        ).fit(features[learn], targets)
        return lambda positions: trees.predict(features[positions])

    def blend(self, *fits: Callable[[Any, Any], Predictor], extra: Any = None) -> Predictor:
        """The mean of several, learned from the gain plus what other tables say of a training question."""

        def predict(learn: Any, positions: Any) -> Any:
            targets = self.gains[learn] + (0 if extra is None else extra(learn))
            return sum(self._predicted(fit, learn, targets, positions) for fit in fits) / len(fits)

        return predict

    def _predicted(self, fit: Callable[[Any, Any], Predictor], learn: Any, targets: Any, positions: Any) -> Any:
        key = (getattr(fit, "__func__", fit), *(each.tobytes() for each in (learn, targets, positions)))
        if key not in self._known:
            self._known[key] = fit(learn, targets)(positions)
        return self._known[key]

    def measured(
        self, attempts: dict[str, Predictor], num_draws: int, keeper: Keeper, table: str, num_folds: int = NUM_FOLDS
    ) -> list[dict[str, Any]]:
        """Each attempt's APGR, pooled out of fold, for several draws of the folds; the scores are kept."""
        weak, strong = [each.weak for each in self.examples], [each.strong for each in self.examples]
        rows = []
        for name, predict in attempts.items():
            draws = []
            for seed in range(num_draws):

                def score(predict: Predictor = predict, seed: int = seed) -> list[float]:
                    folds, found = np.array(fold_numbers(self.examples, num_folds, seed=seed)), np.zeros(len(weak))
                    for fold in range(num_folds):
                        inside = np.flatnonzero(folds == fold)
                        found[inside] = predict(np.flatnonzero(folds != fold), inside)
                    scores: list[float] = found.tolist()
                    return scores

                which = table if num_folds == NUM_FOLDS else f"{table} {num_folds}"
                found = keeper.scores(which, f"attempt {CODE} {name.replace('/', ' ')} {seed}", score)
                draws.append(routing_metrics(found, weak, strong).apgr)
                if seed == 0:
                    interval = bootstrap_metrics(found, weak, strong, resamples=300)["apgr"]
            rows.append({"attempt": name, "apgr": draws[0], "interval": [interval.low, interval.high], "draws": draws})
            print(rows[-1], flush=True)
        return rows


def unseen(table: Table, others: Sequence[RoutingQuery]) -> Any:
    """Which of other queries are not among the table's, nor nearly."""
    known = {question_key(each.text) for each in table.examples}
    kept = np.array([question_key(each.text) not in known for each in others])
    vectorizer = TfidfVectorizer(analyzer=lambda query: query.grams, min_df=2, binary=True)
    theirs, mine = vectorizer.fit_transform(others), vectorizer.transform(table.examples)
    for start in range(0, len(others), 500):
        close = (theirs[start : start + 500] @ mine.T).max(axis=1).toarray().ravel()
        kept[start : start + 500] &= close < NEAR_DUPLICATE
    return kept


def traits(table: Table, texts: Sequence[str], targets: Any) -> tuple[Any, int]:
    """What other texts' numbers would be for the table's queries, and how many texts that was learned from.

    Texts that are also in the table, or nearly, are left out.
    """
    others = [RoutingQuery(text) for text in texts]
    kept = unseen(table, others)
    vectorizer = TfidfVectorizer(analyzer=lambda query: query.grams, min_df=2, binary=True)
    theirs, mine = vectorizer.fit_transform(others), vectorizer.transform(table.examples)
    form = np.array([each.surface for each in others])
    mean, scale = form.mean(0), np.maximum(form.std(0), 1e-6)
    scaled = [sp.csr_matrix(0.05 * np.clip((each - mean) / scale, -5, 5)) for each in (form, table.form)]
    spread = np.where(targets.std(0) < 1e-9, 1, targets.std(0))
    ridge = Ridge(alpha=4, solver="sparse_cg", tol=1e-3).fit(
        sp.hstack([theirs, scaled[0]]).tocsr()[kept], ((targets - targets.mean(0)) / spread)[kept]
    )
    found = ridge.predict(sp.hstack([mine, scaled[1]]).tocsr())
    return (found - found.mean(0)) / np.maximum(found.std(0), 1e-9), int(kept.sum())


def told(gains: Any, outcomes: Any) -> Callable[[Any], Any]:
    """What other models' outcomes on a training question say of its gain, twice: their noise is not the gain's.

    Out of fold among the training questions with the same tables; 0 where no table has the question.
    """
    patterns = np.isfinite(outcomes)
    _, group = np.unique(patterns, axis=0, return_inverse=True)

    def extra(learn: Any) -> Any:
        found = np.zeros(len(gains))
        for each in np.unique(group):
            inside = learn[group[learn] == each]
            columns = patterns[inside[0]] if len(inside) else np.zeros(0, bool)
            if len(inside) < 100 or not columns.any():
                continue
            features, parts = outcomes[inside][:, columns], np.random.default_rng(0).integers(0, 5, len(inside))
            for part in range(5):
                ridge = Ridge(alpha=100).fit(features[parts != part], gains[inside[parts != part]])
                found[inside[parts == part]] = ridge.predict(features[parts == part])
            found[inside] -= found[inside].mean()
        return 2 * found[learn]

    return extra


def wide(path: str, keys: str, values: Sequence[str], models: Sequence[str] | None = None) -> tuple[list[str], Any]:
    """A table's values as one row per key, one column per model and value."""
    columns = pq.read_table(DATA / "router" / f"{path}.parquet", columns=[keys, "model", *values])
    names, model = columns[keys].to_pylist(), columns["model"].to_pylist()
    rows = {key: i for i, key in enumerate(dict.fromkeys(names))}
    order = {each: i for i, each in enumerate(models or sorted(set(model)))}
    found = np.full((len(rows), len(order) * len(values)), np.nan)
    for v, value in enumerate(values):
        for key, each, cell in zip(names, model, columns[value].to_pylist(), strict=True):
            if each in order and cell is not None:
                found[rows[key], order[each] * len(values) + v] = float(cell)
    return list(rows), found


def worked_answers() -> tuple[list[str], Any]:
    """GSM8K's training questions, and what their worked answers are like."""
    texts, rows = [], []
    with gzip.open(DATA / "router" / "gsm8k_train.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            body, _, final = row["answer"].partition("####")
            final = final.strip().replace(",", "")
            steps = re.findall(r"<<(.*?)=(.*?)>>", body)
            operations = "".join(left for left, _ in steps)
            last = body.strip().split("\n")[-1]
            last_numbers = _NUMBER.findall(re.sub(r"<<.*?>>", "", last))
            texts.append(row["question"])
            rows.append(
                [
                    len(steps),
                    np.log1p(abs(float(final))),
                    len(body),
                    any("." in right for _, right in steps),
                    "/" in operations,
                    "%" in body,
                    "$" in last,
                    final in [each.replace(",", "") for each in _NUMBER.findall(row["question"])],
                    bool(last_numbers) and last_numbers[-1].replace(",", "").rstrip(".") != final,
                    body.strip().count("\n"),
                    float(final) < 10,
                    len(set(operations) & set("+-*/")),
                ]
            )
    return texts, np.array(rows, float)


def pro_traits(table: Table) -> tuple[Any, int]:
    """What 83 models' outcomes on MMLU-Pro would be: five bands of ability, and six principal components."""
    questions = pq.read_table(DATA / "router" / "mmlupro_questions.parquet", columns=["query_id", "query"])
    ids, outcomes = wide("mmlupro_confidence", "query_id", ["correct"])
    at = {key: i for i, key in enumerate(ids)}
    outcomes = np.nan_to_num(outcomes)[[at[key] for key in questions["query_id"].to_pylist()]]
    order = np.argsort(outcomes.mean(0))
    bands = np.stack([outcomes[:, part].mean(1) for part in np.array_split(order, 5)], axis=1)
    left, sizes, _ = np.linalg.svd(outcomes - outcomes.mean(0), full_matrices=False)
    return traits(table, questions["query"].to_pylist(), np.hstack([bands, left[:, :6] * sizes[:6]]))


def gsm8k(keeper: Keeper, num_draws: int) -> dict[str, Any]:
    """Attempts at `routellm_gsm8k`."""
    rows = load_routed(
        DATA / "router" / "routellm_gsm8k.parquet", weak=PAIRS["routellm_gsm8k"][0], strong=PAIRS["routellm_gsm8k"][1]
    )
    table = Table.load(rows, keeper)
    answers, num_texts = traits(table, *worked_answers())
    ids, solved = wide("openai_gsm8k_solutions", "query", ["correct"])
    at = {key: i for i, key in enumerate(ids)}
    others = np.array(
        [solved[at[each.text]] if each.text in at else np.full(solved.shape[1], np.nan) for each in table.examples]
    )
    mini, plain = table.linear(table.minilm), table.linear(penalty=3)
    informed = table.linear(table.minilm, 0.2 * answers)
    attempts = {
        "words, form": table.blend(table.words, plain),
        "words, form, topics by trees": table.blend(table.words, plain, table.forest),
        "words, form with static vectors": table.blend(table.words, table.linear(table.static)),
        "words, form with MiniLM": table.blend(table.words, mini),
        "words, form with MiniLM, trees": table.blend(table.words, mini, table.forest),
        "words, random features of form and MiniLM": table.blend(
            table.words, table.linear(table.minilm, num_features=1500, penalty=3)
        ),
        "words, form with MiniLM; four GPT-3 models' outcomes": table.blend(
            table.words, mini, extra=told(table.gains, others)
        ),
        "form with MiniLM and worked answers": table.blend(informed),
        "words, form with MiniLM and worked answers": table.blend(table.words, informed),
    }
    return {"n": len(rows), "other_texts": num_texts, "rows": table.measured(attempts, num_draws, keeper, "gsm8k")}


def mmlu(keeper: Keeper, num_draws: int) -> dict[str, Any]:
    """Attempts at `routellm_mmlu`."""
    rows = load_routed(
        DATA / "router" / "routellm_mmlu.parquet", weak=PAIRS["routellm_mmlu"][0], strong=PAIRS["routellm_mmlu"][1]
    )
    table = Table.load(rows, keeper)
    difficulty, num_texts = pro_traits(table)
    extra = told(table.gains, other_outcomes(table, rows))
    mini, waves = table.linear(table.minilm, penalty=60), table.linear(table.minilm, num_features=1200, penalty=3)
    random_features = table.blend(table.words, table.forest, waves)
    outcomes = table.blend(table.words, extra=extra)
    attempts = {
        "words": table.blend(table.words),
        "words, topics by trees": table.blend(table.words, table.forest),
        "words, trees, form with static vectors": table.blend(
            table.words, table.forest, table.linear(table.static, penalty=60)
        ),
        "words, trees, form with MiniLM": table.blend(table.words, table.forest, mini),
        "words, trees, random features of form and MiniLM": random_features,
        "kernel over form and MiniLM": table.blend(table.kernel),
        "words, kernel over form and MiniLM": table.blend(table.words, table.kernel),
        "words, trees, kernel over form and MiniLM": table.blend(table.words, table.forest, table.kernel),
        "words, trees, form with MiniLM and MMLU-Pro's difficulty": table.blend(
            table.words, table.forest, table.linear(table.minilm, 0.1 * difficulty, penalty=60)
        ),
        "words; 87 other outcomes of training questions": outcomes,
        "random features and 87 other outcomes, their mean": mean_of(random_features, outcomes),
    }
    return {"n": len(rows), "other_texts": num_texts, "rows": table.measured(attempts, num_draws, keeper, "mmlu")}


def other_outcomes(table: Table, rows: Sequence[Any]) -> Any:
    """Of MMLU's questions: Llama-3's outcomes and confidences, and 83 models' where MMLU-Pro has the question too."""
    ids, llama = wide("mmlu_llama3_cascade", "query_id", ["correct", "confidence_msp"], ["Llama3-8b", "Llama3-70b"])
    at = {key: i for i, key in enumerate(ids)}
    questions = pq.read_table(DATA / "router" / "mmlupro_questions.parquet", columns=["query_id", "query"])
    pro_ids, pro = wide("mmlupro_confidence", "query_id", ["correct"])
    row_of = {key: i for i, key in enumerate(pro_ids)}
    pro = np.nan_to_num(pro)
    by_question: dict[str, int] = {}
    for key, text in zip(questions["query_id"].to_pylist(), questions["query"].to_pylist(), strict=True):
        by_question.setdefault(question_key(text), row_of[key])
    found = np.full((len(rows), llama.shape[1] + pro.shape[1]), np.nan)
    for i, (row, example) in enumerate(zip(rows, table.examples, strict=True)):
        if row.query_id in at:
            found[i, : llama.shape[1]] = llama[at[row.query_id]]
        position = by_question.get(question_key(example.text))
        if position is not None:
            found[i, llama.shape[1] :] = pro[position]
    return found


def remembered(folder: Path, name: str, make: Callable[[], Any]) -> Any:
    """What `make` gives, or gave when this code was run before."""
    path = folder / f"texts {CODE} {name}.npy"
    if not path.exists():
        np.save(path, make())
    return np.load(path)


class Judge:
    """Attempts at a cascade: the near answer's signals joined with what the texts say.

    Args:
        table: the queries.
        read: the near answers' signals, a column each.
        folder: keeps what the texts say, by the code that found it.
    """

    def __init__(self, table: Table, read: Any, folder: Path) -> None:
        self.table, self.read, self.folder = table, read, folder
        self.qualities = np.array([[each.weak, each.strong] for each in table.examples])
        self.fits = {
            "words": table.words,
            "form": table.linear(penalty=3),
            "form with MiniLM": table.linear(table.minilm),
        }

    def told(self, fit: str, targets: Any, learn: Any, positions: Any) -> tuple[Any, Any]:
        """Targets as a fit foretells them: of the queries to learn from out of fold, and of the others."""
        key = hashlib.sha256(b"".join(np.ascontiguousarray(each).tobytes() for each in (targets, learn, positions)))

        def make() -> Any:
            inner = np.array(fold_numbers([self.table.examples[i] for i in learn], 4, seed=1))
            inside = np.zeros((len(learn), targets.shape[1]))
            for part in range(4):
                kept, left = learn[inner != part], learn[inner == part]
                inside[inner == part] = self.fits[fit](kept, targets[kept])(left)
            return np.vstack([inside, self.fits[fit](learn, targets[learn])(positions)])

        found = remembered(self.folder, f"{fit} {key.hexdigest()[:16]}", make)
        return found[: len(learn)], found[len(learn) :]

    def ranks(self, learn: Any, at: Any) -> list[Any]:
        """The signals' ranks among the answers to learn from, in [-1, 1]."""
        return [2 * np.searchsorted(np.sort(column[learn]), column[at]) / len(learn) - 1 for column in self.read.T]

    def stacked(
        self, *fits: str, blocks: Sequence[Any] = (), by: str = "ridge", targets: Any = None, penalty: float = 100.0
    ) -> Predictor:
        """Texts' predictions, blocks that other tables gave, ranks, and their products, joined by `by`."""

        def predict(learn: Any, positions: Any) -> Any:
            aims = self.qualities if targets is None else targets
            texts = [self.told(fit, aims, learn, positions) for fit in fits]
            matrices = []
            for which, at in enumerate((learn, positions)):
                ranks = self.ranks(learn, at)
                about = np.hstack([text[which] for text in texts] + [block[at] for block in blocks])
                columns = [about, *(rank[:, None] ** power for rank in ranks for power in (1, 2, 3))]
                if by != "trees":
                    columns += [*(rank[:, None] * about for rank in ranks), (ranks[0] * ranks[1])[:, None]]
                matrices.append(np.hstack(columns))
            mean, scale = matrices[0].mean(0), np.maximum(matrices[0].std(0), 1e-9)
            inside, outside = ((matrix - mean) / scale for matrix in matrices)
            gains = self.table.gains[learn]
            if by == "trees":
                trees = ExtraTreesRegressor(
                    100, min_samples_leaf=20, max_features=0.5, bootstrap=True, random_state=0
                ).fit(inside, gains)
                return trees.predict(outside)
            if by == "classes":
                classes = LogisticRegression(C=1 / penalty, max_iter=300).fit(inside, np.sign(gains))
                return classes.predict_proba(outside) @ classes.classes_
            weights = self.weights(learn, gains - Ridge(alpha=penalty).fit(inside, gains).predict(inside))
            return Ridge(alpha=penalty).fit(inside, gains, weights if by == "weighted" else None).predict(outside)

        return predict

    def varying(
        self,
        *blocks: Any,
        words: float = 0.2,
        text: float = 0.7,
        vectors: bool = False,
        product: float = 1.0,
        penalty: float = 40.0,
    ) -> Predictor:
        """Ridge on the signals, the text and their products, as `Hybrid` has it.

        Args:
            blocks: what other tables tell of the queries, a column each.
            words: what the words' predictions count.
            text: what form and vectors count.
            vectors: whether MiniLM's are read.
            product: what a product counts beside its text.
            penalty: of the squared weights.
        """
        parts = [0.1 * np.clip(standard(self.table.form), -5, 5), *([self.table.minilm] if vectors else [])]
        fixed = np.hstack([text * (part - part.mean(0)) for part in parts] + [0.2 * standard(each) for each in blocks])

        def predict(learn: Any, positions: Any) -> Any:
            inside, outside = self.told("words", self.qualities, learn, positions)
            mean, scale = inside.mean(0), np.maximum(inside.std(0), 1e-9)
            matrices = []
            for at, told in ((learn, inside), (positions, outside)):
                ranks = self.ranks(learn, at)
                both = [one * other for one, other in combinations(ranks, 2)]
                terms = np.stack([*(r**power for r in ranks for power in (1, 2, 3)), *both], axis=1)
                about = np.hstack([fixed[at], words * (told - mean) / scale])
                matrices.append(np.hstack([about, *(product * rank[:, None] * about for rank in ranks), terms]))
            num = terms.shape[1]
            mean, scale = matrices[0][:, -num:].mean(0), matrices[0][:, -num:].std(0)
            for matrix in matrices:
                matrix[:, -num:] = (matrix[:, -num:] - mean) / scale
            ridge = Ridge(alpha=penalty, solver="cholesky").fit(matrices[0], self.table.gains[learn])
            return ridge.predict(matrices[1])

        return predict

    def weights(self, learn: Any, errors: Any) -> Any:
        """The inverse of the variance that the signals foretell, at least 0.15 of the mean one; 1 in the mean."""
        ranks = np.stack([rank**power for rank in self.ranks(learn, learn) for power in (1, 2, 3)], axis=1)
        variance = Ridge(alpha=1).fit(ranks, errors**2).predict(ranks)
        found = 1 / np.maximum(variance, 0.15 * (errors**2).mean())
        return found / found.mean()

    def process(self, *blocks: Any) -> Predictor:
        """A Gaussian process over signals, and over signals times texts, in one step.

        Source: Rasmussen and Williams 2006, "Gaussian processes for machine learning", sections 2.2 and 4.2.4.
        """

        def predict(learn: Any, positions: Any) -> Any:
            both = np.concatenate([learn, positions])
            scaled = []
            for part, weight in ((self.table.form, 0.1), *((block, 0.4) for block in blocks)):
                mean, scale = part[learn].mean(0), np.maximum(part[learn].std(0), 1e-6)
                scaled.append(weight * np.clip((part[both] - mean) / scale, -5, 5))
            form, *rest = scaled
            texts = 0.6 * linear_kernel(np.hstack([form, self.table.minilm[both]]))
            for block in rest:
                texts = texts + linear_kernel(block)
            ranks = np.stack(self.ranks(learn, both), axis=1) * [1, 0.5**0.5]
            signals = rbf_kernel(ranks, gamma=0.5)
            kernel = 5 * signals + texts * (0.3 + signals)
            known, gains = slice(0, len(learn)), self.table.gains[learn]
            noise = 40 / self.weights(learn, gains - gains.mean())
            weights = cho_solve(
                cho_factor(kernel[known, known] + np.diag(noise), lower=True, overwrite_a=True), gains - gains.mean()
            )
            return kernel[len(learn) :, known] @ weights

        return predict

    def curve(self, predict: Predictor, keeper: Keeper, name: str) -> list[dict[str, Any]]:
        """APGR, pooled out of fold, by the number of labels."""
        weak, strong = self.qualities.T.tolist()
        folds, points = np.array(fold_numbers(self.table.examples, NUM_FOLDS)), []
        for share in (0.1, 0.2, 0.4, 0.7, 1.0):

            def score(share: float = share) -> list[float]:
                found = np.zeros(len(folds))
                for fold in range(NUM_FOLDS):
                    learn, inside = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
                    drawn = np.random.default_rng(fold).permutation(learn)[: round(share * len(learn))]
                    found[inside] = predict(np.sort(drawn), inside)
                return [float(each) for each in found]

            found = keeper.scores("cascade", f"curve {CODE} {name} {share}", score)
            interval = bootstrap_metrics(found, weak, strong, resamples=300)["apgr"]
            apgr, num = routing_metrics(found, weak, strong).apgr, round(share * len(folds) * (1 - 1 / NUM_FOLDS))
            points.append({"n": num, "apgr": apgr, "interval": [interval.low, interval.high]})
            print(points[-1], flush=True)
        return points


def standard(found: Any) -> Any:
    """Each column less its mean, in standard deviations."""
    return (found - found.mean(0)) / np.maximum(found.std(0), 1e-9)


def mean_of(*predictors: Predictor) -> Predictor:
    """The mean of several, each in standard deviations."""
    return lambda learn, positions: sum(standard(each(learn, positions)) for each in predictors)


def cascade(keeper: Keeper, num_draws: int) -> dict[str, Any]:
    """Attempts at `mmlu_llama3_cascade`: the near answer's two confidences joined with more about the text."""
    name, weak, strong, signals = LLAMA
    rows = load_routed(DATA / "router" / f"{name}.parquet", weak=weak, strong=strong, signals=signals)
    table = Table.load(rows, keeper)
    read = np.array([[each.signals[signal] for signal in signals] for each in table.examples])
    judge = Judge(table, read, keeper.folder or Path())
    by_words = remembered(judge.folder, "elsewhere by words", lambda: mmlu_by_words(table))
    by_kernel = remembered(judge.folder, "elsewhere by kernel", lambda: mmlu_by_kernel(table, keeper))
    difficulty = remembered(judge.folder, "difficulty", lambda: pro_traits(table)[0])
    mini, others, all_others = ("words", "form with MiniLM"), (by_words, by_kernel), (by_words, by_kernel, difficulty)
    final = judge.stacked(*mini, blocks=others)
    attempts = {
        "words": judge.stacked("words"),
        "words, form": judge.stacked("words", "form"),
        "words, form with MiniLM": judge.stacked(*mini),
        "the same by trees": judge.stacked(*mini, by="trees"),
        "the same by three classes of gain": judge.stacked(*mini, by="classes"),
        "the same weighted by variance": judge.stacked(*mini, by="weighted"),
        "form with MiniLM foretelling confidences and four models' outcomes": judge.stacked(
            "form with MiniLM", targets=recorded_targets(judge, rows)
        ),
        "Gaussian process over signals, form with MiniLM": judge.process(),
        "words, form with MiniLM; Mixtral and GPT-4 elsewhere by words": judge.stacked(*mini, blocks=[by_words]),
        "words, form with MiniLM; Mixtral and GPT-4 elsewhere by words, by a kernel": final,
        "the same by three classes of gain, other tables too": judge.stacked(*mini, blocks=others, by="classes"),
        "the same weighted by variance, other tables too": judge.stacked(*mini, blocks=others, by="weighted"),
        "the same and MMLU-Pro's difficulty": judge.stacked(*mini, blocks=all_others, by="weighted", penalty=300),
        "Gaussian process, other tables too": judge.process(*others),
        "the mean of the last four": mean_of(
            judge.stacked(*mini, blocks=others, by="classes"),
            judge.stacked(*mini, blocks=others, by="weighted"),
            judge.stacked(*mini, blocks=all_others, by="weighted", penalty=300),
            judge.process(*others),
        ),
    }
    return {
        "n": len(rows),
        "rows": table.measured(attempts, num_draws, keeper, "cascade"),
        "curves": {
            "words, form with MiniLM": judge.curve(judge.stacked(*mini), keeper, "mini"),
            "with Mixtral and GPT-4 elsewhere": judge.curve(final, keeper, "others"),
        },
    }


def design(keeper: Keeper) -> dict[str, Any]:
    """The shipped judge of `mmlu_llama3_cascade` taken apart."""
    name, weak, strong, signals = LLAMA
    rows = load_routed(DATA / "router" / f"{name}.parquet", weak=weak, strong=strong, signals=signals)
    table = Table.load(rows, keeper)
    read = np.array([[each.signals[signal] for signal in signals] for each in table.examples])
    judge = Judge(table, read, keeper.folder or Path())
    by_words = remembered(judge.folder, "elsewhere by words", lambda: mmlu_by_words(table))
    by_form = remembered(judge.folder, "elsewhere by form", lambda: mmlu_by_form(table))
    by_kernel = remembered(judge.folder, "elsewhere by kernel", lambda: mmlu_by_kernel(table, keeper))
    others = (by_words, by_form)
    attempts = {
        "words, form, each quality foretold first (before)": judge.stacked("words", "form"),
        "form": judge.varying(words=0),
        "words, form (shipped)": judge.varying(),
        "words half as much": judge.varying(words=0.1),
        "form half as much": judge.varying(text=0.35),
        "form twice as much": judge.varying(text=1.4),
        "products half as much": judge.varying(product=0.5),
        "penalty 20": judge.varying(penalty=20),
        "penalty 80": judge.varying(penalty=80),
        "Mixtral and GPT-4 elsewhere by words": judge.varying(by_words),
        "Mixtral and GPT-4 elsewhere by words, by form (shipped with --also)": judge.varying(*others),
        "with MiniLM, each quality foretold first (before)": judge.stacked("words", "form with MiniLM"),
        "with MiniLM (shipped)": judge.varying(vectors=True),
        "with MiniLM, elsewhere by words, by form (shipped with --also)": judge.varying(*others, vectors=True),
        "with MiniLM, elsewhere by words, by form, by form with MiniLM": judge.varying(
            *others, by_kernel, vectors=True
        ),
    }
    return {"n": len(rows), "rows": table.measured(attempts, 4, keeper, "design")}


def cascade_table(keeper: Keeper) -> tuple[Table, Any]:
    """`mmlu_llama3_cascade`, and its near answers' signals, a column each."""
    name, weak, strong, signals = LLAMA
    rows = load_routed(DATA / "router" / f"{name}.parquet", weak=weak, strong=strong, signals=signals)
    table = Table.load(rows, keeper)
    return table, np.array([[each.signals[signal] for signal in signals] for each in table.examples])


def elsewhere(table: Table, others: Sequence[RoutingExample]) -> Any:
    """What `Hybrid` takes from another table's outcomes: both models' qualities by words, and by form."""
    asked = {question_key(each.text) for each in table.examples}
    known = apart([each for each in others if question_key(each.text) not in asked], table.examples)
    qualities = [[each.weak for each in known], [each.strong for each in known]]
    by_words = [
        NgramRidge().fit([RoutingExample(each.text, strong=right) for each, right in zip(known, found, strict=True)])
        for found in qualities
    ]
    by_form = FormKernel().fit(known, np.array(qualities).T).predict(table.examples)
    return standard(np.column_stack([*(ridge.predict(table.examples) for ridge in by_words), by_form]))


def mmlu_pro_examples() -> list[RoutingExample]:
    """MMLU-Pro's questions with the qualities of its 8B and its 405B model."""
    questions = pq.read_table(DATA / "router" / "mmlupro_questions.parquet", columns=["query_id", "query"])
    texts = dict(zip(questions["query_id"].to_pylist(), questions["query"].to_pylist(), strict=True))
    rows = load_routed(DATA / "router" / f"{MMLU_PRO[0]}.parquet", weak=MMLU_PRO[1], strong=MMLU_PRO[2])
    return [RoutingExample(texts[row.query_id], weak=row.weak, strong=row.strong) for row in rows]


def folds(keeper: Keeper) -> dict[str, Any]:
    """The shipped judge of `mmlu_llama3_cascade` by the share of the table that it learns from: a learning curve."""
    table, read = cascade_table(keeper)
    judge = Judge(table, read, keeper.folder or Path())
    mmlu = remembered(judge.folder, "mmlu elsewhere", lambda: elsewhere(table, examples_of(mmlu_rows())))
    rows = []
    for num_folds in (5, 10, 20):
        attempts = {
            f"{num_folds} folds": judge.varying(),
            f"{num_folds} folds, with --also": judge.varying(mmlu),
            f"{num_folds} folds, with MiniLM": judge.varying(vectors=True),
            f"{num_folds} folds, with MiniLM and --also": judge.varying(mmlu, vectors=True),
        }
        num_labels = round(len(table.examples) * (1 - 1 / num_folds))
        found = table.measured(attempts, 4, keeper, "folds", num_folds)
        rows += [{**row, "num_folds": num_folds, "num_labels": num_labels} for row in found]
    return {"n": len(table.examples), "rows": rows}


def signals(keeper: Keeper) -> dict[str, Any]:
    """The shipped judge of `mmlu_llama3_cascade` with one signal of two, with a further table, and by a process."""
    table, read = cascade_table(keeper)
    folder = keeper.folder or Path()
    both, one = Judge(table, read, folder), Judge(table, read[:, :1], folder)
    mmlu = remembered(folder, "mmlu elsewhere", lambda: elsewhere(table, examples_of(mmlu_rows())))
    pro = remembered(folder, "mmlu-pro elsewhere", lambda: elsewhere(table, mmlu_pro_examples()))
    attempts = {}
    for shown, vectors in (("", False), (" with MiniLM", True)):
        for told, blocks in (("", ()), (", --also", (mmlu,)), (", --also, MMLU-Pro's too", (mmlu, pro))):
            attempts[f"both confidences{shown}{told}"] = both.varying(*blocks, vectors=vectors)
            attempts[f"confidence_msp alone{shown}{told}"] = one.varying(*blocks, vectors=vectors)
    attempts["three classes of gain, each quality foretold first"] = both.stacked("words", "form", by="classes")
    return {"n": len(table.examples), "rows": table.measured(attempts, 9, keeper, "signals")}


def recorded_targets(judge: Judge, rows: Sequence[Any]) -> Any:
    """What the table records of each query: both models' qualities and confidences, and two other models' outcomes."""
    models = [*LLAMA[1:3], *PAIRS["routellm_mmlu"]]
    ids, outcomes = wide(LLAMA[0], "query_id", ["correct"], models)
    _, confidences = wide(LLAMA[0], "query_id", LLAMA[3], models[:2])
    at = {key: i for i, key in enumerate(ids)}
    order = [at[row.query_id] for row in rows]
    ranked = confidences[order].argsort(axis=0).argsort(axis=0) / len(rows)
    return np.hstack([judge.qualities, outcomes[order][:, 2:], ranked])


#: Where each table's queries are, with the models and the signals that count.
TABLES = {
    "gsm8k": ("routellm_gsm8k", *PAIRS["routellm_gsm8k"], ()),
    "mmlu": ("routellm_mmlu", *PAIRS["routellm_mmlu"], ()),
    "cascade": LLAMA,
    "design": LLAMA,
    "signals": LLAMA,
}


def kept(table: str, keeper: Keeper) -> dict[str, Any]:
    """The attempts whose scores are all kept, measured; nothing is fitted."""
    name, weak, strong, signals = TABLES[table]
    rows = load_routed(DATA / "router" / f"{name}.parquet", weak=weak, strong=strong, signals=signals)
    found = [path.name for path in sorted((keeper.folder or Path()).glob(f"{table} attempt {CODE} *"))]
    attempts = [each.removeprefix(f"{table} attempt {CODE} ").rsplit(" 0 ", 1)[0] for each in found if " 0 " in each]

    def unknown(learn: Any, positions: Any) -> Any:
        raise SystemExit(f"The scores of an attempt at {table} were cut off; run it again without --kept.")

    measured = Table(examples_of(rows), None).measured(dict.fromkeys(attempts, unknown), 1, keeper, table)
    return {"n": len(rows), "rows": measured}


def mmlu_rows() -> list[Any]:
    """Mixtral's and GPT-4's outcomes on MMLU."""
    weak, strong = PAIRS["routellm_mmlu"]
    return load_routed(DATA / "router" / "routellm_mmlu.parquet", weak=weak, strong=strong)


def mmlu_by_words(table: Table) -> Any:
    """Mixtral's and GPT-4's quality on the table's questions, as the words of MMLU's other questions foretell it."""
    rows = mmlu_rows()
    return traits(table, [row.text for row in rows], np.array([[row.weak, row.strong] for row in rows]))[0]


def mmlu_by_form(table: Table) -> Any:
    """The same by a Gaussian kernel over form."""
    rows = mmlu_rows()
    others = examples_of(rows)
    kept = np.flatnonzero(unseen(table, others))
    kernel = FormKernel().fit([others[i] for i in kept], [[rows[i].weak, rows[i].strong] for i in kept])
    return standard(kernel.predict(table.examples))


def mmlu_by_kernel(table: Table, keeper: Keeper) -> Any:
    """The same by a Gaussian kernel over form and MiniLM's vectors."""
    rows = mmlu_rows()
    others, qualities = Table.load(rows, keeper), np.array([[row.weak, row.strong] for row in rows])
    kept = unseen(table, others.examples)
    mean, scale = others.form.mean(0), np.maximum(others.form.std(0), 1e-6)
    theirs, mine = (
        np.hstack([0.1 * np.clip((each.form - mean) / scale, -5, 5), each.minilm]) for each in (others, table)
    )
    ridge = KernelRidge(kernel="rbf", gamma=0.5, alpha=1.5).fit(theirs[kept], qualities[kept] - qualities[kept].mean(0))
    return standard(ridge.predict(mine))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=["gsm8k", "mmlu", "cascade", "design", "folds", "signals"])
    parser.add_argument("--keep", type=Path, required=True, help="the folder with MiniLM's vectors")
    parser.add_argument("--kept", action="store_true", help="measure those attempts alone whose scores are there")
    parser.add_argument("--draws", type=int, default=3, help="of the folds")
    options = parser.parse_args()
    if options.kept and options.table == "folds":
        parser.error("--kept measures draws of five folds; run folds without it, what is kept is not fitted again")
    start = time.perf_counter()
    drawn = "" if options.draws == 3 else f" --draws {options.draws}"
    head = provenance(f"python benchmarks/routing_attempts.py {options.table}{drawn}", PACKAGES)
    keeper = Keeper(options.keep)
    if options.kept:
        found = kept(options.table, keeper)
    elif options.table in ("design", "folds", "signals"):
        found = {"design": design, "folds": folds, "signals": signals}[options.table](keeper)
    else:
        found = {"gsm8k": gsm8k, "mmlu": mmlu, "cascade": cascade}[options.table](keeper, options.draws)
    save({**head, **found, "took_s": time.perf_counter() - start}, f"routing_attempts_{options.table}")


if __name__ == "__main__":
    main()
