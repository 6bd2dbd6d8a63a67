"""What every `Memory` keeps to: subclass `MemoryContract`, and build one in `make_memory`."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from nearfar.retrieval.matching import MatchPolicy
from nearfar.types import Memo, Scope

FRANCE = Memo("What is the capital of France?", "Paris", "scripted", decision_id="d1")
ANN = Scope("ann", "auto/p@1")


class Clock:
    """Unix time that tests move."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class MemoryContract:
    """The suite. `make_memory` takes `policy`, `ttl_s`, `max_memos` and `clock`."""

    @pytest.fixture
    def make_memory(self):
        """Builds memories over one shared and empty store."""
        raise NotImplementedError

    @pytest.fixture
    def fuzzy(self) -> MatchPolicy:
        """Takes questions for the same that are much alike."""
        return MatchPolicy(0.5)

    async def test_very_same_question_is_recalled(self, make_memory):
        """The answer comes back whole, with who gave it and why."""
        memory = make_memory()

        await memory.remember(FRANCE, ANN)
        found = await memory.recall(" What is the capital of France?\n", ANN)

        assert found is not None
        assert found.memo == FRANCE
        assert (found.score, found.is_calibrated) == (1.0, False)

    async def test_other_wording_needs_a_policy(self, make_memory, fuzzy):
        """Without a fitted threshold nothing but the very same question is recalled."""
        strict, lenient = make_memory(), make_memory(policy=fuzzy)
        await strict.remember(FRANCE, ANN)

        assert await strict.recall("what's the capital of france", ANN) is None
        found = await lenient.recall("what's the capital of france", ANN)
        assert found is not None
        assert found.memo == FRANCE
        assert found.threshold == 0.5
        assert found.is_calibrated

    @pytest.mark.parametrize(
        "question",
        [
            "What is the capital of Germany?",
            "What is not the capital of France?",
            "What is the population of France?",
            "How do I bake bread?",
            "",
            "  ",
            "?" * 100_000,
            "\ud800",
        ],
    )
    async def test_another_question_is_not_recalled(self, make_memory, fuzzy, question):
        """Neither what looks alike nor what is no question at all."""
        memory = make_memory(policy=fuzzy)
        await memory.remember(FRANCE, ANN)

        assert await memory.recall(question, ANN) is None

    @pytest.mark.parametrize(
        "other", [Scope("bob", ANN.policy), replace(ANN, policy="auto/p@2"), replace(ANN, privacy="near"), Scope()]
    )
    async def test_nothing_crosses_a_scope(self, make_memory, fuzzy, other):
        """Not to another user, not under another policy, and not across privacy labels, in neither direction."""
        memory = make_memory(policy=fuzzy)
        await memory.remember(FRANCE, ANN)
        await memory.remember(replace(FRANCE, question="Who wrote Emma?", answer="Austen"), other)

        for question in ("What is the capital of France?", "what's the capital of france"):
            assert await memory.recall(question, other) is None
            assert await memory.recall(question, ANN) is not None
        assert await memory.recall("Who wrote Emma?", ANN) is None
        for scope, answer in ((ANN, "Paris"), (other, "Austen")):
            found = await memory.similar("Who wrote, in the capital of France, Emma?", scope, 5)
            assert [memo.answer for memo, _ in found] == [answer]

    async def test_users_that_look_alike_are_two(self, make_memory):
        """Whatever the characters of a user's name, another name is another user."""
        memory = make_memory()
        await memory.remember(FRANCE, Scope("\ud800"))

        for user in ("?", "\\ud800", "\\\\ud800", "\ufffd", ""):
            assert await memory.recall(FRANCE.question, Scope(user)) is None
        assert await memory.recall(FRANCE.question, Scope("\ud800")) is not None

    async def test_later_answer_takes_the_earlier_ones_place(self, make_memory):
        """One memo to a question."""
        memory = make_memory()
        await memory.remember(FRANCE, ANN)

        await memory.remember(replace(FRANCE, answer="Paris, on the Seine"), ANN)

        found = await memory.recall(FRANCE.question, ANN)
        assert found is not None
        assert found.memo.answer == "Paris, on the Seine"
        assert (await memory.stats()).memos == 1

    async def test_empty_answer_is_not_kept(self, make_memory):
        """There is nothing to recall in it."""
        memory = make_memory()

        await memory.remember(replace(FRANCE, answer=" "), ANN)

        assert await memory.recall(FRANCE.question, ANN) is None

    async def test_memos_expire(self, make_memory, fuzzy):
        """After the time to live, neither the very same question nor a like one is answered."""
        clock = Clock()
        memory = make_memory(policy=fuzzy, ttl_s=60, clock=clock)
        await memory.remember(FRANCE, ANN)

        clock.now += 59
        assert await memory.recall("what's the capital of france", ANN) is not None
        clock.now += 2
        assert await memory.recall("what's the capital of france", ANN) is None
        assert await memory.recall(FRANCE.question, ANN) is None
        assert (await memory.stats()).memos == 0

    async def test_changed_source_takes_its_memos_along(self, make_memory, fuzzy):
        """What rests on another version of the source is gone, and the rest stays."""
        memory = make_memory(policy=fuzzy)
        grounded = replace(FRANCE, sources={"atlas.pdf": "v1", "other.txt": "v7"})
        kept = replace(FRANCE, question="Who wrote Emma?", answer="Austen", sources={"emma.txt": "v1"})
        for memo in (grounded, kept):
            await memory.remember(memo, ANN)

        assert await memory.source_changed("atlas.pdf", "v1") == 0
        assert await memory.recall(FRANCE.question, ANN) is not None
        assert await memory.source_changed("atlas.pdf", "v2") == 1

        assert await memory.recall(FRANCE.question, ANN) is None
        assert await memory.recall("what's the capital of france", ANN) is None
        assert await memory.recall("Who wrote Emma?", ANN) is not None

    @pytest.mark.parametrize("version", ["v2", None])
    async def test_answer_from_an_outdated_source_is_not_kept(self, make_memory, version):
        """An answer that was on its way while the source changed, or went, comes too late."""
        memory = make_memory()
        await memory.source_changed("atlas.pdf", version)

        await memory.remember(replace(FRANCE, sources={"atlas.pdf": "v1"}), ANN)

        assert await memory.recall(FRANCE.question, ANN) is None

    async def test_forgetting_is_by_user_and_by_question(self, make_memory, fuzzy):
        """Whoever asks to be forgotten is, and nobody else."""
        memory, bob = make_memory(policy=fuzzy), replace(ANN, user="bob")
        emma = replace(FRANCE, question="Who wrote Emma?", answer="Austen")
        for memo, scope in ((FRANCE, ANN), (emma, ANN), (FRANCE, bob)):
            await memory.remember(memo, scope)

        assert await memory.forget(user="ann", question=FRANCE.question) == 1
        assert await memory.recall("what's the capital of france", ANN) is None
        assert await memory.recall("Who wrote Emma?", ANN) is not None
        assert await memory.forget(user="ann") == 1
        assert await memory.recall(FRANCE.question, bob) is not None
        assert await memory.forget() == 1
        assert (await memory.stats()).memos == 0

    async def test_two_processes_see_each_others_changes(self, make_memory, fuzzy):
        """Two memories over one store agree, whichever of them wrote."""
        one, two = make_memory(policy=fuzzy), make_memory(policy=fuzzy)
        assert await two.recall("what's the capital of france", ANN) is None

        await one.remember(FRANCE, ANN)
        assert await two.recall("what's the capital of france", ANN) is not None
        await one.remember(replace(FRANCE, answer="Paris!"), ANN)
        found = await two.recall("what's the capital of france", ANN)
        assert found is not None
        assert found.memo.answer == "Paris!"
        await one.forget()
        assert await two.recall("what's the capital of france", ANN) is None

    async def test_oldest_go_where_there_is_no_room(self, make_memory):
        """Beyond the limit the memory does not grow for long."""
        clock = Clock()
        memory = make_memory(max_memos=3, clock=clock)
        for number in range(110):
            clock.now += 1
            await memory.remember(replace(FRANCE, question=f"What is {number}?"), ANN)

        assert (await memory.stats()).memos <= 3 + 100
        assert await memory.recall("What is 0?", ANN) is None
        assert await memory.recall("What is 109?", ANN) is not None

    async def test_many_at_once(self, make_memory, fuzzy):
        """Tasks that read and write together each get their own."""
        memory = make_memory(policy=fuzzy)

        async def use(number: int) -> str:
            scope = Scope(f"user {number}")
            await memory.remember(replace(FRANCE, answer=f"answer {number}"), scope)
            found = await memory.recall("what's the capital of france", scope)
            assert found is not None
            return found.memo.answer

        assert await asyncio.gather(*map(use, range(20))) == [f"answer {number}" for number in range(20)]
