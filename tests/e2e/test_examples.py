"""Every example, every Python block and every curl line of the documents runs as it stands, on the embedded model."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.weights import smollm2_path

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SERVED = "openai"  # an example or block that uses this package needs `nearfar serve`
AGENTS = ROOT / "docs" / "agents-http.md"  # whose first TOML block is the server's config


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A user with the default weights and nothing else."""
    home = tmp_path_factory.mktemp("home")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("NEARFAR", "OPENAI", "ANTHROPIC"))}
    return kept | {"HOME": str(home), "XDG_CACHE_HOME": str(smollm2_path().parents[3]), "XDG_DATA_HOME": str(home)}


@pytest.fixture(scope="module")
def server(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`nearfar serve` on a free port; its base URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "nearfar.cli", "serve", "--port", str(port)]
    folder = tmp_path_factory.mktemp("served")
    (folder / "nearfar.toml").write_text(re.findall(r"```toml\n(.*?)```", AGENTS.read_text(), re.DOTALL)[0])
    process = subprocess.Popen(command, env=environment, cwd=folder)
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(timeout=30)


def _run(code: Path, environment: dict[str, str], folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(code), *arguments],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run(example: Path, environment: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest):
    """An example prints something and fails nowhere."""
    arguments = [request.getfixturevalue("server")] if f"import {SERVED}" in _imports(example.read_text()) else []

    assert _run(example, environment, tmp_path, *arguments).strip()


def _imports(text: str) -> str:
    return "\n".join(f"import {line.split()[1]}" for line in text.splitlines() if line.startswith(("import ", "from ")))


def _blocks() -> list[tuple[str, str]]:
    found = []
    for document in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        if document.name == "index.md":  # the README again
            continue
        for i, block in enumerate(re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL)):
            found.append((f"{document.stem}-{i}", block))
    return found


@pytest.mark.parametrize(("name", "block"), _blocks(), ids=[name for name, _ in _blocks()])
def test_python_blocks_run(
    name: str, block: str, environment: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest
):
    """A block in the documents runs as a reader would paste it."""
    if f"import {SERVED}" in _imports(block):
        block = block.replace("http://127.0.0.1:8642/v1", request.getfixturevalue("server"))
    shutil.copytree(ROOT / "docs", tmp_path / "docs")  # where a reader would be
    code = tmp_path / f"{name}.py"
    code.write_text(block)

    _run(code, environment, tmp_path)


def test_an_agents_curl_lines_run(server: str) -> None:
    """One after the other they begin a run, see it wait, show it, allow its call and go on to the answer."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    block = re.findall(r"```console\n(.*?)```", AGENTS.read_text(), re.DOTALL)[0].replace("\\\n", " ")
    lines = [line.removeprefix("$ ") for line in block.replace("http://127.0.0.1:8642/v1", server).splitlines()]

    replies = [
        subprocess.run(["bash", "-c", f"{line} --silent --fail-with-body"], capture_output=True, text=True, check=False)
        for line in lines
    ]

    assert [(reply.returncode, reply.stdout) for reply in replies if reply.returncode] == []
    begun, listed, shown, allowed, resumed = (reply.stdout for reply in replies)
    assert json.loads(begun)["status"] == "awaiting_approval"
    assert "sum" in [run["run_id"] for run in json.loads(listed)["data"]]
    assert [each["call"]["name"] for each in json.loads(shown)["approvals"]] == ["calculator"]
    assert json.loads(allowed)["is_new"] is True
    assert '"status": "answered"' in resumed.splitlines()[-2]
