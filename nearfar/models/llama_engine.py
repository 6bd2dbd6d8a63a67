"""Runs llama.cpp inside this process: loads a GGUF once, and hands its answers from threads to event loops.

Owns the `xllamacpp.Server` and everything that it does in silence: it opens HTTP on a loopback port (locked here with
a random key), drops grammars that it cannot compile (tried here first), returns errors as dictionaries (raised here),
swallows exceptions of callbacks (there is nothing in ours that can fail), and divides its context among its slots.
"""

from __future__ import annotations

import asyncio
import http.client
import math
import os
import re
import secrets
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import msgspec

from nearfar.errors import (
    ContextTooLong,
    MalformedAnswer,
    ModelLoadError,
    RequestError,
    UpstreamError,
    UpstreamRejected,
    UpstreamUnavailable,
)

from .llama_library import llama_library
from .tool_prompt import Probe

#: Tokens of a prompt that are computed between two looks at whether the request was cancelled. Decoding and prefill of
#: SmolLM2-135M on 2 cores, in tokens/s: 128: 148 and 343; 256: 151 and 329; 512: 139 and 352; 2048: 122 and 311.
_BATCH = 256

_MAX_THREADS = 8  # more than this only waits for memory when one small model decodes
_HTTP_TIMEOUT_S = 60.0
_DIAGNOSIS_TIMEOUT_S = 60.0
_MAX_KNOWN_GRAMMARS = 256

_DIAGNOSIS = """
import sys, xllamacpp
p = xllamacpp.CommonParams()
p.model.path, p.n_ctx, p.verbosity, p.warmup = sys.argv[1], 256, 1, False
p.api_keys, p.cors_origins = [sys.argv[2]], ""
try:
    xllamacpp.Server(p)
except RuntimeError:
    pass
"""


#: A probability that llama.cpp's single precision rounds to zero, in nats: no token is impossible to a softmax.
_LEAST_LOGPROB = -103.0


class TopLogprob(msgspec.Struct):
    """An alternative to a token; `prob` in place of `logprob` where the sampler's own probabilities were asked for."""

    token: str
    logprob: float = 0.0
    prob: float | None = None

    @property
    def nats(self) -> float:
        """The log-probability, whichever of the two was sent."""
        if self.prob is None:
            return self.logprob
        return math.log(self.prob) if self.prob > 0 else _LEAST_LOGPROB


class Logprob(TopLogprob):
    """One token of a piece of the answer."""

    top_logprobs: list[TopLogprob] = []
    top_probs: list[TopLogprob] = []


class Logprobs(msgspec.Struct):
    content: list[Logprob] | None = None


class Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class Choice(msgspec.Struct):
    delta: Delta = msgspec.field(default_factory=Delta)
    finish_reason: str | None = None
    logprobs: Logprobs | None = None


class TokenDetails(msgspec.Struct):
    cached_tokens: int = 0


class WireUsage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: TokenDetails | None = None


class WireError(msgspec.Struct):
    message: str = "no message"
    code: int | None = None
    type: str = ""
    n_prompt_tokens: int | None = None
    n_ctx: int | None = None


class Chunk(msgspec.Struct):
    """One piece of a streamed chat completion, or the error in its place."""

    choices: list[Choice] = []
    usage: WireUsage | None = None
    error: WireError | None = None


_chunk_decoder = msgspec.json.Decoder(Chunk)


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """A chat completion in llama.cpp's words, and what to check once the model is there."""

    body: Mapping[str, Any]
    probes: tuple[Probe, ...] = ()
    token_ids: tuple[int, ...] = ()  # must be in the vocabulary


