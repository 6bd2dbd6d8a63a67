"""A small OpenAI-compatible server with vLLM's command line, for the supervisor's tests; told what to do wrong.

`STUB_FAULT` is one of: `oom`, `import`, `remote`, `port`, `model` (says so and ends), `crash-once` (ends at its first
start), `crash-asked` (ends at its first start, when it is asked), `never` (does not become ready); `STUB_STATE` is a
folder that remembers earlier starts, and the answers that were given. The file `hang` in it makes the server silent;
`slow` makes answers take half a second. A message with "poison" in it ends the server, and one with "wedge" keeps it
from answering anybody, though it goes on to say that it is well.
"""

import json
import os
import pathlib
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ARGUMENTS = sys.argv[1:]
FAULT = os.environ.get("STUB_FAULT", "")
STATE = pathlib.Path(os.environ["STUB_STATE"])
SAYS = {
    "oom": "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB.",
    "import": "ModuleNotFoundError: No module named 'xgrammar'",
    "remote": "ValueError: Please pass the argument `trust_remote_code=True` to allow custom code to be run.",
    "port": "OSError: [Errno 98] Address already in use",
    "model": "OSError: nobody/nothing is not a local folder and is not a valid model identifier listed on a hub",
}
running = threading.Semaphore(0)
stuck = threading.Event()
counts = {"running": 0, "tokens": 0}


def option(name):
    return ARGUMENTS[ARGUMENTS.index(name) + 1]


def names():
    found = [option("--served-model-name")]
    if "--lora-modules" in ARGUMENTS:
        for each in ARGUMENTS[ARGUMENTS.index("--lora-modules") + 1 :]:
            if each.startswith("--"):
                break
            found.append(each.partition("=")[0])
    return found


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if (STATE / "hang").exists():
            time.sleep(3600)
        if self.path == "/metrics":
            name = option("--served-model-name")
            lines = [
                f'vllm:num_requests_running{{engine="0",model_name="{name}"}} {counts["running"]}.0',
                f'vllm:num_requests_waiting{{engine="0",model_name="{name}"}} 0.0',
                f'vllm:kv_cache_usage_perc{{engine="0",model_name="{name}"}} 0.25',
                f'vllm:generation_tokens_total{{engine="0",model_name="{name}"}} {counts["tokens"]}.0',
            ]
            self.reply(200, "\n".join(lines).encode() + b"\n")
        else:
            self.reply(200, b"{}")

    def do_POST(self):
        if self.path.partition("?")[0] in ("/sleep", "/wake_up"):
            with (STATE / "sleeps").open("a") as file:
                file.write(f"{self.path}\n")
            return self.reply(200, b"{}")
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers.get("Authorization") != f"Bearer {os.environ['VLLM_API_KEY']}":
            return self.reply(401, b"{}")
        if body["model"] not in names():
            return self.reply(404, b'{"error": {"message": "no such model"}}')
        counts["running"] += 1
        try:
            if (STATE / "slow").exists():
                time.sleep(0.5)
            words = json.dumps(body.get("messages"))
            if "poison" in words:
                os._exit(1)
            if "wedge" in words:
                stuck.set()
            if stuck.is_set():
                time.sleep(3600)
            if FAULT == "crash-asked" and not (STATE / "crashed").exists():
                (STATE / "crashed").touch()
                os._exit(1)
            counts["tokens"] += 3
            text = f"{body['model']} {os.getpid()}"
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            usage = {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
            with (STATE / "answers").open("a") as file:
                file.write(f"{self.path} {os.getpid()}\n")
            self.reply(200, json.dumps({"choices": [choice], "usage": usage}).encode())
        finally:
            counts["running"] -= 1

    def reply(self, status, body):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def main():
    with (STATE / "starts").open("a") as file:
        file.write(f"{option('--served-model-name')} {os.getpid()}\n")
    if FAULT in SAYS:
        sys.exit(SAYS[FAULT])
    if FAULT == "crash-once" and not (STATE / "crashed").exists():
        (STATE / "crashed").touch()
        sys.exit("RuntimeError: Engine core initialization failed.")
    if FAULT == "never":
        time.sleep(3600)
    if os.environ.get("STUB_CHILD"):  # like vLLM's engine core: a process that outlives its parent's SIGKILL
        import subprocess

        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    print("Starting to load model", flush=True)
    server = ThreadingHTTPServer(("127.0.0.1", int(option("--port"))), Handler)
    server.daemon_threads = True
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    server.serve_forever()


if __name__ == "__main__":
    main()
