"""Indexing and deletion killed at random moments: nothing committed is lost, and nothing deleted comes back."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("numpy", reason="vectors are numpy's")
pytest.importorskip("bm25s", reason="needs nearfar[retrieval]")
pytest.importorskip("faiss", reason="needs nearfar[retrieval]")

from support.tireless_writer import NUM_DOCUMENTS, Hashed, text_of

from nearfar.retrieval.collection import Collection
from nearfar.retrieval.writing import CollectionWriter

WRITER = Path(__file__).parent.parent / "support" / "tireless_writer.py"


def run_and_kill(folder: Path, seed: int, after_s: float) -> list[list]:
    """What a writer said until it was killed."""
    path = [str(Path(__file__).parent.parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(WRITER), str(folder), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        ready = process.stdout.readline()
        assert b"ready" in ready
        time.sleep(after_s)
        process.send_signal(signal.SIGKILL)
        said = process.stdout.read()
    return [json.loads(line) for line in said.splitlines(keepends=True) if line.endswith(b"\n")]


def believe(possible: dict[int, set[int]], said: list[list]) -> None:
    """What each document may be after what was said: the last that was done, and the one that was begun since."""
    for what, document, version in said:
        if what == "begin":
            possible.setdefault(document, {0}).add(version)
        else:
            possible[document] = {version}


def check(collection: Collection, possible: dict[int, set[int]]) -> int:
    """How many documents there are; each is in one of its possible versions, whole, and found by both indexes."""
    found = collection.versions(collection.sources())
    for document in range(NUM_DOCUMENTS):
        source = f"document{document}"
        version = int(found.get(source, 0))
        assert version in possible.get(document, {0}), f"{source} is {version}, not one of {possible.get(document)}"
        possible[document] = {version}
        chunks = collection.chunks(source)
        assert [chunk.text for chunk in chunks] == [text_of(document, version, part) for part in range(len(chunks))]
        assert bool(chunks) == bool(version)
        if version:
            by_words = collection.search(f"alpha{document}v{version}p0", k=1, mode="words")
            by_vectors = collection.search(text_of(document, version, 0), k=1, mode="vectors")
            assert by_words[0].chunk == by_vectors[0].chunk == chunks[0]
    everything = collection.search("?", k=100_000, mode="vectors")
    num_chunks = sum(len(collection.chunks(f"document{document}")) for document in range(NUM_DOCUMENTS))
    assert len(everything) == num_chunks  # no ghost of an older version either
    return len(found)


@pytest.mark.parametrize("num_kills", [6, pytest.param(200, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])])
def test_kills_lose_and_revive_nothing(tmp_path, num_kills, record_property):
    """After every kill the collection opens, before anybody repairs it, and holds what was committed."""
    folder = tmp_path / "killed"
    chance = random.Random(7)
    possible: dict[int, set[int]] = {}
    num_changes = 0

    for seed in range(num_kills):
        said = run_and_kill(folder, seed, chance.uniform(0, 0.6))
        believe(possible, said)
        num_changes += sum(what == "done" for what, _, _ in said)
        with Collection(folder, Hashed()) as collection:
            check(collection, possible)

    with CollectionWriter(folder, Hashed()) as writer:
        writer.finish()
    with Collection(folder, Hashed()) as collection:
        assert check(collection, possible) > 0
        assert collection.search("?", k=1, mode="words") == []
    assert num_changes > 0
    record_property("kills", num_kills)
    record_property("committed_changes", num_changes)
