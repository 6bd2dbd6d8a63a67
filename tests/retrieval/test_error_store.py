"""Past mistakes in the store, by the likeness of their questions."""

from dataclasses import replace

import pytest

from nearfar.errors import ConfigError
from nearfar.retrieval.embedders import StaticEmbedder
from nearfar.retrieval.error_store import ERROR_CASES, SqliteErrorCases
from nearfar.store import Store
from nearfar.types import ErrorCase

pytest.importorskip("wordllama", reason="needs nearfar[retrieval]")

LINK = ErrorCase("Interface ge-0/0/1 changed state to down", "security", "link", "read as an attack", "slm")
FAN = ErrorCase("Fan interface failed to spin up", "power", "hardware", "", "slm")


@pytest.fixture
def store(tmp_path):
    """An empty store."""
    store = Store(tmp_path / "nearfar.db", [ERROR_CASES])
    yield store
    store.close()


@pytest.fixture
def cases(store):
    """A collection in it."""
    return SqliteErrorCases(store, StaticEmbedder(), "logs")


async def test_likest_mistake_comes_first(cases):
    """With its cosine, and no more than were asked for."""
    await cases.add([FAN, LINK])

    found = await cases.similar("Interface xe-1/0/0 changed state to down", 2)

    assert [case for case, _ in found] == [LINK, FAN]
    assert 1 >= found[0][1] > found[1][1] > 0
    assert len(await cases.similar("Interface", 1)) == 1
    assert not await cases.similar("Interface", 0)


async def test_known_mistake_is_replaced(cases):
    """The same question, mistake and model are one case."""
    await cases.add([LINK])
    assert await cases.similar(LINK.question, 5)
    await cases.add([replace(LINK, reason="a better one")])

    assert [case.reason for case, _ in await cases.similar(LINK.question, 5)] == ["a better one"]


async def test_collections_are_apart_and_shared_by_processes(cases, store):
    """Another object sees the same collection, and none sees another's."""
    twin, other = SqliteErrorCases(store, StaticEmbedder(), "logs"), SqliteErrorCases(store, StaticEmbedder(), "other")
    await cases.add([LINK])

    assert [case for case, _ in await twin.similar(LINK.question, 5)] == [LINK]
    assert not await other.similar(LINK.question, 5)
    assert await twin.clear() == 1
    assert not await cases.similar(LINK.question, 5)


async def test_nothing_to_add_and_odd_texts_are_fine(cases):
    """An empty list writes nothing, and lone surrogates do not stop a write."""
    await cases.add([])
    await cases.add([replace(LINK, question="\ud800 down")])

    assert len(await cases.similar("down", 5)) == 1


def test_unprintable_collection_is_refused(store):
    """With its name."""
    with pytest.raises(ConfigError, match=r"'' is no name"):
        SqliteErrorCases(store, StaticEmbedder(), "")
