"""`nearfar serve` killed under load has recorded every answer that a client has seen."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

CONFIG = """
[models.far]
kind = "replay"
table = "answers.jsonl"
model = "large"
price = { prompt_usd_per_mtok = 1.0, completion_usd_per_mtok = 2.0 }

[cascades.auto]
tiers = ["far"]
"""
QUESTION = "Capital of France?"


def _ask(url: str, seen: list[str], is_over: threading.Event) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": QUESTION}]}).encode()
    while not is_over.is_set():
        request = urllib.request.Request(url, body, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=10) as reply:
                seen.append(json.load(reply)["nearfar"]["decision_id"])
        except (OSError, ValueError):
            return  # killed


@pytest.mark.parametrize("after_s", [0.4, 1.1])
def test_every_answer_that_was_seen_is_recorded(tmp_path: Path, after_s: float):
    """Killed with SIGKILL in the middle of eight clients' requests, the log holds all that they were answered."""
    (tmp_path / "nearfar.toml").write_text(CONFIG)
    row = {"query": QUESTION, "model": "large", "response": "Paris", "correct": 1}
    (tmp_path / "answers.jsonl").write_text(json.dumps(row) + "\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"NEARFAR_HOME": str(tmp_path / "data")}
    command = [sys.executable, "-m", "nearfar.cli", "serve", "--port", str(port)]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    for _ in range(300):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5).close()
            break
        except OSError:
            time.sleep(0.1)
    seen: list[str] = []
    is_over = threading.Event()
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    clients = [threading.Thread(target=_ask, args=(url, seen, is_over)) for _ in range(8)]

    for client in clients:
        client.start()
    time.sleep(after_s)
    process.send_signal(signal.SIGKILL)
    process.wait()
    is_over.set()
    for client in clients:
        client.join()

    with sqlite3.connect(tmp_path / "data" / "nearfar.db") as store:
        recorded = {id_ for (id_,) in store.execute("SELECT id FROM decisions")}
    store.close()
    assert len(seen) > 10
    assert set(seen) <= recorded
