"""How fast `nearfar batch` is, and how much memory it takes, as the number of records grows.

    python benchmarks/batch.py [--records 10000,30000,100000] [--out benchmarks/results/batch.json]

Each count is one real `nearfar batch` process over a replayed model: a table of 100 recorded answers and a file of
records that ask for them, with the decision log on. Memory is the process's highest resident set as the kernel
counted it; flat means that ten times the records take about the same. One run is killed half-way and resumed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import nearfar

ROOT = Path(__file__).resolve().parent.parent
_ANSWERS = 100
_CONFIG = """
[models.recorded]
kind = "replay"
table = "table.jsonl"
model = "recorded"
placement = "near"
[cascades.auto]
tiers = ["recorded"]
"""


@dataclass(frozen=True)
class Run:
    """One finished process."""

    records: int
    wall_s: float
    peak_rss_mb: float
    report: dict[str, object]


def prepare(folder: Path, records: int) -> None:
    """Writes the config, the table and the records."""
    (folder / "nearfar.toml").write_text(_CONFIG)
    rows = ({"query": _question(i), "model": "recorded", "response": _answer(i), "correct": 1} for i in range(_ANSWERS))
    _write(folder / "table.jsonl", rows)
    _write(folder / "in.jsonl", ({"id": i, "prompt": _question(i % _ANSWERS)} for i in range(records)))


def _question(i: int) -> str:
    return f"Question {i}: {hashlib.sha256(str(i).encode()).hexdigest()} and what of it?"


def _answer(i: int) -> str:
    return f"Answer {i}: " + " ".join(hashlib.sha256(f"{i}-{j}".encode()).hexdigest() for j in range(4))


def _write(path: Path, rows: Iterator[dict[str, object]]) -> None:
    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def command(out: str) -> list[str]:
    """The command that is measured."""
    return [sys.executable, "-m", "nearfar.cli", "batch", "in.jsonl", out, "--concurrency", "32", "--json"]


def run(folder: Path, records: int, out: str) -> Run:
    """Runs the batch to its end."""
    started = time.perf_counter()
    child = subprocess.Popen(
        command(out), cwd=folder, env=_environment(folder), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert child.stdout is not None
    text = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    wall_s = time.perf_counter() - started
    if child.returncode:
        raise SystemExit(f"the batch of {records:,} records ended with {child.returncode}")
    return Run(records, wall_s, usage.ru_maxrss / 1024, json.loads(text))


def killed_and_resumed(folder: Path, records: int) -> dict[str, object]:
    """Kills a run about half-way, resumes it, and says how much was kept."""
    journal = folder / "killed.jsonl.partial"
    half = records // 2
    child = subprocess.Popen(
        command("killed.jsonl"),
        cwd=folder,
        env=_environment(folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while child.poll() is None and (not journal.exists() or _lines(journal) < half):
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    kept = _lines(journal) - 1
    resumed = run(folder, records, "killed.jsonl")
    same = _digest(folder / "killed.jsonl") == _digest(folder / "out.jsonl")
    return {
        "records": records,
        "kept": kept,
        "resumed": resumed.report["resumed"],
        "answered": resumed.report["answered"],
        "same_answers_as_an_unbroken_run": same,
    }


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")


def _digest(path: Path) -> str:
    """Of what must not depend on the run."""
    digest = hashlib.sha256()
    with path.open() as file:
        for line in file:
            row = json.loads(line)
            digest.update(json.dumps([row["index"], row["id"], row["status"], row["answer"]]).encode())
    return digest.hexdigest()


def _environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "LANG"}}
    return {**kept, "HOME": str(folder), "NEARFAR_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT)}


def main() -> None:
    """Measures, prints and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", default="10000,30000,100000")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/batch.json")
    arguments = parser.parse_args()
    counts = [int(count) for count in arguments.records.split(",")]
    runs = []
    for count in counts:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            prepare(folder, count)
            done = run(folder, count, "out.jsonl")
            runs.append(done)
            rate = count / done.wall_s
            print(f"{count:>9,} records  {done.wall_s:7.1f} s  {rate:8,.0f} records/s  peak {done.peak_rss_mb:6.1f} MB")
            if count == counts[0]:
                kill = killed_and_resumed(folder, count)
                print(f"{count:>9,} records  killed with {kill['kept']:,} done, resumed: {kill['resumed']:,} kept")
    result = {
        "command": shlex.join(["python", "benchmarks/batch.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "python": platform.python_version(),
        "nearfar": nearfar.__version__,
        "runs": [
            {
                "records": each.records,
                "wall_s": round(each.wall_s, 2),
                "records_per_s": round(each.records / each.wall_s, 1),
                "peak_rss_mb": round(each.peak_rss_mb, 1),
                "answered": each.report["answered"],
            }
            for each in runs
        ],
        "growth_bytes_per_record": round(
            (runs[-1].peak_rss_mb - runs[0].peak_rss_mb) * 2**20 / max(1, counts[-1] - counts[0]), 1
        ),
        "killed_and_resumed": kill,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
