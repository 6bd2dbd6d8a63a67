"""vLLM's plugin: loads nested planes into one buffer and reads each request's rows at the precision it asks for.

Uses vLLM's official extension points alone: the registered quantization config, a logits processor that sees the
batch before the forward pass, and a middleware of its server. What was not tried with them is refused at start.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import vllm
from torch import nn
from vllm.config import CompilationMode, get_current_vllm_config
from vllm.forward_context import get_forward_context, is_forward_context_available
from vllm.model_executor.layers.linear import LinearBase, LinearMethodBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase
from vllm.model_executor.utils import set_weight_attrs
from vllm.v1.sample.logits_processor.interface import BatchUpdate, LogitsProcessor, MoveDirectionality

from nearfar.errors import ConfigError, RequestError
from nearfar.serving.kernels import cpu

from .checkpoint import check_sums
from .format import TENSORS, shapes
from .operation import nested_linear
from .precision import precision_of, with_precision
from .settings import METHOD, NestedConfig

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig

#: The versions of vLLM that the tests run with, by their first two numbers. Others are refused.
TESTED = ("0.32",)

#: A key of vLLM's `--additional-config`. True: every request carries the salt of its precision, as
#: `PrecisionMiddleware` and `nearfar.serving.quantization.precision.salt` give it, so prefixes may be cached.
SALTED = "nearfar_salted"

#: A key of vLLM's `--additional-config`. True: runs with a version of vLLM that no test ran with.
ANY_VERSION = "nearfar_any_vllm"

#: A key of vLLM's `--additional-config`. True: activations stay as they are on CPUs too, where the kernel rounds them
#: to int8; the reference in torch runs, which is slow.
EXACT = "nearfar_exact"

_log = logging.getLogger(__name__)

_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
_MAX_BODY = 32 << 20
_TYPES = {"uint8": torch.uint8, "int8": torch.int8, "float16": torch.float16, "float32": torch.float32}
_SHARDS = {"q": 0, "k": 1, "v": 2}

#: The precisions of the models that this process serves: vLLM asks for a request's validity by class, not by model.
_OFFERED: set[int] = set()

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class RowPrecisions:
    """Which precision each row of the running batch asks for, in a buffer of fixed place on the device.

    The logits processor tells it what is asked for by each request; at the first layer of a forward pass the rows are
    filled in from the lengths that the attention's metadata has.
    """

    def __init__(self, default: int, max_rows: int, device: torch.device) -> None:
        self.default = default
        self.buffer = torch.full((max_rows,), default, dtype=torch.int32, device=device)
        self.of_request: dict[int, int] = {}
        self._filled: object = None
        self._widths: dict[tuple[int, ...], torch.Tensor] = {}

    def rows(self, count: int) -> torch.Tensor:
        """The precision of each of the `count` rows of the forward pass that runs."""
        context = get_forward_context() if is_forward_context_available() else None
        if context is None or context is not self._filled:
            self._fill(context)
            self._filled = context
        return self.buffer[:count]

    def widths(self, by_precision: tuple[int, ...], count: int) -> torch.Tensor:
        """The width of each row for a layer; looked up once in a forward pass for all layers that are alike."""
        rows = self.rows(count)
        if by_precision not in self._widths:
            self._widths[by_precision] = torch.tensor(by_precision, dtype=torch.int32)[self.buffer]
        return self._widths[by_precision][: len(rows)]

    def _fill(self, context: Any) -> None:
        self._widths.clear()
        self.buffer.fill_(self.default)
        metadata = None if context is None else context.attn_metadata
        if isinstance(metadata, list):
            raise ConfigError("Nested planes do not run with dual-batch overlap; start vLLM without it.")
        if not metadata:
            return  # a profiling run
        lengths = next(iter(metadata.values())).query_start_loc.diff()
        asked = [self.of_request.get(index, self.default) for index in range(len(lengths))]
        per_row = torch.repeat_interleave(
            torch.tensor(asked, dtype=torch.int32, device=self.buffer.device), lengths.to(self.buffer.device)
        )
        self.buffer[: len(per_row)] = per_row


@register_quantization_config(METHOD)
class NestedQuantization(QuantizationConfig):  # type: ignore[misc]
    """What vLLM asks about a folder of nested planes."""

    def __init__(self, config: NestedConfig) -> None:
        super().__init__()
        self.config = config
        self.original = {name: name for name in config.columns}  # by vLLM's name
        self.rows: RowPrecisions | None = None
        self.is_packed = False

    def get_name(self) -> str:
        """Of the method."""
        return METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """The reference computes in whatever the activations are."""
        return [torch.float32, torch.bfloat16, torch.float16]

    @classmethod
    def get_min_capability(cls) -> int:
        """The reference needs no kernel of its own."""
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        """All stands in config.json."""
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> NestedQuantization:
        """Reads `quantization_config`."""
        nested = NestedConfig.from_json(config)
        _OFFERED.update(nested.precisions)
        return cls(nested)

    def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:
        """Takes over the names that vLLM gives to the model's parts."""
        self.original = hf_to_vllm_mapper.apply_dict(self.original)

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """Ours for a layer that is stored as planes; vLLM's own for the others."""
        if not isinstance(layer, LinearBase):
            return None
        start, _, last = prefix.rpartition(".")
        parts = [f"{start}.{part}" if start else part for part in self.packed_modules_mapping.get(last, [last])]
        stored = [part for part in parts if part in self.original]
        if not stored:
            return UnquantizedLinearMethod()
        if stored != parts:
            raise ConfigError(f"{prefix!r} is stored as planes in part: {stored!r} is, the rest of {parts!r} is not.")
        vllm_config = get_current_vllm_config()
        if self.rows is None:
            _check_combination(vllm_config)
            if Path(
                vllm_config.model_config.model
            ).is_dir():  # else vLLM has fetched it, and the hub has sums of its own
                check_sums(Path(vllm_config.model_config.model))
            if torch.device(vllm_config.device_config.device).type == "cuda":
                _install_gpu_kernels()
            self.rows = RowPrecisions(
                self.config.widths[-1],
                vllm_config.scheduler_config.max_num_batched_tokens,
                torch.device(vllm_config.device_config.device),
            )
            self.is_packed = _runs_on_cpu_kernel(vllm_config)
        return NestedLinear(self.config, [self.original[part] for part in parts], self.rows, is_packed=self.is_packed)