class Engine:
    """One GGUF in memory, answering up to `parallel` requests at once; the others wait in order.

    Loads at the first request, in a thread, once. Any event loop may use it.

    Args:
        path: the GGUF file.
        name: the model's name, for errors.
        context_window: tokens per request; llama.cpp is given this times `parallel`.
        threads: None: one per available core, eight at most.
        loras: adapters by name; a request names at most one.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str,
        context_window: int,
        parallel: int,
        threads: int | None,
        loras: Mapping[str, Path],
    ) -> None:
        self.path = path
        self._name = name
        self._context_window = context_window
        self._parallel = parallel
        self._threads = threads or min(_available_cores(), _MAX_THREADS)
        self._loras = dict(loras)
        self._lock = threading.Lock()
        self._server: Any = None
        self._api_key = secrets.token_urlsafe(32)
        self._vocabulary = 0
        self._known_grammars: dict[str, bool] = {}
        self._is_closed = False
        self._calls: set[_Call] = set()
        self._pool = ThreadPoolExecutor(parallel, thread_name_prefix=f"nearfar-{name}")

    @property
    def listening_address(self) -> str | None:
        """Where llama.cpp's own HTTP server listens, behind a random key; None: not loaded."""
        return self._server.listening_address if self._server else None

    @property
    def lora_names(self) -> tuple[str, ...]:
        """The adapters in the order of llama.cpp's ids."""
        return tuple(self._loras)

    def unavailable(self) -> str | None:
        """Why the engine can take no request; None: it can."""
        if self._is_closed:
            return "the model is closed"
        if self._server is None and not self.path.is_file():
            return f"its weights are not there: {str(self.path)!r}"
        return None

    async def chat(self, request: EngineRequest) -> AsyncGenerator[Chunk, None]:
        """The pieces of a streamed chat completion. Closing the generator stops the work within a token or a batch.

        Raises:
            UpstreamError: the weights cannot be loaded, or llama.cpp failed or refused.
            RequestError: a schema or a token that the model cannot be held to.
        """
        call = _Call()
        future = self._submit(self._run, request, call)
        self._calls.add(call)
        try:
            while (item := await call.pieces.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                chunk = self._decoded(item)
                if chunk.error:
                    raise self._translated(chunk.error)
                yield chunk
        finally:
            call.is_cancelled = True
            future.cancel()
            self._calls.discard(call)

    async def count_prompt_tokens(self, messages: list[dict[str, str]]) -> int:
        """How many tokens `messages` are once in the chat template.

        Raises:
            UpstreamError: the weights cannot be loaded, or llama.cpp failed or refused.
        """
        return await asyncio.wrap_future(self._submit(self._count, messages))

    async def aclose(self) -> None:
        """Stops what runs and frees the memory."""
        self._is_closed = True
        for call in tuple(self._calls):
            call.put(self._closed())
            call.is_cancelled = True
        await asyncio.to_thread(self._close)

    # --- in threads --------------------------------------------------------------------------------------------------

    def _submit(self, work: Any, *args: Any) -> Any:
        if not self._is_closed:
            with suppress(RuntimeError):  # closed in another thread between the look and the call
                return self._pool.submit(work, *args)
        raise self._closed()

    def _run(self, request: EngineRequest, call: _Call) -> None:
        """One chat completion, in a thread of the pool; whatever goes wrong is handed to the event loop."""
        try:
            server = self._loaded(call)
            if not call.is_cancelled:
                self._check(server, request)
                server.handle_chat_completions(msgspec.json.encode(request.body), call.take)
        except (UpstreamError, RequestError) as exc:
            call.put(exc)
        except Exception as exc:  # xllamacpp raises ValueError and RuntimeError for whatever C++ throws
            call.put(UpstreamRejected(f"{self._name!r}: llama.cpp refused the request: {exc}", model=self._name))
        finally:
            call.put(None)

    def _loaded(self, call: _Call | None = None) -> Any:
        with self._lock:
            if self._is_closed:
                raise self._closed()
            if self._server is None and not (call and call.is_cancelled):
                self._server = self._load()
            return self._server

    def _load(self) -> Any:
        for path in (self.path, *self._loras.values()):
            if not path.is_file():
                raise ModelLoadError(
                    f"{self._name!r}: there is no file {str(path)!r}. "
                    "Fetch the default weights with `nearfar models get smollm2`, or set the path of a GGUF file",
                    model=self._name,
                )
        library = llama_library(self._name)
        try:
            server = library.Server(self._params(library))
        except (RuntimeError, ValueError) as exc:
            raise ModelLoadError(
                f"{self._name!r}: {str(self.path)!r} cannot be loaded: {_diagnosis(self.path) or exc}. "
                "Replace it by a whole GGUF file",
                model=self._name,
            ) from exc
        meta = self._ask(server, "GET", "/v1/models")["data"][0]["meta"]
        if meta["n_ctx"] < self._context_window:
            raise ModelLoadError(
                f"{self._name!r}: context_window is {self._context_window} and the weights take {meta['n_ctx']}. "
                "Set context_window to that or less",
                model=self._name,
            )
        self._vocabulary = meta["n_vocab"]
        return server

    def _params(self, library: ModuleType) -> Any:
        params = library.CommonParams()
        params.model.path = str(self.path)
        params.n_parallel = self._parallel
        params.n_ctx = self._context_window * self._parallel
        params.n_batch = params.n_ubatch = _BATCH
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = self._threads
        params.cache_ram_mib = 0  # 8 GiB by default; the slots' own caches stay
        params.fit_params = False
        params.warmup = False
        params.prefill_assistant = False
        params.verbosity = -1
        params.api_keys = [self._api_key]
        params.cors_origins = ""
        params.endpoint_slots = params.endpoint_props = params.endpoint_metrics = params.ui = False
        params.n_threads_http = 1
        if self._loras:
            params.lora_init_without_apply = True
            params.lora_adapters = [_adapter(library, path) for path in self._loras.values()]
        return params

    def _check(self, server: Any, request: EngineRequest) -> None:
        """Refuses what llama.cpp would drop in silence."""
        for token_id in request.token_ids:
            if not 0 <= token_id < self._vocabulary:
                raise RequestError(
                    f"logit_bias names token {token_id}, and {self._name!r} has {self._vocabulary} tokens",
                    param="logit_bias",
                )
        for probe in request.probes:
            if not self._compiles(server, probe.grammar):
                raise RequestError(f"{self._name!r} cannot be held to {probe.why}", param=probe.param)

    def _compiles(self, server: Any, grammar: str) -> bool:
        """Whether the grammar compiles: one token tells, about 10 ms, once per grammar."""
        known = self._known_grammars.get(grammar)
        if known is None:
            body = {"prompt": "x", "max_tokens": 1, "temperature": 0, "cache_prompt": False, "grammar": grammar}
            answer = server.handle_completions(body)
            if "choices" not in answer:
                raise self._translated(msgspec.convert(answer.get("error", {}), WireError))
            known = answer["choices"][0]["text"] == "\u0001"
            if len(self._known_grammars) >= _MAX_KNOWN_GRAMMARS:
                self._known_grammars.clear()
            self._known_grammars[grammar] = known
        return known

    def _count(self, messages: list[dict[str, str]]) -> int:
        answer = self._ask(self._loaded(), "POST", "/v1/chat/completions/input_tokens", {"messages": messages})
        return int(answer["input_tokens"])

    def _ask(self, server: Any, method: str, path: str, body: Any = None) -> Any:
        """What the server's own HTTP says: xllamacpp has no other way to its vocabulary and its tokenizer."""
        address = urlsplit(server.listening_address)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=_HTTP_TIMEOUT_S)
        try:
            headers = {"Authorization": f"Bearer {self._api_key}", "Content-Type": "application/json"}
            connection.request(method, path, None if body is None else msgspec.json.encode(body), headers)
            answer = msgspec.json.decode(connection.getresponse().read())
        except (OSError, http.client.HTTPException, msgspec.DecodeError) as exc:
            raise UpstreamUnavailable(f"{self._name!r}: llama.cpp does not answer: {exc}", model=self._name) from exc
        finally:
            connection.close()
        if "error" in answer:
            raise self._translated(msgspec.convert(answer["error"], WireError))
        return answer

    def _close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            self._server = None  # the last reference: its destructor stops the threads

    # --- errors ------------------------------------------------------------------------------------------------------

    def _closed(self) -> UpstreamUnavailable:
        return UpstreamUnavailable(f"{self._name!r} is closed", model=self._name)

    def _decoded(self, piece: bytes) -> Chunk:
        try:
            return _chunk_decoder.decode(piece)
        except msgspec.DecodeError as exc:
            raise MalformedAnswer(f"{self._name!r}: llama.cpp sent what is no answer: {exc}", model=self._name) from exc

    def _translated(self, error: WireError) -> UpstreamError:
        message = f"{self._name!r}: {error.message}"
        if error.type == "exceed_context_size_error":
            return ContextTooLong(
                f"{self._name!r}: the prompt has {error.n_prompt_tokens} tokens and the context window {error.n_ctx}. "
                "Shorten the prompt or raise context_window",
                model=self._name,
                status=error.code,
            )
        if error.code is not None and 400 <= error.code < 500:
            return UpstreamRejected(message, model=self._name, status=error.code)
        return UpstreamUnavailable(message, model=self._name, status=error.code)


