"""The tool index: which tools a request needs, by what each tool says of itself and by what it was used for."""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import log, sqrt
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Self

from nearfar.errors import ConfigError, DataError
from nearfar.types import Chunk, Embedder, Filter, Hit, ToolSpec

from .bm25 import BM25
from .corpus import standardised
from .filters import matches
from .fitted import FittedReranker, Judged
from .judged import broken_line, existing, rows
from .words import words

if TYPE_CHECKING:
    from numpy import float32, int64
    from numpy.typing import NDArray

#: Tools that the second stage ranks.
_CANDIDATES = 24

#: How sharply an example's vote falls with its distance: e^(20 · (cosine − 1)). On MetaTool's training queries anything
#: from 12 to 30 gives the same R@1 to 0.02.
_SHARPNESS = 20.0

#: Examples that the second stage is fitted on: more change MetaTool's R@1 by less than 0.003.
_FITTED_ON = 1500

#: Fewer examples than this fit nothing; the signals are then added as they are.
_LEAST = 50

_FORMAT = "tool-index-1"


@dataclass(frozen=True, slots=True)
class ToolUse:
    """A request, and the tools that it needed."""

    text: str
    tools: tuple[str, ...]


class ToolIndex:
    """Finds the tools that a request needs; a `Retriever` whose chunks are tools (id: the name, text: the description).

    The first stage compares the request with every tool in several ways, each a signal of the hit:

    - description, bm25: with the tool's own words, by vectors and by words;
    - centre: with the mean of the requests that used it (Tool2Vec, arXiv:2409.02141), its description one of them;
    - words: the same with TF-IDF vectors;
    - vote, nearest: with each of those requests, since a tool may serve several ends; share: the vote less the
      advantage of many examples, whose number is the signal count.

    The second stage weighs the signals of the best candidates as the examples teach, each seen as if it were new
    (the staged refinement of the same paper, with a linear model in place of its transformer).

    Tools and examples come and go without fitting anything anew; `fit` only improves the weights.

    Args:
        embedder: of descriptions and requests.
    """

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._tools: dict[str, ToolSpec] = {}
        self._uses: dict[str, tuple[str, ...]] = {}  # by text: the same request with other tools is one use of both
        self._vectors: dict[str, NDArray[float32]] = {}  # by text
        self._reranker: FittedReranker | None = None
        self._built: _Built | None = None

    def __len__(self) -> int:
        return len(self._tools)

    @property
    def names(self) -> tuple[str, ...]:
        """The tools', in the order in which they were added."""
        return tuple(self._tools)

    @property
    def num_examples(self) -> int:
        """Requests that were learned."""
        return len(self._uses)

    @property
    def is_fitted(self) -> bool:
        """Whether examples weigh the signals."""
        return self._reranker is not None

    def tool(self, name: str) -> ToolSpec:
        """The tool of this name.

        Raises:
            DataError: there is none.
        """
        try:
            return self._tools[name]
        except KeyError:
            raise DataError(f"There is no tool {name!r} in the index.") from None

    def add(self, tools: Iterable[ToolSpec]) -> None:
        """Adds tools, or replaces those of the same names; what they were used for is kept."""
        self._tools.update((tool.name, tool) for tool in tools)
        self._built = None

    def remove(self, name: str) -> None:
        """Forgets the tool and that it was used.

        Raises:
            DataError: there is none.
        """
        self.tool(name)
        del self._tools[name]
        self._uses = {
            text: left for text, used in self._uses.items() if (left := tuple(each for each in used if each != name))
        }
        self._built = None

    def learn(self, uses: Iterable[ToolUse]) -> None:
        """Adds requests and the tools that they needed.

        Raises:
            DataError: a tool is not in the index.
        """
        learned = dict(self._uses)
        for use in uses:
            for name in use.tools:
                self.tool(name)
            learned[use.text] = tuple(dict.fromkeys((*learned.get(use.text, ()), *use.tools)))
        self._uses = learned
        self._built = None

    def fit(self, *, seed: int = 0) -> bool:
        """Fits the second stage on what was learned; False where that is too little."""
        texts = list(self._uses)
        if len(texts) < _LEAST:
            return False
        built = self._build()
        if len(texts) > _FITTED_ON:
            texts = Random(seed).sample(texts, _FITTED_ON)  # noqa: S311
        examples = [
            Judged(self._candidates(built, text, but=self._uses[text]), dict.fromkeys(self._uses[text], 1.0))
            for text in texts
        ]
        self._reranker = FittedReranker.fit(examples)
        return True

    def search(self, query: str, *, k: int = 5, filter: Filter | None = None) -> list[Hit]:  # noqa: A002
        """The k tools that the request most likely needs, likeliest first."""
        if not self._tools:
            return []
        hits = self._candidates(self._build(), query, depth=max(k, _CANDIDATES), wanted=filter)
        return (self._reranker.rerank(hits) if self._reranker else hits)[:k]

    def search_by(self, query: str, signal: str, *, k: int = 5) -> list[Hit]:
        """The k best tools by one signal alone: the baselines."""
        import numpy as np

        if not self._tools:
            return []
        built = self._build()
        scores = self._signals(built, query)[signal]
        order = np.argsort(-scores, kind="stable")[:k].tolist()
        return [Hit(built.chunks[place], float(scores[place])) for place in order]

    def save(self, folder: Path) -> None:
        """Writes the index into the folder, over what is there; a kill leaves the one or the other.

        Raises:
            DataError: the folder cannot be written.
        """
        import numpy as np

        self._build()
        texts = list(self._vectors)
        said: dict[str, Any] = {
            "format": _FORMAT,
            "embedder": self._embedder.name,
            "tools": [asdict(tool) for tool in self._tools.values()],
            "uses": [[text, list(used)] for text, used in self._uses.items()],
            "texts": texts,
            "vectors": f"vectors-{secrets.token_hex(4)}.npy",
            "reranker": asdict(self._reranker) if self._reranker else None,
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            np.save(folder / said["vectors"], np.array([self._vectors[text] for text in texts], np.float32))
            new = folder / "tools.json.new"
            new.write_text(json.dumps(said))
            new.replace(folder / "tools.json")  # which names the vectors that go with it
            for old in folder.glob("vectors*.npy"):
                if old.name != said["vectors"]:
                    old.unlink(missing_ok=True)
        except OSError as exc:
            raise DataError(f"Cannot write {str(folder)!r}: {exc.strerror or exc}.", path=str(folder)) from exc

    @classmethod
    def load(cls, folder: Path, embedder: Embedder) -> Self:
        """The index that `save` wrote.

        Raises:
            DataError: there is none, or it is broken.
            ConfigError: it was made with another embedder.
        """
        import numpy as np

        said = _read(folder)
        if said["embedder"] != embedder.name:
            raise ConfigError(
                f"The tool index {str(folder)!r} was made with {said['embedder']!r}, not {embedder.name!r}; "
                "name that embedder or index the tools again."
            )
        found = cls(embedder)
        try:
            vectors = np.load(folder / said.get("vectors", "vectors.npy"))
            found.add(ToolSpec(**tool) for tool in said["tools"])
            found._uses = {text: tuple(used) for text, used in said["uses"]}
            if vectors.shape != (len(said["texts"]), embedder.dim):
                raise ValueError
            found._vectors = dict(zip(said["texts"], vectors, strict=True))
            weights = said["reranker"]
            found._reranker = weights and FittedReranker(tuple(weights["names"]), tuple(weights["weights"]))
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise _broken(folder) from exc
        return found

    @staticmethod
    def made_with(folder: Path) -> str:
        """The name of the embedder that the index in the folder was made with.

        Raises:
            DataError: there is none, or it is broken.
        """
        return str(_read(folder).get("embedder"))

    def _build(self) -> _Built:
        if self._built is None:
            descriptions = [_described(tool) for tool in self._tools.values()]
            fresh = [text for text in dict.fromkeys([*descriptions, *self._uses]) if text not in self._vectors]
            if fresh:
                self._vectors.update(zip(fresh, self._embedder.embed(fresh), strict=True))
            keep = {*descriptions, *self._uses}
            self._vectors = {text: vector for text, vector in self._vectors.items() if text in keep}
            self._built = _Built.of(self._tools, self._uses, self._vectors)
        return self._built

    def _candidates(
        self,
        built: _Built,
        query: str,
        *,
        but: Sequence[str] = (),
        depth: int = _CANDIDATES,
        wanted: Filter | None = None,
    ) -> list[Hit]:
        """The first stage's best tools, best first; `but`: the query is an example of these and must not see itself."""
        import numpy as np

        signals = self._signals(built, query, but)
        total = sum(standardised(signals[name]) for name in ("vote", "centre", "words", "description"))
        order = np.argsort(-np.asarray(total), kind="stable").tolist()
        if wanted:
            order = [place for place in order if matches(built.chunks[place], wanted)]
        return [
            Hit(
                built.chunks[place],
                float(np.asarray(total)[place]),
                {name: float(each[place]) for name, each in signals.items()},
            )
            for place in order[:depth]
        ]

    def _signals(self, built: _Built, query: str, but: Sequence[str] = ()) -> dict[str, NDArray[float32]]:
        vector = self._vectors[query] if but else self._embedder.embed_queries([query])[0]
        return built.signals(query, vector, [built.places[name] for name in but])


@dataclass(frozen=True, slots=True)
class _Built:
    """The arrays that a search needs; made anew when tools or examples change, which takes milliseconds."""

    chunks: tuple[Chunk, ...]
    places: Mapping[str, int]
    bm25: BM25
    descriptions: NDArray[float32]
    examples: NDArray[float32]  # one row per use of a tool, by tool
    starts: NDArray[int64]  # where the rows of each tool that was used begin
    used: NDArray[int64]  # the places of those tools
    counts: NDArray[float32]  # uses per tool
    sums: NDArray[float32]  # of each tool's vectors, its description's among them
    rarity: Mapping[str, float]
    postings: Mapping[str, tuple[NDArray[int64], NDArray[float32]]]  # by word: tools, and the sum of its weights
    lengths: NDArray[float32]  # of the sums of the tools' word vectors, squared

    @classmethod
    def of(
        cls,
        tools: Mapping[str, ToolSpec],
        uses: Mapping[str, Sequence[str]],
        vectors: Mapping[str, NDArray[float32]],
    ) -> Self:
        import numpy as np

        places = {name: place for place, name in enumerate(tools)}
        texts = [_described(tool) for tool in tools.values()]
        pairs = sorted((places[name], text) for text, used in uses.items() for name in used)
        dim = len(vectors[texts[0]]) if texts else 0
        examples = np.array([vectors[text] for _, text in pairs], np.float32).reshape(len(pairs), dim)
        owners = np.array([place for place, _ in pairs], np.int64)
        used, starts, counts = np.unique(owners, return_index=True, return_counts=True)
        every_count = np.zeros(len(places), np.float32)
        every_count[used] = counts
        descriptions = np.array([vectors[text] for text in texts], np.float32).reshape(len(texts), dim)
        sums = descriptions.copy()
        np.add.at(sums, owners, examples)

        counted = {text: Counter(words(text)) for text in dict.fromkeys([*texts, *uses])}
        spread: Counter[str] = Counter(word for found in counted.values() for word in found)
        rarity = {word: log((len(counted) + 1) / count) for word, count in spread.items()}
        weights: dict[str, dict[int, float]] = {}
        lengths = np.zeros(len(places), np.float32)
        totals: list[dict[str, float]] = [{} for _ in places]
        for place, text in [*enumerate(texts), *pairs]:
            total = totals[place]
            for word, weight in _word_vector(counted[text], rarity).items():
                total[word] = total.get(word, 0.0) + weight
        for place, total in enumerate(totals):
            lengths[place] = sum(weight * weight for weight in total.values())
            for word, weight in total.items():
                weights.setdefault(word, {})[place] = weight
        postings = {
            word: (np.fromiter(found, np.int64), np.fromiter(found.values(), np.float32))
            for word, found in weights.items()
        }
        chunks = tuple(
            Chunk(tool.description, name, 0, len(tool.description), {"tool": name}, id=name)
            for name, tool in tools.items()
        )
        return cls(
            chunks, places, BM25.build(texts), descriptions, examples, starts, used, every_count, sums, rarity,
            postings, lengths,
        )  # fmt: skip

    def signals(self, query: str, vector: NDArray[float32], but: Sequence[int]) -> dict[str, NDArray[float32]]:
        """Every tool's signals; for the tools in `but` as if the query were not among their examples."""
        import numpy as np

        num = len(self.chunks)
        description = self.descriptions @ vector
        cosines = self.examples @ vector
        if but:  # an example's cosine to itself is the only one that is 1
            own = np.isin(np.repeat(self.used, np.diff([*self.starts, len(cosines)])), but) & (cosines > 1 - 1e-5)
            cosines = np.where(own, np.float32(-1), cosines)
        vote = np.exp(_SHARPNESS * (description - 1))
        nearest = np.zeros(num, np.float32)
        if len(self.used):
            vote[self.used] += np.add.reduceat(np.exp(_SHARPNESS * (cosines - 1)), self.starts)
            nearest[self.used] = np.maximum.reduceat(cosines, self.starts)
        vote = np.log(vote)
        count = self.counts.copy()
        count[list(but)] -= 1
        count = np.log(count + 1)
        return {
            "description": description,
            "bm25": self.bm25.scores(query),
            "centre": _cosine(self.sums @ vector, np.square(self.sums).sum(axis=1), but),
            "words": _cosine(self._word_products(query), self.lengths, but),
            "vote": vote,
            "share": vote - count / 2,
            "nearest": nearest,
            "count": count,
        }

    def _word_products(self, query: str) -> NDArray[float32]:
        import numpy as np

        products = np.zeros(len(self.chunks), np.float32)
        for word, weight in _word_vector(Counter(words(query)), self.rarity).items():
            owners, weights = self.postings[word]
            products[owners] += np.float32(weight) * weights
        return products


def _cosine(products: NDArray[float32], squares: NDArray[float32], but: Sequence[int]) -> NDArray[float32]:
    """Cosines of sums of unit vectors to a unit vector; in the rows `but` that vector is taken out of the sum first."""
    import numpy as np

    out = np.zeros(len(products), np.float32)
    out[list(but)] = 1
    left = np.maximum(squares - 2 * out * products + out, 1e-9)
    cosines: NDArray[float32] = ((products - out) / np.sqrt(left)).astype(np.float32)
    return cosines


def _word_vector(counted: Mapping[str, int], rarity: Mapping[str, float]) -> dict[str, float]:
    """A text's TF-IDF vector of length 1 with logarithmic counts; words that nobody used are left out."""
    found = {word: (1 + log(count)) * rarity[word] for word, count in counted.items() if word in rarity}
    length = sqrt(sum(weight * weight for weight in found.values()))
    return {word: weight / length for word, weight in found.items()} if length > 0 else {}


def _described(tool: ToolSpec) -> str:
    parameters = " ".join(map(str, tool.parameters.get("properties", {})))
    return f"{tool.name}: {tool.description} {parameters}".strip()


def read_tools(path: Path) -> list[ToolSpec]:
    """The tools of a JSONL file: `id` or `name`, `text` or `description`, maybe `parameters` (JSON Schema).

    Raises:
        DataError: there is no such file, or a line is not a tool.
    """
    path = existing(path)
    found: dict[str, ToolSpec] = {}
    for number, line in rows(path):
        inner = line.get("function", line)
        row: dict[str, Any] = inner if isinstance(inner, dict) else {}
        name, text = row.get("id", row.get("name")), row.get("text", row.get("description", ""))
        parameters = row.get("parameters") or {}
        if not isinstance(name, str) or not name or not isinstance(text, str) or not isinstance(parameters, dict):
            raise broken_line(path, number, "a tool needs `id` or `name`, and `text` or `description`")
        if name in found:
            raise broken_line(path, number, f"there is another tool {name!r} before it")
        found[name] = ToolSpec(name, text, parameters)
    if not found:
        raise DataError(f"{str(path)!r} has no tools.", path=str(path))
    return list(found.values())


def read_uses(path: Path, *, known: Iterable[str]) -> list[ToolUse]:
    """The requests of a JSONL file: `text` and `tools`, the names of what each needed.

    Raises:
        DataError: there is no such file, a line is not a request, or it names an unknown tool.
    """
    path = existing(path)
    names = frozenset(known)
    found = []
    for number, row in rows(path):
        used = row.get("tools")
        if not isinstance(row.get("text"), str) or not isinstance(used, list) or not used:
            raise broken_line(path, number, "a request needs `text` and `tools`")
        unknown = [name for name in used if not isinstance(name, str) or name not in names]
        if unknown:
            raise broken_line(path, number, f"there is no tool {unknown[0]!r}")
        found.append(ToolUse(row["text"], tuple(used)))
    if not found:
        raise DataError(f"{str(path)!r} has no requests.", path=str(path))
    return found


def _read(folder: Path) -> dict[str, Any]:
    try:
        said: Any = json.loads((folder / "tools.json").read_text())
    except FileNotFoundError as exc:
        raise DataError(
            f"There is no tool index {str(folder)!r}. Make it: nearfar tools index TOOLS", path=str(folder)
        ) from exc
    except (OSError, ValueError) as exc:
        raise _broken(folder) from exc
    if not isinstance(said, dict) or said.get("format") != _FORMAT:
        raise _broken(folder)
    return said


def _broken(folder: Path) -> DataError:
    return DataError(
        f"The tool index {str(folder)!r} is broken or of another version; make it again.", path=str(folder)
    )
