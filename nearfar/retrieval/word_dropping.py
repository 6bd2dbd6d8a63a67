"""Compression of a text without a question: drops the words whose absence a model minds least."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any, Protocol

from nearfar.errors import ConfigError, RequestError
from nearfar.types import Embedder

from .sentences import sentences

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray

#: What is never dropped: words with digits, and citations like [3].
_KEPT = re.compile(r"\d|^\[[^\]]*\]")

#: The share of a sentence's words that one round drops before the rest is looked at again.
_ROUND = 0.1


class WordValues(Protocol):
    """Says how much each word of a text matters; only the order counts."""

    def values(self, words: Sequence[str]) -> Sequence[float]: ...


def drop_words(
    text: str,
    rate: float,
    values: WordValues,
    *,
    forced: Iterable[str] = (),
    keeps_digits: bool = True,
    drops_repeats: bool = False,
) -> str:
    """The text with this share of its words, sentence by sentence.

    Args:
        text: whose white space is not kept, its line breaks between sentences excepted.
        rate: the share that is kept, in (0, 1]; words that may not be dropped count too.
        values: see `MeaningValues` and `TokenClassifier`.
        forced: words that stay wherever they stand, whatever their case.
        keeps_digits: whether words with digits, and citations like [3], stay.
        drops_repeats: whether a word that would follow itself goes, as LLMLingua-2's drop_consecutive.

    Raises:
        RequestError: the rate is not in (0, 1].
    """
    if not 0 < rate <= 1:
        raise RequestError(f"The rate is {rate!r}; it is a share in (0, 1].", param="rate")
    stays = {word.lower() for word in forced}
    said = []
    place = 0
    for sentence in sentences(text):
        said.append("\n" if "\n" in text[place : sentence.start] else " ")
        place = sentence.end
        found = sentence.text.split()
        is_kept = [
            word.strip(".,;:!?\"'()").lower() in stays or (keeps_digits and bool(_KEPT.search(word))) for word in found
        ]
        room = max(0, ceil(rate * len(found)) - sum(is_kept))
        worth = values.values(found)
        for row in sorted((row for row, kept in enumerate(is_kept) if not kept), key=lambda row: -worth[row])[:room]:
            is_kept[row] = True
        kept = [word for word, stays_here in zip(found, is_kept, strict=True) if stays_here]
        if drops_repeats:
            kept = [word for row, word in enumerate(kept) if row == 0 or word.lower() != kept[row - 1].lower()]
        said.append(" ".join(kept))
    return "".join(said).strip()


class MeaningValues:
    """A word matters as much as its removal moves the text's vector.

    The words are removed in rounds, those that move it least first, so that of two words which say the same one stays.

    Source: TCRA-LLM's semantic compression (Liu et al. 2023, arXiv:2310.15556, section 3.2), a tenth of the words at
    a time where it removes one.

    Args:
        embedder: the static one does about 20,000 words a second, MiniLM a thousandth of it.
    """

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder

    def values(self, words: Sequence[str]) -> list[float]:
        """The round in which each word goes, from 0; within a round by how far it moves the vector."""
        import numpy as np

        left = list(range(len(words)))
        found = [0.0] * len(words)
        whole: NDArray[float32] = self._embedder.embed([" ".join(words)])[0]
        number = 0
        while left:
            without = [" ".join(words[row] for row in left if row != gone) for gone in left]
            vectors: NDArray[float32] = self._embedder.embed(without)
            moved = 1 - vectors @ whole
            order = np.argsort(moved, kind="stable").tolist()
            goes = order[: max(1, int(_ROUND * len(words)))]
            for place in goes:
                found[left[place]] = number + float(min(1.0, max(0.0, moved[place]))) / 2
            left = [row for place, row in enumerate(left) if place not in set(goes)]
            number += 1
        return found


class TokenClassifier:
    """A word matters as much as a token classifier such as LLMLingua-2's says; a word's value is its tokens' mean.

    Source: Pan et al. 2024, arXiv:2403.12968: a bidirectional encoder, trained on what GPT-4 left of meeting
    transcripts, gives the probability that a token is kept.

    Args:
        name: a folder, or a model of the hub that is on this machine or may be fetched, such as
            "microsoft/llmlingua-2-bert-base-multilingual-cased-meetingbank".
        device: as torch names it; None: torch's choice.

    Raises:
        ConfigError: transformers is not installed, or there are no such weights.
    """

    def __init__(self, name: str, *, device: str | None = None) -> None:
        try:
            from transformers import AutoModelForTokenClassification, AutoTokenizer
        except ImportError as exc:
            raise ConfigError(
                "A token classifier needs transformers. Install torch==2.13.0 first, then: "
                "pip install 'nearfar[minilm]'"
            ) from exc
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(name)
            self._model: Any = AutoModelForTokenClassification.from_pretrained(name)
        except (OSError, ValueError) as exc:
            raise ConfigError(
                f"There are no weights of a token classifier {name!r}; give a folder that has them."
            ) from exc
        if device is not None:
            self._model.to(device)
        self._model.eval()

    def values(self, words: Sequence[str]) -> list[float]:
        """The mean probability of each word's tokens to be kept: of the model's last class, as LLMLingua-2 has it."""
        import torch

        if not words:
            return []
        most = min(512, int(getattr(self._model.config, "max_position_embeddings", 512)) - 2)
        totals, counts = [0.0] * len(words), [0] * len(words)
        begin = 0
        while begin < len(words):
            part = list(words[begin : begin + most // 2])
            encoded = self._tokenizer(
                part, is_split_into_words=True, truncation=True, max_length=most, return_tensors="pt"
            )
            with torch.no_grad():
                said = self._model(**{key: value.to(self._model.device) for key, value in encoded.items()})
            kept = said.logits.softmax(-1)[0, :, -1].tolist()
            for owner, share in zip(encoded.word_ids(0), kept, strict=True):
                if owner is not None:
                    totals[begin + owner] += share
                    counts[begin + owner] += 1
            begin += len(part)
        return [total / count if count else 0.0 for total, count in zip(totals, counts, strict=True)]
