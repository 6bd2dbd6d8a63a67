"""Writes SmolLM2's GGUF as a folder of safetensors that vLLM serves, and LoRA adapters beside it.

    python -P tests/support/make_checkpoint.py GGUF FOLDER

Runs in the environment of vLLM, which has torch and transformers. `-P` keeps the modules beside it off the path.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

#: Adapters by name: each is random, and large enough that its greedy answers are its own.
ADAPTERS = {"red": 1, "green": 2, "blue": 3}
RANK = 8


def main(gguf: Path, folder: Path) -> None:
    """Writes the checkpoint, then the adapters; the folder is complete once `done` is in it."""
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name, seed in ADAPTERS.items():
        _write_adapter(model, folder / name, seed)
    (folder / "done").write_text("")


def _write_adapter(model: torch.nn.Module, folder: Path, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, module in model.named_modules():
        if name.endswith(("q_proj", "v_proj")):
            prefix = f"base_model.model.{name}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(RANK, module.in_features, generator=generator) * 0.05
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(module.out_features, RANK, generator=generator) * 0.05
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.to(torch.bfloat16) for key, value in tensors.items()}, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "smollm2",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
