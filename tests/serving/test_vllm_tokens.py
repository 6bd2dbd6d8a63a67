"""The distribution over workers' labels is the same on llama.cpp and on the real vLLM; skipped where there is none.

Make it with `make vllm`. Both have the same weights: the GGUF, and its dequantized form.
"""

import pytest
from support.checkpoint import NEEDS_VLLM, VLLM_PYTHON, smollm2_checkpoint
from support.weights import smollm2_path

from nearfar.config import Settings
from nearfar.types import Query
from nearfar.wiring import build

pytestmark = NEEDS_VLLM

CONFIG = """
[data]
dir = "{home}"

[engines]
python = "{python}"

[models.small]
kind = "llama.cpp"
path = "{gguf}"

[models.served]
kind = "vllm"
model = "{model}"
dtype = "float32"
context_window = 1024
threads = 2
memory_gib = 3.0
"""
ROUTER = """
[routers.by_{name}]
model = "{name}"
general = "other"
[routers.by_{name}.workers.other]
model = "small"
description = "small talk, and everything else"
[routers.by_{name}.workers.math]
model = "small"
description = "sums, word problems and proofs"
[routers.by_{name}.workers.code]
model = "small"
description = "programs in Python"
[routers.by_{name}.workers.cooking]
model = "small"
description = "recipes, dishes and kitchens"
"""
QUERIES = ("What is 17 times 23?", "Write a function that adds two numbers.", "How do I bake bread?", "Hello there!")


@pytest.fixture
async def router(tmp_path):
    """Two routers of the same workers, which differ in who chooses; the engine is stopped at the end."""
    path = tmp_path / "nearfar.toml"
    path.write_text(
        CONFIG.format(home=tmp_path / "data", python=VLLM_PYTHON, gguf=smollm2_path(), model=smollm2_checkpoint())
        + ROUTER.format(name="small")
        + ROUTER.format(name="served")
    )
    wired = build(Settings.load(path))
    yield wired.router
    await wired.aclose()


async def test_workers_are_as_likely_on_vllm_as_on_llama_cpp(router):
    """Every worker's label is shown by both, in one token, and the calibrated probabilities differ by little."""
    gaps = []
    for text in QUERIES:
        ours, theirs = [(await router.preview(Query(text, model=name))).routing for name in ("by_small", "by_served")]
        assert set(ours.probabilities) == set(theirs.probabilities) == {"other", "math", "code", "cooking"}
        assert sum(theirs.probabilities.values()) == pytest.approx(1.0)
        assert theirs.costs[0].usage.completion_tokens == 1
        gaps.append(max(abs(p - theirs.probabilities[worker]) for worker, p in ours.probabilities.items()))

    assert max(gaps) < 0.05
