"""What the gateway costs: nearfar beside the upstream itself, a bare pass-through and LiteLLM's proxy.

    python benchmarks/gateway.py [--runs 5] [--seconds 3] [--without litellm] [--out benchmarks/results/gateway.json]

Everything runs on this machine, each part in a process of its own: a mock upstream that answers in about a
millisecond, the three servers before it, and a load generator that keeps 1 or 32 connections busy. The runs are
interleaved, so that what else the machine does falls on all alike; each number is the median of the runs, its interval
their least and greatest.

nearfar runs as `nearfar serve` does, with a key, the decision log on and one OpenAI-wire model. LiteLLM's proxy runs
as `litellm --config` does, with a master key and no database, from an environment of its own (.venv-litellm, made on
first use).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import uvloop

import nearfar

ROOT = Path(__file__).resolve().parent.parent
LITELLM = "litellm[proxy]==1.106.2"
CHUNKS = 200
UPSTREAM_S = 0.001
CONNECTIONS = (1, 32)
KINDS = ("json", "stream")

_WORDS = ("the ", "answer ", "is ", "near ", "and ", "far ", "away, ", "as ", "ever. ", "So ")


# --- the mock upstream -----------------------------------------------------------------------------------------------


def _completion() -> bytes:
    text = "".join(_WORDS[i % len(_WORDS)] for i in range(60))
    body = {
        "id": "chatcmpl-mock",
        "object": "chat.completion",
        "created": 1,
        "model": "mock",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": None, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 30, "completion_tokens": 60, "total_tokens": 90},
    }
    return json.dumps(body).encode()


def _chunks(with_usage: bool) -> list[bytes]:
    """The stream's body, framed, one piece per write: a role, 200 pieces of text, an end."""

    def chunk(delta: dict[str, str], finish_reason: str | None = None, **more: Any) -> bytes:
        choices = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]
        head = {"id": "chatcmpl-mock", "object": "chat.completion.chunk", "created": 1, "model": "mock"}
        return b"data: " + json.dumps({**head, "choices": choices, **more}).encode() + b"\n\n"

    pieces = [chunk({"role": "assistant", "content": ""})]
    pieces += [chunk({"content": _WORDS[i % len(_WORDS)]}) for i in range(CHUNKS)]
    last = chunk({}, "stop")
    if with_usage:
        usage = {"prompt_tokens": 30, "completion_tokens": CHUNKS, "total_tokens": CHUNKS + 30}
        head = {"id": "chatcmpl-mock", "object": "chat.completion.chunk", "created": 1, "model": "mock"}
        last += b"data: " + json.dumps({**head, "choices": [], "usage": usage}).encode() + b"\n\n"
    pieces.append(last + b"data: [DONE]\n\n")
    framed = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]
    framed[-1] += b"0\r\n\r\n"
    return framed


