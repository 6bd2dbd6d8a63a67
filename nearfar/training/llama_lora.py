"""A Llama with a LoRA adapter in its upper layers, cut in two below them: what every recipe here trains."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from nearfar.errors import ConfigError
from nearfar.types import Message

from .adapters import PROJECTIONS, write_gguf

_LOWER_BATCH = 16


class AdapterShape(Protocol):
    """How large an adapter is; `layers` counts from the top."""

    @property
    def rank(self) -> int: ...

    @property
    def alpha(self) -> float: ...

    @property
    def layers(self) -> int: ...


class LoraLlama:
    """A Llama with an adapter in its upper layers; the states below them need computing only once."""

    def __init__(self, model: Any, tokenizer: Any, first: int, shape: AdapterShape, device: str) -> None:
        self._torch = load_torch()
        self._model = model
        self._decoder = model.get_base_model().model
        self._head = model.get_base_model().lm_head
        self._tokenizer = tokenizer
        self._first = first  # layer with an adapter
        self._shape = shape
        self._device = device

    @classmethod
    def load(cls, base: Path, shape: AdapterShape, *, device: str = "cpu") -> LoraLlama:
        """The GGUF's weights in bfloat16, with a fresh adapter in single precision.

        Raises:
            ConfigError: transformers or peft are not installed, the device is not there, it is no Llama, or it has
                fewer layers.
        """
        torch = load_torch()
        try:
            from peft import LoraConfig, get_peft_model
            from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
        except ImportError as exc:
            raise ConfigError(f"Training needs {exc.name}. Install it: pip install 'nearfar[train]'") from exc
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ConfigError(f"There is no {device!r} device here; train on 'cpu'.")
        tokenizer = AutoTokenizer.from_pretrained(base.parent, gguf_file=base.name)
        model = AutoModelForCausalLM.from_pretrained(
            base.parent,
            gguf_file=base.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        if model.config.model_type != "llama":
            raise ConfigError(f"{str(base)!r} is a {model.config.model_type!r}; only Llamas can be trained here.")
        depth = model.config.num_hidden_layers
        if not 1 <= shape.layers <= depth:
            raise ConfigError(f"layers is {shape.layers}; {str(base)!r} has 1 to {depth} to train.")
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=shape.rank,
            lora_alpha=shape.alpha,
            target_modules=list(PROJECTIONS),
            layers_to_transform=list(range(depth - shape.layers, depth)),
        )
        return cls(get_peft_model(model, config).eval().to(device), tokenizer, depth - shape.layers, shape, device)

    # --- texts and tokens --------------------------------------------------------------------------------------------

    def tokens(self, messages: Sequence[Message]) -> list[int]:
        """The prompt's token ids, up to where the answer begins."""
        return self._ids(self._prompt(messages))

    def label_id(self, label: str, messages: Sequence[Message]) -> int:
        """The token that says `label` at the beginning of an answer.

        Raises:
            ConfigError: it takes several.
        """
        text = self._prompt(messages)
        before, after = self._ids(text), self._ids(text + label)
        if len(after) != len(before) + 1 or after[:-1] != before:
            raise ConfigError(f"The label {label!r} is not one token of this model's tokenizer; choose another.")
        return int(after[-1])

    def answered(self, messages: Sequence[Message], places: Sequence[int]) -> tuple[list[int], list[tuple[int, int]]]:
        """The token ids of a conversation up to the last of the answers at `places`, and where each answer is.

        An answer's span ends after the token that ends its turn.

        Raises:
            ConfigError: the model's chat template shows earlier turns otherwise once later ones are there.
        """
        ids: list[int] = []
        spans, so_far = [], ""
        for place in places:
            prompt = self._prompt(messages[:place])
            if not prompt.startswith(so_far):
                raise ConfigError("This model's chat template rewrites earlier turns, so that no role can be trained.")
            ids += self._ids(prompt[len(so_far) :])
            answer = messages[place].text + self._tokenizer.eos_token
            said = self._ids(answer)
            spans.append((len(ids), len(ids) + len(said)))
            ids += said
            so_far = prompt + answer
        return ids, spans

    def _prompt(self, messages: Sequence[Message]) -> str:
        turns = [{"role": message.role, "content": message.text} for message in messages]
        return str(self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    # --- the two halves ----------------------------------------------------------------------------------------------

    def lower(self, prompts: Sequence[Sequence[int]]) -> list[Any]:
        """The states below the adapter, of shape (tokens, width) each, in main memory."""
        found: list[Any] = [None] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
        pad = self._torch.nn.utils.rnn.pad_sequence
        for start in range(0, len(order), _LOWER_BATCH):
            batch = order[start : start + _LOWER_BATCH]
            tokens = pad([self._torch.tensor(prompts[at]) for at in batch], batch_first=True).to(self._device)
            with self._torch.no_grad():
                states = self._through(self._decoder.embed_tokens(tokens), self._decoder.layers[: self._first])
            for row, at in enumerate(batch):
                found[at] = states[row, : len(prompts[at])].to("cpu", copy=True)
        return found

    def upper(self, lower: Sequence[Any]) -> Any:
        """Logits of the token after each prompt, of shape (prompts, vocabulary)."""
        return self._logits(lower, [(row, len(each) - 1) for row, each in enumerate(lower)])

    def answer_loss(
        self, lower: Sequence[Any], tokens: Sequence[Sequence[int]], spans: Sequence[Sequence[tuple[int, int]]]
    ) -> Any:
        """The mean negative log-probability, in nats, of the tokens inside of the spans.

        Args:
            lower: the states below the adapter, of shape (tokens, width) each.
            tokens: each text's token ids.
            spans: of each text, first place and the place after the last; none begins at 0.
        """
        said = [(row, at) for row, each in enumerate(spans) for start, end in each for at in range(start, end)]
        logits = self._logits(lower, [(row, at - 1) for row, at in said])
        wanted = self._torch.tensor([tokens[row][at] for row, at in said], device=self._device)
        return self._torch.nn.functional.cross_entropy(logits, wanted)

    def _logits(self, lower: Sequence[Any], places: Sequence[tuple[int, int]]) -> Any:
        """Logits of the tokens after the places (text, token), of shape (places, vocabulary)."""
        from peft.helpers import disable_input_dtype_casting

        torch = self._torch
        padded = torch.nn.utils.rnn.pad_sequence(list(lower), batch_first=True)  # causal: what follows is unseen
        # peft would widen every input for autocast to narrow it again.
        with (
            disable_input_dtype_casting(self._model),
            torch.autocast(self._device.partition(":")[0], dtype=torch.bfloat16),
        ):
            states = self._through(padded.to(self._device), self._decoder.layers[self._first :])
            rows, ends = ([place[i] for place in places] for i in (0, 1))
            wanted = self._decoder.norm(states[rows, ends])
        return wanted.float() @ self._head.weight.float().T

    def _through(self, states: Any, layers: Any) -> Any:
        positions = self._torch.arange(states.shape[1], device=self._device)[None]
        rotary = self._decoder.rotary_emb(states, position_ids=positions)
        for layer in layers:
            states = layer(states, attention_mask=None, position_ids=positions, position_embeddings=rotary)
        return states

    # --- the adapter -------------------------------------------------------------------------------------------------

    def trainable(self) -> list[Any]:
        """The adapter's matrices."""
        return [each for each in self._model.parameters() if each.requires_grad]

    def parameters(self) -> dict[str, Any]:
        """The adapter's matrices by peft's names."""
        return {name: each.detach() for name, each in self._model.named_parameters() if each.requires_grad}

    def restore(self, parameters: dict[str, Any]) -> None:
        """Puts matrices of `parameters` back."""
        with self._torch.no_grad():
            for name, each in self._model.named_parameters():
                if each.requires_grad:
                    each.copy_(parameters[name])

    def save(self, out: Path, *, name: str) -> int:
        """Writes `adapter.gguf`, which calls itself `name`, and the folder `peft`; the GGUF's size in bytes."""
        config = self._model.get_base_model().config
        self._model.save_pretrained(out / "peft")
        return write_gguf(
            self.parameters(),
            out / "adapter.gguf",
            alpha=self._shape.alpha,
            num_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            name=name,
        )


def batches(lengths: Sequence[int], size: int, seed: str) -> list[list[int]]:
    """Indices in random batches of similar lengths, so that little is computed for padding."""
    rng = random.Random(seed)  # noqa: S311 - an order, no secret
    order = sorted(range(len(lengths)), key=lambda at: lengths[at] + rng.uniform(-8, 8))
    found = [order[at : at + size] for at in range(0, len(order), size)]
    rng.shuffle(found)
    return found


def schedule(done: int, total: int, warmup: float) -> float:
    """The share of the learning rate: up in a line, then down to a tenth on a half cosine.

    Source: Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5, without restarts.
    """
    rising = max(1, round(total * warmup))
    if done < rising:
        return (done + 1) / rising
    return 0.1 + 0.9 * (1 + math.cos(math.pi * (done - rising) / max(1, total - rising))) / 2


def load_torch() -> Any:
    """The module.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import torch
    except ImportError as exc:
        raise ConfigError(
            "Training needs torch. Install it, then the rest: pip install torch==2.13.0 && pip install 'nearfar[train]'"
        ) from exc
    return torch
