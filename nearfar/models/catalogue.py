"""What well-known models cost, take and give, read from `catalogue.toml` with the date and source of every figure.

A price belongs to a model *at a provider*: the same open weights cost something else elsewhere, and nothing on one's
own machine. What is not in the catalogue is unknown, which is not zero.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nearfar.types import Price

#: A dated or floating version after a family's name: gpt-4o-2024-08-06, claude-haiku-4-5-20251001, …-latest.
_VERSION = re.compile(r"[-@](\d{4}-\d{2}-\d{2}|\d{8}|latest)$")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """One model at one provider.

    `context_window` is where the price holds: some providers charge more for longer prompts, and the catalogue ends
    the window there. A provider that may write any prompt to its cache unasked, at a higher price, is listed at that.
    """

    name: str
    provider: str
    price: Price
    context_window: int | None  # tokens; None: unknown
    max_output_tokens: int | None  # None: unknown
    supports: frozenset[str]  # of tools, json_schema, image; what is absent is not known
    as_of: date
    source: str  # URL


@dataclass(frozen=True, slots=True)
class _Provider:
    name: str
    hosts: frozenset[str]
    prefixes: tuple[str, ...]
    has_shared_names: bool  # names that others use too, at other prices
    models: Mapping[str, ModelFacts]


def find(model: str, *, url: str | None = None) -> ModelFacts | None:
    """What is known of `model`; None: nothing.

    Args:
        model: as its provider names it, or as "provider/name"; a dated version that is not listed is its family.
        url: the endpoint that serves it. With it, only the provider of that host counts, so that a model served from
            elsewhere is not taken for the provider's. Without it, only names that no two providers share.
    """
    if url is not None:
        host = urlsplit(url).hostname
        providers = [each for each in _providers() if host in each.hosts]
        names = [model, *(model.removeprefix(f"{prefix}/") for each in providers for prefix in each.prefixes)]
        return _first(providers, names)
    prefix, _, rest = model.partition("/")
    named = [each for each in _providers() if rest and prefix in each.prefixes]
    unshared = [each for each in _providers() if not each.has_shared_names]
    return _first(named, [rest]) or _first(unshared, [model])


def entries() -> tuple[ModelFacts, ...]:
    """The whole catalogue, by provider."""
    return tuple(facts for provider in _providers() for facts in provider.models.values())


def _first(providers: list[_Provider], names: list[str]) -> ModelFacts | None:
    for name in (*names, *(_VERSION.sub("", name) for name in names)):
        for provider in providers:
            if facts := provider.models.get(name):
                return facts
    return None


@cache
def _providers() -> tuple[_Provider, ...]:
    document = tomllib.loads(Path(__file__).with_name("catalogue.toml").read_text(encoding="utf-8"))
    as_of = document.pop("as_of")
    return tuple(_provider(name, table, as_of) for name, table in document.items())


def _provider(name: str, table: Mapping[str, Any], as_of: date) -> _Provider:
    return _Provider(
        name,
        frozenset(table["hosts"]),
        tuple(table["prefixes"]),
        table.get("has_shared_names", False),
        {model: _facts(model, name, entry, as_of) for model, entry in table["models"].items()},
    )


def _facts(name: str, provider: str, entry: Mapping[str, Any], as_of: date) -> ModelFacts:
    price = Price(
        entry["prompt_usd_per_mtok"], entry["completion_usd_per_mtok"], entry.get("cached_prompt_usd_per_mtok")
    )
    return ModelFacts(
        name,
        provider,
        price,
        entry.get("context_window"),
        entry.get("max_output_tokens"),
        frozenset(entry["supports"]),
        entry.get("as_of", as_of),
        entry["source"],
    )
