"""What a vLLM server is to be: the spec, the command line and environment that it makes, and what is wrong with it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from nearfar.errors import ConfigError, DataError

from .checkpoint import lora_rank, tensor_shapes, weights_bytes

GIB: Final = 1024**3

#: The ranks that vLLM makes room for; an adapter takes the next of them.
_LORA_RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)

#: What a server takes on a CPU beside its weights and its KV cache: three Python processes with torch. vLLM 0.32 with
#: SmolLM2 (0.25 GiB) and a KV cache of 1 GiB had 0.64, 0.64 and 2.06 GiB resident.
_PROCESS_BYTES: Final = int(2.1 * GIB)

#: Options of vLLM that nearfar sets, or that would open what it keeps shut.
_RESERVED: Final = frozenset(
    {
        "--model",
        "--served-model-name",
        "--host",
        "--port",
        "--uds",
        "--api-key",
        "--middleware",
        "--root-path",
        "--revision",
        "--tokenizer-revision",
        "--quantization",
        "-q",
        "--dtype",
        "--max-model-len",
        "--enable-lora",
        "--lora-modules",
        "--speculative-config",
        "--enable-sleep-mode",
        "--trust-remote-code",
        "--allowed-local-media-path",
        "--allowed-media-domains",
        "--gpu-memory-utilization",
        "--tool-call-parser",
        "--config",
        "--ssl-keyfile",
        "--ssl-certfile",
        "--headless",
    }
)

#: The module that shuts the server's other doors; it stands alone in its folder, since vLLM's environment need not
#: have nearfar in it.
GUARD_FOLDER: Final = Path(__file__).parent / "guard"
_GUARD: Final = "nearfar_engine_guard.Guard"

#: Puts the width of each request where vLLM's plugin for nested planes looks for it, inside the guard.
_PRECISION: Final = "nearfar.serving.quantization.vllm_plugin.PrecisionMiddleware"

#: On a CPU nothing is compiled, and no prompt is read in parts: vLLM 0.32 rewinds the generator of a request with a
#: seed after each part but the last, which a CPU's cannot do, and the whole server ends.
_ON_A_CPU: Final = ("--enforce-eager", "--no-enable-chunked-prefill")


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """One vLLM server."""

    name: str  # the model's name in the config, and what vLLM calls it
    model: str  # a folder, or a hub's name with `revision`
    revision: str | None = None  # the commit of a hub's model
    quantization: str | None = None  # None: what the checkpoint says
    dtype: str = "auto"
    context_window: int | None = None  # tokens; None: the model's own
    loras: Mapping[str, Path] = field(default_factory=dict)  # folders of adapters by name
    draft: str | None = None  # folder or hub name of a smaller model that guesses ahead
    draft_tokens: int = 4  # guessed at once
    memory_bytes: int | None = None  # what it takes of the budget; None: estimated
    kv_cache_bytes: int = GIB  # on a CPU
    gpu_share: float = 0.9  # of the GPU's memory, in (0, 1]
    threads: int | None = None  # on a CPU; None: vLLM's choice
    port: int | None = None  # None: any free one
    is_attached: bool = False  # runs elsewhere already, so that nothing here is checked
    tool_parser: str | None = None  # vLLM's name for the way in which this model writes tool calls
    trusts_remote_code: bool = False  # runs Python that comes with the checkpoint
    sleeps: bool = False  # evicted by putting it to sleep; needs a GPU
    widths: tuple[int, ...] = ()  # bits at which nested weights are read
    arguments: tuple[str, ...] = ()  # further ones for vLLM
    environment: Mapping[str, str] = field(default_factory=dict)  # further variables for vLLM

    @property
    def is_local(self) -> bool:
        """Whether the model is a folder and not a hub's name."""
        return Path(self.model).is_dir() or self.model.startswith((".", "/", "~"))

    @property
    def is_nested(self) -> bool:
        """Whether the folder holds nested planes, which are read at the width that each request asks for."""
        return self._quantization_config().get("quant_method") == "nearfar_nested"

    @property
    def fingerprint(self) -> str:
        """What tells this server from one that was started to be something else."""
        facts = {
            "model": self.model,
            "revision": self.revision,
            "quantization": self.quantization,
            "dtype": self.dtype,
            "context_window": self.context_window,
            "loras": sorted((name, str(path)) for name, path in self.loras.items()),
            "draft": [self.draft, self.draft_tokens],
            "memory": [self.kv_cache_bytes, self.gpu_share, self.threads],
            "port": self.port,
            "other": [self.tool_parser, self.trusts_remote_code, self.sleeps],
            "arguments": self.arguments,
            "environment": sorted(self.environment.items()),
        }
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def served_name(self, adapter: str | None = None) -> str:
        """What vLLM calls the model, or one of its adapters."""
        return self.name if adapter is None else f"{self.name}+{adapter}"

    def first_request(self) -> dict[str, Any]:
        """The body of a completion through all that vLLM compiles at first use: draws and log-probabilities."""
        body = {"model": self.name, "prompt": "Hello", "max_tokens": 2, "temperature": 1.0, "top_p": 0.9, "logprobs": 1}
        if not self.is_nested:
            return body
        return body | {"vllm_xargs": {"bits": max(self._quantization_config()["widths"])}}

    def _quantization_config(self) -> dict[str, Any]:
        if not Path(self.model).is_dir():
            return {}
        about = _config_of(Path(self.model), f"[models.{self.name}]").get("quantization_config")
        return about if isinstance(about, dict) else {}

    def need_bytes(self, *, gpu_bytes: int | None = None) -> int:
        """What the server takes of the memory budget.

        Args:
            gpu_bytes: the memory of the GPU that it runs on; None: on a CPU.
        """
        if self.memory_bytes is not None:
            return self.memory_bytes
        if gpu_bytes is not None:
            return int(self.gpu_share * gpu_bytes)
        folders = [Path(self.model), *self.loras.values(), *([Path(self.draft)] if self.draft else [])]
        weights = sum(weights_bytes(folder) for folder in folders if folder.is_dir())
        return weights + self.kv_cache_bytes + _PROCESS_BYTES

    def command(self, python: Path, *, port: int, on_gpu: bool, is_tested: bool = True) -> list[str]:
        """The command line of the server; the key is not on it, since everybody may read command lines.

        Args:
            python: of vLLM's environment.
            port: to listen on.
            on_gpu: else on the CPU.
            is_tested: nearfar's tests ran with this vLLM; else the user has said that it may run all the same.
        """
        command = [str(python), "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--model", self.model, "--served-model-name", self.name]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        if self.is_nested:
            told = {"nearfar_salted": True} | ({} if is_tested else {"nearfar_any_vllm": True})
            command += ["--middleware", _PRECISION, "--additional-config", json.dumps(told)]
            command += [] if "--enforce-eager" in self.arguments or not on_gpu else ["--enforce-eager"]
        command += ["--middleware", _GUARD, "--allowed-media-domains", "nowhere.invalid"]
        command += ["--dtype", self.dtype, "--enable-prompt-tokens-details", "--disable-uvicorn-access-log"]
        if self.revision is not None:
            command += ["--revision", self.revision]
        if self.quantization is not None:
            command += ["--quantization", self.quantization]
        if self.context_window is not None:
            command += ["--max-model-len", str(self.context_window)]
        if self.loras:
            rank = max(lora_rank(path) for path in self.loras.values())
            fitting = min(each for each in _LORA_RANKS if each >= rank)
            command += ["--enable-lora", "--max-lora-rank", str(fitting), "--max-loras", str(len(self.loras))]
            command += ["--lora-modules", *(f"{self.served_name(name)}={path}" for name, path in self.loras.items())]
        if self.draft is not None:
            draft = {"model": self.draft, "num_speculative_tokens": self.draft_tokens}
            command += ["--speculative-config", json.dumps(draft)]
        if self.tool_parser is not None:
            command += ["--enable-auto-tool-choice", "--tool-call-parser", self.tool_parser]
        if self.trusts_remote_code:
            command += ["--trust-remote-code"]
        if self.sleeps:
            command += ["--enable-sleep-mode"]
        command += ["--gpu-memory-utilization", str(self.gpu_share)] if on_gpu else list(_ON_A_CPU)
        return [*command, *self.arguments]

    def variables(self, inherited: Mapping[str, str], *, key: str, on_gpu: bool) -> dict[str, str]:
        """The environment of the server: what is inherited, without anybody's keys, and what nearfar sets."""
        variables = {name: value for name, value in inherited.items() if not _is_secret(name)}
        path = [str(GUARD_FOLDER), *filter(None, [self.environment.get("PYTHONPATH") or inherited.get("PYTHONPATH")])]
        variables |= {
            **self.environment,
            "PYTHONPATH": ":".join(path),
            "PYTHONUNBUFFERED": "1",
            "VLLM_API_KEY": key,
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
        }
        if self.is_local and (self.draft is None or Path(self.draft).is_dir()):
            variables |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        if self.sleeps:
            variables["VLLM_SERVER_DEV_MODE"] = "1"  # opens /sleep, and more that the guard keeps shut
        if not on_gpu:
            variables.setdefault("VLLM_CPU_KVCACHE_SPACE", str(max(1, round(self.kv_cache_bytes / GIB))))
            variables.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
            if self.threads is not None:
                variables["OMP_NUM_THREADS"] = str(self.threads)
        return variables

    def check(self) -> None:
        """Refuses what can be seen to be wrong before anything is started.

        Raises:
            ConfigError: one line that names the setting and the fix.
        """
        place = f"[models.{self.name}]"
        if len(set(self.widths)) < len(self.widths):
            raise ConfigError(f"{place} widths names one twice: {', '.join(map(str, self.widths))}. Remove it.")
        if self.is_attached:
            return
        if self.model.endswith(".gguf"):
            raise ConfigError(
                f'{place} {self.model!r} is a GGUF, which llama.cpp runs. Set kind = "llama.cpp" and path.'
            )
        if self.is_local:
            folder = Path(self.model)
            if not folder.is_dir():
                raise ConfigError(f"{place} There is no folder {self.model!r}. Correct model.")
            about = _config_of(folder, place)
            if "auto_map" in about and not self.trusts_remote_code:
                raise ConfigError(
                    f"{place} {self.model!r} comes with Python code of its own. Read it, and if you trust it set "
                    "trust_remote_code = true."
                )
            weights_bytes(folder)
            self._check_widths(folder, place)
        elif self.revision is None:
            raise ConfigError(
                f"{place} {self.model!r} is a hub's model without a revision, which may change under you. Set revision "
                "to the commit that you mean."
            )
        for name, path in self.loras.items():
            rank = lora_rank(path)
            if rank > _LORA_RANKS[-1]:
                raise ConfigError(
                    f"{place} The adapter {name!r} has rank {rank}; vLLM takes {_LORA_RANKS[-1]} at most."
                )
        for argument in self.arguments:
            option = argument.partition("=")[0].replace("_", "-")
            if option in _RESERVED:
                raise ConfigError(f"{place} arguments holds {option!r}, which nearfar sets itself. Remove it.")
        if not 0 < self.gpu_share <= 1:
            raise ConfigError(f"{place} gpu_share must be in (0, 1], not {self.gpu_share!r}.")

    def _check_widths(self, folder: Path, place: str) -> None:
        """Refuses widths that the folder does not hold, and nested weights that no width is asked of."""
        if not self.is_nested:
            if self.widths:
                raise ConfigError(
                    f"{place} {self.model!r} holds no nested weights, which widths are for. Remove widths, or make "
                    "some: nearfar quantize."
                )
            return
        from nearfar.serving.quantization.settings import check_shapes, read_config  # loads numpy, for these alone

        try:
            config = read_config(folder)
        except DataError as exc:
            raise ConfigError(f"{place} {exc}") from exc
        offered = config.precisions
        stored = ", ".join(map(str, offered))
        if not self.widths:
            raise ConfigError(f"{place} {self.model!r} holds nested weights. Set widths to the bits to read: {stored}.")
        if missing := [width for width in self.widths if width not in offered]:
            raise ConfigError(f"{place} widths has {missing[0]}, and {self.model!r} was stored for {stored}.")
        if self.draft is not None:
            raise ConfigError(f"{place} Nested weights run without a draft model. Remove draft.")
        try:
            check_shapes(config, tensor_shapes(folder))
        except DataError as exc:
            raise ConfigError(f"{place} {self.model!r} is no whole model: {exc}") from exc


def _config_of(folder: Path, place: str) -> dict[str, Any]:
    try:
        about = json.loads((folder / "config.json").read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"{place} {str(folder)!r} has no config.json. Name a model's folder.") from None
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{place} The config.json in {str(folder)!r} cannot be read: {exc}. Fetch it again.") from exc
    if not isinstance(about, dict):
        raise ConfigError(f"{place} The config.json in {str(folder)!r} is no object. Fetch it again.")
    return about


def _is_secret(name: str) -> bool:
    """Whether a variable's name says that it holds a key; a hub's token is left, for models that need it."""
    return bool(re.search(r"(API_?KEY|SECRET|PASSWORD|_TOKEN$)", name, re.IGNORECASE)) and name != "HF_TOKEN"