class _Upstream(asyncio.Protocol):
    """Answers each request after a millisecond; every piece of a stream is a write of its own, as of a token."""

    def __init__(self) -> None:
        body = _completion()
        self._whole = (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        self._head = (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        self._streams = {with_usage: _chunks(with_usage) for with_usage in (False, True)}
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class
        self._loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator:
            return
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line[:15].lower() == b"content-length:")
        if len(body) < length:
            return
        self._received = b""
        wants_stream = b'"stream":true' in body.replace(b": ", b":")
        answer = self._begin_stream if wants_stream else self._answer
        self._loop.call_later(UPSTREAM_S, answer, b"include_usage" in body)

    def _answer(self, _: bool) -> None:
        self._transport.write(self._whole)

    def _begin_stream(self, with_usage: bool) -> None:
        self._transport.write(self._head)
        self._next_piece(iter(self._streams[with_usage]))

    def _next_piece(self, pieces: Iterator[bytes]) -> None:
        piece = next(pieces, None)
        if piece is not None and not self._transport.is_closing():
            self._transport.write(piece)
            self._loop.call_soon(self._next_piece, pieces)


def serve_upstream(port: int) -> None:
    """Runs the mock upstream until it is killed."""

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(_Upstream, "127.0.0.1", port)
        await server.serve_forever()

    uvloop.run(run())


# --- the bare pass-through -------------------------------------------------------------------------------------------


def serve_passthrough(port: int, upstream: str) -> None:
    """Runs the dullest gateway there is: Starlette hands the body to aiohttp, and what comes back to the client."""
    import aiohttp
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response, StreamingResponse
    from starlette.routing import Route

    session: aiohttp.ClientSession | None = None

    async def forward(request: Request) -> Response:
        nonlocal session
        if session is None:
            session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        body = await request.body()
        answer = await session.post(
            f"{upstream}/chat/completions", data=body, headers={"content-type": "application/json"}
        )
        if answer.content_type == "application/json":
            return Response(await answer.read(), answer.status, media_type="application/json")
        return StreamingResponse(answer.content.iter_any(), answer.status, media_type="text/event-stream")

    app = Starlette(routes=[Route("/v1/chat/completions", forward, methods=["POST"])])
    uvicorn.run(app, port=port, http="httptools", loop="uvloop", access_log=False, log_level="error", ws="none")


# --- the load --------------------------------------------------------------------------------------------------------


class _Client(asyncio.Protocol):
    """One connection that asks again as soon as it is answered, until told to stop."""

    def __init__(self, request: bytes, *, is_stream: bool) -> None:
        self._request = request
        self._end = b"0\r\n\r\n" if is_stream else b""
        self._is_stream = is_stream
        self._received = bytearray()
        self._expected = 0
        self.latencies_s: list[float] = []
        self.first_bytes_s: list[float] = []
        self.deadline = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class

    def begin(self, deadline: float) -> None:
        """Asks until `deadline`."""
        self.deadline = deadline
        self._ask()

    def _ask(self) -> None:
        self._received.clear()
        self._expected = 0
        self._started = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self._received:
            self.first_bytes_s.append(time.perf_counter() - self._started)
        self._received += data
        if not self._is_whole():
            return
        now = time.perf_counter()
        self.latencies_s.append(now - self._started)
        if now < self.deadline:
            self._ask()
        elif not self.done.done():
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionError("the server closed the connection"))

    def _is_whole(self) -> bool:
        received = self._received
        if not self._expected:
            end = received.find(b"\r\n\r\n")
            if end < 0:
                return False
            if not received.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"the server refused: {bytes(received[:600])!r}")
            if self._is_stream and b"content-length" not in received[:end].lower():
                self._expected = -1
            else:
                head = bytes(received[:end]).lower()
                length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
                self._expected = end + 4 + length
        return received.endswith(self._end) if self._expected < 0 else len(received) >= self._expected


def generate_load(port: int, kind: str, connections: int, seconds: float, key: str, least: int) -> dict[str, Any]:
    """Requests a second and latencies of `connections` busy connections over about `seconds`."""
    body: dict[str, Any] = {
        "model": "auto",
        "messages": [
            {"role": "system", "content": "You are a helpful assistant. Answer in one paragraph."},
            {"role": "user", "content": "Why is the sky blue, and why is it red in the evening? Be brief."},
        ],
        "temperature": 0.7,
    }
    if kind == "stream":
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {key}\r\nContent-Length: {len(data)}\r\n\r\n"
    )

    async def run() -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        clients = []
        for _ in range(connections):
            _, client = await loop.create_connection(
                lambda: _Client(head.encode() + data, is_stream=kind == "stream"), "127.0.0.1", port
            )
            clients.append(client)
        started = time.perf_counter()
        for client in clients:
            client.begin(started + seconds)
        await asyncio.gather(*(client.done for client in clients))
        elapsed = time.perf_counter() - started
        latencies = sorted(each for client in clients for each in client.latencies_s)
        first = sorted(each for client in clients for each in client.first_bytes_s)
        return {
            "requests": len(latencies),
            "requests_per_s": len(latencies) / elapsed,
            "p50_s": _quantile(latencies, 0.5),
            "p99_s": _quantile(latencies, 0.99),
            "first_byte_p50_s": _quantile(first, 0.5),
        }

    result = uvloop.run(run())
    if result["requests"] < least:
        raise SystemExit(f"only {result['requests']} requests in {seconds} s")
    return result


def _quantile(values: Sequence[float], q: float) -> float:
    return values[min(len(values) - 1, int(q * len(values)))]


# --- the servers -----------------------------------------------------------------------------------------------------


@dataclass
class Target:
    """A server to measure."""

    name: str
    port: int
    key: str
    process: subprocess.Popen[bytes]

    def memory_bytes(self) -> dict[str, int]:
        """Resident and proportional memory of its processes now, and the resident peak."""
        totals = {"rss": 0, "pss": 0, "peak_rss": 0}
        for pid in _family(self.process.pid):
            status = Path(f"/proc/{pid}/status").read_text()
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            totals["rss"] += _kilobytes(rollup, "Rss:") * 1024
            totals["pss"] += _kilobytes(rollup, "Pss:") * 1024
            totals["peak_rss"] += _kilobytes(status, "VmHWM:") * 1024
        return totals


