"""A memory that looks at the sources of what it recalls."""

from dataclasses import replace

import pytest
from contracts.memory import ANN, FRANCE

from nearfar.retrieval.embedders import StaticEmbedder
from nearfar.retrieval.memory import MEMORY, SqliteMemory
from nearfar.retrieval.verified import VerifiedMemory
from nearfar.store import Store

pytest.importorskip("wordllama", reason="needs nearfar[retrieval]")

GROUNDED = replace(FRANCE, sources={"atlas": "v1", "guide": "v7"})


@pytest.fixture
def versions():
    """What holds at present."""
    return {"atlas": "v1", "guide": "v7"}


@pytest.fixture
def inner(tmp_path):
    """A memory in a store."""
    store = Store(tmp_path / "nearfar.db", [MEMORY])
    yield SqliteMemory(store, StaticEmbedder())
    store.close()


@pytest.fixture
def memory(inner, versions):
    """The same, verified."""
    return VerifiedMemory(inner, lambda sources: {s: versions[s] for s in sources if s in versions})


async def test_present_versions_are_recalled(memory):
    """As long as nothing changes."""
    await memory.remember(GROUNDED, ANN)

    found = await memory.recall(FRANCE.question, ANN)

    assert found is not None
    assert found.memo == GROUNDED


@pytest.mark.parametrize("present", ["v2", None])
async def test_changed_source_is_noticed_on_recall(memory, inner, versions, present):
    """The memo is gone for good, even if the old version comes back under another memory."""
    await memory.remember(GROUNDED, ANN)
    await memory.remember(replace(FRANCE, question="Who wrote Emma?"), ANN)
    if present is None:
        del versions["atlas"]
    else:
        versions["atlas"] = present

    assert await memory.recall(FRANCE.question, ANN) is None
    assert await inner.recall(FRANCE.question, ANN) is None
    assert await memory.recall("Who wrote Emma?", ANN) is not None


async def test_answer_from_an_outdated_source_is_not_kept(memory, versions):
    """It changed while the answer was made."""
    versions["guide"] = "v8"

    await memory.remember(GROUNDED, ANN)

    assert await memory.recall(FRANCE.question, ANN) is None


async def test_answer_from_the_new_version_is_kept(memory, versions):
    """Asked anew, the question has an answer again."""
    await memory.remember(GROUNDED, ANN)
    versions["atlas"] = "v2"
    assert await memory.recall(FRANCE.question, ANN) is None

    await memory.remember(replace(GROUNDED, sources={"atlas": "v2"}), ANN)

    assert await memory.recall(FRANCE.question, ANN) is not None
