"""The embedded model, on the real weights: the contract of every chat model, and what xllamacpp does in silence."""

import asyncio
from collections.abc import Iterator

import pytest
from contracts.chat_model import ChatModelContract
from support.weights import smollm2_path

from nearfar.models.llama_cpp import LlamaCppModel


class Shared:
    """One loaded model for the whole module; a new one once a test has closed it."""

    def __init__(self) -> None:
        self.model: LlamaCppModel | None = None

    def open(self) -> LlamaCppModel:
        if self.model is None or self.model.unavailable():
            self.model = LlamaCppModel(smollm2_path(), name="smollm2", context_window=1024)
        return self.model


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    shared = Shared()
    yield shared
    if shared.model:
        asyncio.run(shared.model.aclose())


@pytest.fixture
def model(shared: Shared) -> LlamaCppModel:
    return shared.open()


class TestLlamaCppModel(ChatModelContract):
    """Every clause, live."""

    @pytest.fixture
    async def model(self, shared: Shared) -> LlamaCppModel:
        return shared.open()
