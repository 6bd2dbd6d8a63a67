"""The recipe on the real weights: it learns, resumes, and llama.cpp reads the adapter as torch does.

Needs the [train] extra, which `make test` does not install.
"""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from support.weights import smollm2_path

from nearfar.errors import ConfigError, DataError
from nearfar.models.llama_cpp import LlamaCppModel
from nearfar.router.functional_tokens.chooser import FunctionalTokens
from nearfar.router.functional_tokens.distribution import distribution
from nearfar.router.functional_tokens.graph import Worker, WorkerGraph
from nearfar.router.functional_tokens.prompts import choice_prompt
from nearfar.training.functional_tokens import LabelledPrompt, Recipe, train

torch = pytest.importorskip("torch", reason="needs the [train] extra")
for _package in ("transformers", "peft", "gguf"):
    pytest.importorskip(_package, reason="needs the [train] extra")

GRAPH = WorkerGraph((Worker("code", "programs", "A"), Worker("math", "sums", "B")), "code")
RECIPE = Recipe(rank=4, alpha=8.0, layers=1, epochs=2, batch_size=2, learning_rate=1e-2)

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.timeout(600),
]


def examples(n: int = 16) -> list[LabelledPrompt]:
    """Requests to write functions, and sums, in turn."""
    texts = [(f"Write a function that returns {i}.", "A") for i in range(n // 2)]
    texts += [(f"What is {i} plus {i + 2}?", "B") for i in range(n // 2)]
    return [LabelledPrompt(choice_prompt(GRAPH.workers, text, "trained"), label) for text, label in texts]


async def test_an_adapter_is_trained_in_two_calls_and_read_by_llama_cpp(tmp_path: Path) -> None:
    """The loss falls over the passes; the second call goes on; torch's probabilities are llama.cpp's."""
    first = train(smollm2_path(), examples(), tmp_path, labels=["A", "B"], recipe=RECIPE, stop_after=1)
    done = train(
        smollm2_path(), examples(), tmp_path, labels=["A", "B"], recipe=RECIPE, validation=examples(4), stop_after=1
    )

    assert first.epochs == 1
    assert done.epochs == 2
    assert done.losses[0] == first.losses[0]
    assert done.losses[1] < done.losses[0] < math.log(49152)
    assert done.gguf_bytes == done.gguf.stat().st_size < 1_000_000
    assert (done.peft / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "states.pt").exists()

    base = LlamaCppModel(
        smollm2_path(), name="smollm2", context_window=512, parallel=1, loras={"router": done.gguf}, threads=1
    )
    router = FunctionalTokens(base.with_lora("router"), GRAPH, style="trained")
    texts = ["Write a function that adds.", "What is 7 plus 9?"]
    found = [distribution((await router.logprobs(text))[0]).probabilities["A"] for text in texts]
    plain = FunctionalTokens(base, GRAPH, style="trained")
    before = [distribution((await plain.logprobs(text))[0]).probabilities["A"] for text in texts]
    await base.aclose()

    expected = _probabilities_of_a(done.peft, texts)
    assert found == pytest.approx(expected, abs=0.05)  # four-bit weights with eight-bit states against bfloat16
    assert max(abs(a - b) for a, b in zip(found, before, strict=True)) > 0.1  # the adapter is on


def _probabilities_of_a(peft: Path, texts: list[str]) -> list[float]:
    """What transformers says with the adapter of the folder, among A and B."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    path = smollm2_path()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model = PeftModel.from_pretrained(model, peft).eval()
    found = []
    for text in texts:
        turns = [
            {"role": message.role, "content": message.text} for message in choice_prompt(GRAPH.workers, text, "trained")
        ]
        prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        labels = [tokenizer(label, add_special_tokens=False)["input_ids"][0] for label in ("A", "B")]
        with torch.no_grad():
            found.append(float(model(ids).logits[0, -1, labels].softmax(0)[0]))
    return found


def test_another_recipe_does_not_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    """It would be neither the one nor the other."""
    train(smollm2_path(), examples(8), tmp_path, labels=["A", "B"], recipe=RECIPE, stop_after=1)

    with pytest.raises(ConfigError, match="other data or settings"):
        train(smollm2_path(), examples(8), tmp_path, labels=["A", "B"], recipe=replace(RECIPE, seed=1))


def test_a_label_of_several_tokens_is_refused(tmp_path: Path) -> None:
    """By the tokenizer that will say it."""
    odd = [LabelledPrompt(each.messages, "Bureaucratically") for each in examples(4)]

    with pytest.raises(ConfigError, match="'Bureaucratically' is not one token"):
        train(smollm2_path(), odd, tmp_path, labels=["Bureaucratically"], recipe=RECIPE)


@pytest.mark.parametrize(("prompts", "message"), [([], "no labelled queries"), (examples(4), "label 'A' is no worker")])
def test_examples_that_cannot_be_trained_on_are_refused(
    tmp_path: Path, prompts: list[LabelledPrompt], message: str
) -> None:
    """None, or of a label that nobody has."""
    with pytest.raises(DataError, match=message):
        train(smollm2_path(), prompts, tmp_path, labels=["Z"], recipe=RECIPE)