class _Call:
    """The way from a thread of llama.cpp to the event loop of one request."""

    def __init__(self) -> None:
        self.pieces: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue()
        self.is_cancelled = False
        self._loop = asyncio.get_running_loop()

    def take(self, piece: bytes) -> bool:
        """llama.cpp's callback: true stops it. xllamacpp swallows exceptions, so this raises none."""
        if not self.is_cancelled:
            self.put(piece)
        return self.is_cancelled

    def put(self, item: bytes | BaseException | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self.pieces.put_nowait, item)
        except RuntimeError:  # the event loop was closed under the request: nobody is left to read
            self.is_cancelled = True


def _available_cores() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _adapter(library: ModuleType, path: Path) -> Any:
    adapter = library.CommonAdapterLoraInfo()
    adapter.path = str(path)
    adapter.scale = 0.0  # on only where a request says so
    return adapter


def _diagnosis(path: Path) -> str | None:
    """Why llama.cpp cannot load `path`, in its words: it only prints them, so a process of its own is asked."""
    command = [sys.executable, "-c", _DIAGNOSIS, str(path), secrets.token_urlsafe(32)]
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and code
            command, capture_output=True, timeout=_DIAGNOSIS_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    lines = [re.sub(r"^[\d.]+ E ", "", line) for line in done.stderr.decode(errors="replace").splitlines()]
    causes = [line.partition(": ")[2] for line in lines if ": " in line]
    return causes[0].removeprefix("error loading model: ") if causes else None