def _kilobytes(text: str, field: str) -> int:
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(field))


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in _family(int(child)))]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _running(
    name: str, command: Sequence[str], port: int, folder: Path, *, key: str = "", environ: Mapping[str, str] = {}
) -> Iterator[Target]:
    log = (folder / f"{name}.log").open("wb")
    process = subprocess.Popen(
        command, env={**os.environ, **environ}, stdout=log, stderr=subprocess.STDOUT, cwd=folder, start_new_session=True
    )
    try:
        _await_port(port, process, folder / f"{name}.log")
        yield Target(name, port, key, process)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


def _await_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(1200):
        if process.poll() is not None:
            raise SystemExit(f"a server died at start:\n{log.read_text(errors='replace')[-2000:]}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit(f"nothing listens on port {port}:\n{log.read_text(errors='replace')[-2000:]}")


def _litellm() -> Path:
    """The `litellm` command of an environment of its own."""
    folder = ROOT / ".venv-litellm"
    command = folder / "bin" / "litellm"
    if not command.exists():
        print(f"installing {LITELLM} into {folder.name} …", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", LITELLM], check=True)
    return command


def _start(names: Sequence[str], folder: Path, stack: ExitStack) -> list[Target]:
    me = [sys.executable, str(Path(__file__).resolve())]
    port = _free_port()
    upstream = f"http://127.0.0.1:{port}/v1"
    targets = [stack.enter_context(_running("upstream", [*me, "serve-upstream", str(port)], port, folder))]
    if "passthrough" in names:
        port = _free_port()
        command = [*me, "serve-passthrough", str(port), upstream]
        targets.append(stack.enter_context(_running("passthrough", command, port, folder)))
    if "nearfar" in names:
        targets.append(stack.enter_context(_nearfar(upstream, folder)))
    if "litellm" in names:
        targets.append(stack.enter_context(_litellm_proxy(upstream, folder)))
    return targets


def _nearfar(upstream: str, folder: Path) -> Any:
    port = _free_port()
    key = "nf-" + secrets.token_urlsafe(32)
    config = folder / "nearfar.toml"
    config.write_text(
        f"""
        [models.mock]
        kind = "openai"
        url = "{upstream}"
        model = "mock"
        placement = "far"
        api_key_env = "MOCK_API_KEY"

        [cascades.auto]
        tiers = ["mock"]

        [gateway]
        port = {port}

        [data]
        dir = "{folder / "nearfar"}"
        """
    )
    environ = {"MOCK_API_KEY": "mock-" + secrets.token_hex(8), "NEARFAR_API_KEYS": key}
    command = [str(Path(sys.executable).with_name("nearfar")), "serve", "--config", str(config)]
    return _running("nearfar", command, port, folder, key=key, environ=environ)


def _litellm_proxy(upstream: str, folder: Path) -> Any:
    port = _free_port()
    key = "sk-" + secrets.token_urlsafe(32)
    config = folder / "litellm.yaml"
    config.write_text(
        json.dumps(  # JSON is YAML
            {
                "model_list": [
                    {
                        "model_name": "auto",
                        "litellm_params": {"model": "openai/mock", "api_base": upstream, "api_key": "sk-mock"},
                    }
                ],
                "general_settings": {"master_key": key},
                "litellm_settings": {"telemetry": False},
            }
        )
    )
    environ = {"LITELLM_MASTER_KEY": key, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    command = [
        str(_litellm()),
        "--config",
        str(config),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--num_workers",
        "1",
    ]
    return _running("litellm", command, port, folder, key=key, environ=environ)


# --- the measurement -------------------------------------------------------------------------------------------------


def _load(target: Target, kind: str, connections: int, seconds: float) -> dict[str, Any]:
    command = [sys.executable, __file__, "load", str(target.port), kind, str(connections), str(seconds)]
    done = subprocess.run(command, env={**os.environ, "LOAD_KEY": target.key}, stdout=subprocess.PIPE, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def measure(names: Sequence[str], runs: int, seconds: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Every server under every load, `runs` times over."""
    samples: dict[str, dict[str, list[dict[str, Any]]]] = {}
    memory: dict[str, dict[str, dict[str, int]]] = {}
    folder = Path(tempfile.mkdtemp(prefix="nearfar-bench-"))
    try:
        with ExitStack() as stack:
            targets = _start(names, folder, stack)
            for target in targets:
                memory[target.name] = {"idle": target.memory_bytes()}
                for kind in KINDS:
                    _load(target, kind, 4, min(1.0, seconds))
            for run in range(runs):
                for connections in CONNECTIONS:
                    for kind in KINDS:
                        for target in targets:
                            result = _load(target, kind, connections, seconds)
                            load = f"{kind}, {connections} connection{'s' if connections > 1 else ''}"
                            samples.setdefault(load, {}).setdefault(target.name, []).append(result)
                            say(
                                f"run {run + 1}  {load:22}  {target.name:12} {result['requests_per_s']:9.1f}/s  "
                                f"p50 {result['p50_s'] * 1e3:8.3f} ms  p99 {result['p99_s'] * 1e3:8.3f} ms"
                            )
            for target in targets:
                memory[target.name]["after load"] = target.memory_bytes()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    loads = {load: {name: _summary(results) for name, results in by_name.items()} for load, by_name in samples.items()}
    return {"loads": loads, "memory_bytes": memory, "comparison": _comparison(loads, memory)}


def _summary(results: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    summary: dict[str, Any] = {"requests": sum(int(each["requests"]) for each in results)}
    for field in ("requests_per_s", "p50_s", "p99_s", "first_byte_p50_s"):
        values = [each[field] for each in results]
        summary[field] = {"median": statistics.median(values), "interval": [min(values), max(values)]}
    return summary


def _comparison(loads: Mapping[str, Any], memory: Mapping[str, Any]) -> dict[str, Any]:
    """The ratios that the gateway is held to."""
    found: dict[str, Any] = {}
    for load, by_name in loads.items():
        if "nearfar" not in by_name:
            continue
        rate = {name: each["requests_per_s"]["median"] for name, each in by_name.items()}
        p50 = {name: each["p50_s"]["median"] for name, each in by_name.items()}
        row: dict[str, float] = {"added_p50_s": p50["nearfar"] - p50["upstream"]}
        if "passthrough" in by_name:
            row["throughput_over_passthrough"] = rate["nearfar"] / rate["passthrough"]
            row["added_p50_over_passthrough"] = row["added_p50_s"] / (p50["passthrough"] - p50["upstream"])
        if "litellm" in by_name:
            row["throughput_over_litellm"] = rate["nearfar"] / rate["litellm"]
        found[load] = row
    if "nearfar" in memory:
        found["peak_rss_bytes"] = memory["nearfar"]["after load"]["peak_rss"]
    return found


def _machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next((line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")), "")
    return {"cpu": model or platform.processor(), "cores": os.cpu_count(), "system": platform.system()}


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, check=False)
    return done.stdout.decode().strip()


def _versions(names: Sequence[str]) -> dict[str, str]:
    found = {name: version(name) for name in ("aiohttp", "starlette", "uvicorn", "uvloop", "httptools")}
    if "litellm" in names:
        python = _litellm().with_name("python")
        code = "from importlib.metadata import version; print(version('litellm'))"
        found["litellm"] = (
            subprocess.run([python, "-c", code], stdout=subprocess.PIPE, check=True).stdout.decode().strip()
        )
    return {"nearfar": nearfar.__version__, "python": platform.python_version(), **found}


def main() -> None:
    """Measures, prints and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each load")
    parser.add_argument("--without", action="append", default=[], choices=["passthrough", "nearfar", "litellm"])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "gateway.json")
    options = parser.parse_args()
    names = [name for name in ("passthrough", "nearfar", "litellm") if name not in options.without]
    results = measure(names, options.runs, options.seconds, lambda line: print(line, file=sys.stderr))
    report = {
        "command": " ".join(["python benchmarks/gateway.py", *sys.argv[1:]]),
        "commit": _commit(),
        "machine": _machine(),
        "versions": _versions(names),
        "runs": options.runs,
        "seconds": options.seconds,
        "chunks_per_stream": CHUNKS,
        "upstream_s": UPSTREAM_S,
        **results,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report["comparison"], indent=2))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve-upstream", port]:
            serve_upstream(int(port))
        case ["serve-passthrough", port, upstream]:
            serve_passthrough(int(port), upstream)
        case ["load", port, kind, connections, seconds]:
            print(
                json.dumps(generate_load(int(port), kind, int(connections), float(seconds), os.environ["LOAD_KEY"], 1))
            )
        case _:
            main()
