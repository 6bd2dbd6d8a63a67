"""What models cost is looked up, sourced, and never guessed."""

import tomllib
from datetime import date
from pathlib import Path

import pytest

import nearfar.models.catalogue
from nearfar.models.catalogue import entries, find
from nearfar.types import Price, Usage

KEYS = {
    "prompt_usd_per_mtok",
    "completion_usd_per_mtok",
    "cached_prompt_usd_per_mtok",
    "context_window",
    "max_output_tokens",
    "supports",
    "source",
    "as_of",
}


@pytest.mark.parametrize("facts", entries(), ids=lambda facts: f"{facts.provider}/{facts.name}")
def test_every_entry_is_dated_sourced_and_sane(facts):
    """Prices above nothing, cached prompts never dearer, and a provider's page to check it by."""
    assert facts.price.prompt_usd_per_mtok > 0
    assert facts.price.completion_usd_per_mtok >= facts.price.prompt_usd_per_mtok
    assert (facts.price.cached_prompt_usd_per_mtok or 0) <= facts.price.prompt_usd_per_mtok
    assert facts.context_window is None or facts.context_window >= 1000
    assert facts.max_output_tokens is None or facts.max_output_tokens >= 1000
    assert facts.supports <= {"tools", "json_schema", "image"}
    assert isinstance(facts.as_of, date)
    assert facts.source.startswith("https://")


def test_the_file_has_no_key_that_nobody_reads():
    """A misspelt key would be a figure lost."""
    path = Path(nearfar.models.catalogue.__file__).with_name("catalogue.toml")
    document = tomllib.loads(path.read_text(encoding="utf-8"))

    assert isinstance(document.pop("as_of"), date)
    for provider in document.values():
        assert set(provider) <= {"hosts", "prefixes", "has_shared_names", "models"}
        for entry in provider["models"].values():
            assert set(entry) <= KEYS


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("gpt-4o", "gpt-4o"),
        ("gpt-4o-2024-08-06", "gpt-4o"),
        ("gpt-4o-2024-05-13", "gpt-4o-2024-05-13"),
        ("gpt-4o-mini-2024-07-18", "gpt-4o-mini"),
        ("openai/gpt-4o", "gpt-4o"),
        ("openai/gpt-4.1-2025-04-14", "gpt-4.1"),
        ("claude-haiku-4-5-20251001", "claude-haiku-4-5"),
        ("claude-haiku-4-5@20251001", "claude-haiku-4-5"),
        ("claude-sonnet-4-6-latest", "claude-sonnet-4-6"),
        ("gemini/gemini-2.5-pro", "gemini-2.5-pro"),
        ("together/openai/gpt-oss-120b", "openai/gpt-oss-120b"),
        ("together_ai/zai-org/GLM-5.3", "zai-org/GLM-5.3"),
    ],
)
def test_a_name_finds_its_family(asked, found):
    """The exact name first, then without its date; with the provider before it or not."""
    assert find(asked).name == found


@pytest.mark.parametrize(
    "name", ["gpt-4o-turbo", "gpt", "", "/", "openai/", "nobody/gpt-4o", "anthropic/gpt-4o", "my-finetune", "GPT-4O"]
)
def test_an_unknown_name_is_unknown(name):
    """No nearest match: a wrong price is worse than none."""
    assert find(name) is None


def test_open_weights_have_a_price_only_where_it_is_charged():
    """The same name served from one's own machine costs nothing like it."""
    name = "openai/gpt-oss-120b"

    assert find(name) is None
    assert find(name, url="http://127.0.0.1:8000/v1") is None
    assert find(name, url="https://api.together.xyz/v1").provider == "together"


def test_the_endpoint_decides_whose_price_counts():
    """A provider's name at another's endpoint is not that provider's model."""
    assert find("gpt-4o", url="https://api.openai.com/v1").name == "gpt-4o"
    assert find("openai/gpt-4o-2024-08-06", url="https://api.openai.com/v1/").name == "gpt-4o"
    assert find("gpt-4o", url="http://localhost:8000/v1") is None
    assert find("gpt-4o", url="https://api.openai.com.example.org/v1") is None
    assert find("gpt-4o", url="not a url") is None


def test_published_prices_come_out_as_published():
    """Spot checks against the providers' pages: gpt-4o at $2.50 and $10, claude-haiku-4-5 at $1 and $5."""
    assert find("gpt-4o").price == Price(2.5, 10.0, 1.25)
    assert find("claude-haiku-4-5").price == Price(1.0, 5.0, 0.1)
    assert find("gpt-4o").price.cost_usd(Usage(1_000_000, 100_000)) == pytest.approx(3.5)
