"""A process that puts and deletes documents until it is killed, saying before and after each what it does.

    python tireless_writer.py FOLDER SEED

Every line on stdout is one JSON list: ["begin" | "done", document, version], a version of 0 being its deletion. "done"
is said once the change is committed. The indexes are brought up to date every few changes.
"""

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nearfar.retrieval.database import DocumentRecord
from nearfar.retrieval.writing import CollectionWriter
from nearfar.types import Chunk

NUM_DOCUMENTS = 40


class Hashed:
    """Vectors that the text's characters alone decide."""

    name = "hashed-16"
    dim = 16

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """One row per text, of length 1."""
        rows = np.array([np.random.default_rng(list(text.encode())).standard_normal(self.dim) for text in texts])
        rows = rows.reshape(len(texts), self.dim)
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    embed_queries = embed


def text_of(document: int, version: int, part: int) -> str:
    """What a part of a version says: words that no other has."""
    return f"alpha{document}v{version}p{part} beta{document}v{version}"


def write(folder: Path, seed: int) -> None:
    """Changes the collection for ever."""
    chance = random.Random(seed)
    with CollectionWriter(folder, Hashed()) as writer:
        say("ready", 0, 0)
        number = seed * 100_000
        while True:
            document = chance.randrange(NUM_DOCUMENTS)
            number += 1
            version = 0 if chance.random() < 0.35 else number
            source = f"document{document}"
            say("begin", document, version)
            if version:
                parts = range(chance.randint(1, 30))
                chunks = [Chunk(text_of(document, version, part), source, part) for part in parts]
                writer.put(DocumentRecord(source, str(version)), chunks)
                writer.flush()
            else:
                writer.delete([source])
            say("done", document, version)
            if chance.random() < 0.3:
                writer.finish()


def say(what: str, document: int, version: int) -> None:
    """One line, at once."""
    sys.stdout.write(json.dumps([what, document, version]) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]))