class NestedLinear(LinearMethodBase):  # type: ignore[misc]
    """A linear layer whose rows are each read at their request's precision.

    With `is_packed` the CPU kernel reads it, wherever its groups let it.
    """

    def __init__(self, config: NestedConfig, parts: list[str], rows: RowPrecisions, *, is_packed: bool) -> None:
        self.config = config
        self.rows = rows
        self.is_packed = is_packed
        by_precision = [config.widths[-1]] * (max(config.precisions) + 1)
        for precision in config.precisions:
            widths = {config.width_of(part, precision) for part in parts}
            if len(widths) != 1:
                raise ConfigError(f"{parts!r} run as one layer, and precision {precision} gives them different widths.")
            by_precision[precision] = widths.pop()
        self.widths = tuple(by_precision)
        self.by_precision = torch.tensor(by_precision, dtype=torch.int32, device=rows.buffer.device)

    def create_weights(
        self,
        layer: nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """The planes, their scales and zeros, for all stacked matrices together."""
        rows = sum(output_partition_sizes)
        expected = shapes(rows, input_size_per_partition, widths=self.config.widths, group_size=self.config.group_size)
        for name, (shape, dtype) in expected.items():
            if name == "ranges":
                shape = (len(output_partition_sizes), *shape)
            parameter = nn.Parameter(torch.empty(shape, dtype=_TYPES[dtype.name]), requires_grad=False)
            layer.register_parameter(name, parameter)
            if name == "ranges":
                set_weight_attrs(parameter, {"weight_loader": _load_ranges})
            else:
                output_dim = 1 if name in ("planes", "refits") else 0
                set_weight_attrs(parameter, {"output_dim": output_dim, **extra_weight_attrs})
        layer.nearfar_part_rows = list(output_partition_sizes)
        layer.nearfar_columns = input_size_per_partition

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Checks the scales. For the CPU kernel, one packed tensor takes the place of all; else nothing is copied."""
        if not bool(torch.isfinite(layer.scales).all() and torch.isfinite(layer.ranges).all()):
            raise ConfigError(f"The scales of {layer.prefix!r} are not finite; the model is damaged, fetch it again.")
        resident = layer.planes.data
        if self.is_packed and cpu.is_supported(layer.nearfar_columns, self.config.group_size):
            resident = cpu.pack(
                *(getattr(layer, name).data for name in TENSORS),
                part_rows=layer.nearfar_part_rows,
                widths=self.config.widths,
                group_size=self.config.group_size,
                num_columns=layer.nearfar_columns,
            )
            for name in TENSORS:
                delattr(layer, name)
            layer.register_buffer("nearfar_packed", resident, persistent=False)
        layer.__dict__["weight_packed"] = resident  # where vLLM's LoRA looks for a layer's device

    def apply(self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """The layer's outputs."""
        flat = x.reshape(-1, x.shape[-1])
        if "nearfar_packed" in layer._buffers:
            made = cpu.packed_linear(
                flat,
                self.rows.widths(self.widths, len(flat)),
                layer.nearfar_packed,
                num_outputs=sum(layer.nearfar_part_rows),
            )
        else:
            made = nested_linear(
                flat,
                self.by_precision[self.rows.rows(len(flat))],
                layer.planes,
                layer.scales,
                layer.zeros,
                layer.refits,
                layer.ranges,
                part_rows=layer.nearfar_part_rows,
                widths=self.config.widths,
                group_size=self.config.group_size,
            )
        made = made.view(*x.shape[:-1], made.shape[-1])
        return made if bias is None else made + bias


def _load_ranges(parameter: nn.Parameter, loaded: torch.Tensor, shard: str | int | None = None) -> None:
    """Puts the four numbers of each width in their matrix's place; in every place where matrices were stored as one."""
    if shard is None:
        parameter.data.copy_(loaded.expand_as(parameter))
    else:
        parameter.data[_SHARDS[shard] if isinstance(shard, str) else shard].copy_(loaded)


class PrecisionProcessor(LogitsProcessor):  # type: ignore[misc]
    """Tells the layers which request sits where in the batch, before each forward pass; leaves logits alone."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuses a request with no precision, or with one that was not stored; other models' requests pass.

        Raises:
            ValueError: which vLLM's server answers with 400.
        """
        if _OFFERED:
            try:
                precision_of(sampling_params.extra_args, _OFFERED)
            except RequestError as exc:
                raise ValueError(str(exc)) from exc

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        found = vllm_config.quant_config
        self.quantization = found if isinstance(found, NestedQuantization) else None

    def is_argmax_invariant(self) -> bool:
        """It is: nothing is changed."""
        return True

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits as they are."""
        return logits

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follows the requests through the batch: first those that left, then the new ones, then the moved ones."""
        if batch_update is None or self.quantization is None or self.quantization.rows is None:
            return
        asked = self.quantization.rows.of_request
        for index in batch_update.removed:
            asked.pop(index, None)
        for index, params, _, _ in batch_update.added:
            asked[index] = precision_of(params.extra_args, self.quantization.config.precisions)
        for first, second, direction in batch_update.moved:
            moved, displaced = asked.pop(first, None), asked.pop(second, None)
            if moved is not None:
                asked[second] = moved
            if direction == MoveDirectionality.SWAP and displaced is not None:
                asked[first] = displaced


class PrecisionMiddleware:
    """Gives each completion request its precision and the salt that goes with it, or answers 400.

    For vLLM's `--middleware`; together with `--additional-config '{"nearfar_salted": true}'` prefixes are cached.
    """

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"].rstrip("/") not in _PATHS:
            await self.app(scope, receive, send)
            return
        quantization = scope["app"].state.vllm_config.quant_config
        if not isinstance(quantization, NestedQuantization):
            await self.app(scope, receive, send)
            return
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > _MAX_BODY:
                await _refuse(send, 413, f"The body has more than {_MAX_BODY} bytes.", None)
                return
        try:
            page = json.loads(body)
            if not isinstance(page, dict):
                raise RequestError("The body is no JSON object.")
            page = with_precision(page, quantization.config.precisions)
        except ValueError:
            await _refuse(send, 400, "The body is no JSON.", None)
            return
        except RequestError as exc:
            await _refuse(send, 400, str(exc), exc.param)
            return
        made = json.dumps(page).encode()
        headers = [(name, value) for name, value in scope["headers"] if name.lower() != b"content-length"]
        scope = {**scope, "headers": [*headers, (b"content-length", str(len(made)).encode())]}
        is_sent = False

        async def replay() -> Message:
            nonlocal is_sent
            if is_sent:
                return await receive()
            is_sent = True
            return {"type": "http.request", "body": made, "more_body": False}

        await self.app(scope, replay, send)


async def _refuse(send: Send, status: int, message: str, param: str | None) -> None:
    error = {"message": message, "type": "BadRequestError", "param": param, "code": status}
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _runs_on_cpu_kernel(config: VllmConfig) -> bool:
    extra = config.additional_config if isinstance(config.additional_config, dict) else {}
    if torch.device(config.device_config.device).type != "cpu" or extra.get(EXACT):
        return False
    try:
        cpu.load()
    except ConfigError as exc:
        _log.warning("Nested planes run in torch alone, slowly: %s", exc)
        return False
    return True


def _install_gpu_kernels() -> None:
    """Makes Triton's kernels the operation's backend; where they do not run, it goes to its reference and warns."""
    try:
        from nearfar.serving.kernels import triton_backend
    except ImportError as exc:
        _log.warning("Nested planes run in torch alone, slowly: %s", exc)
        return
    triton_backend.install()


def _check_combination(config: VllmConfig) -> None:
    """Refuses what was not tried.

    Raises:
        ConfigError: with the reason and what to start vLLM with instead.
    """
    extra = config.additional_config if isinstance(config.additional_config, dict) else {}
    version = ".".join(vllm.__version__.split(".")[:2])
    if version not in TESTED and not extra.get(ANY_VERSION):
        raise ConfigError(
            f"Nested planes were tested with vLLM {', '.join(TESTED)}, and this is {vllm.__version__}. Install that, "
            f"or start with --additional-config '{{\"{ANY_VERSION}\": true}}'."
        )
    if config.compilation_config.mode not in (None, CompilationMode.NONE):
        raise ConfigError("Nested planes run without torch.compile and CUDA graphs so far; start with --enforce-eager.")
    if config.speculative_config is not None:
        raise ConfigError("vLLM runs no logits processor with a draft model; start nested planes without one.")
    parallel = config.parallel_config
    if parallel.tensor_parallel_size > 1 or parallel.pipeline_parallel_size > 1:
        raise ConfigError("Nested planes run on one device so far; start with --tensor-parallel-size 1.")
    if config.cache_config.enable_prefix_caching and not extra.get(SALTED):
        raise ConfigError(
            "Cached prefixes of two widths must not mix: start with --middleware "
            "nearfar.serving.quantization.vllm_plugin.PrecisionMiddleware and "
            f"--additional-config '{{\"{SALTED}\": true}}', or with --no-enable-prefix-caching."
        )


def register() -> None:
    """What vLLM calls in each of its processes; importing this module has registered the config."""
