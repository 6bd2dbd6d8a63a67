"""What starting costs: `import nearfar`, `nearfar --help` and `nearfar route` beside dull baselines, in wall time.

    python benchmarks/startup.py [--runs 31] [--out benchmarks/results/startup.json]

Every sample is a fresh interpreter; the samples of all subjects are interleaved, so that what else the machine does
falls on all alike. Medians, with the 5th and 95th percentile. Byte code is compiled beforehand.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import nearfar

ROOT = Path(__file__).resolve().parent.parent
#: As many commands as nearfar has, sub-commands counted, each with an option and a sentence of help.
_COMMANDS = 18

_BARE_APP = "import typer\napp = typer.Typer()\n" + "".join(
    f'@app.command()\ndef command_{i}(name: str = "x") -> None:\n    """Does the thing number {i} and says so."""\n'
    for i in range(_COMMANDS)
)


def subjects(folder: Path) -> dict[str, list[str]]:
    """What is timed: a name and its command line."""
    bare = folder / "bare_app.py"
    bare.write_text(_BARE_APP + "app()\n")
    python = sys.executable
    return {
        "bare interpreter": [python, "-c", "pass"],
        "import asyncio": [python, "-c", "import asyncio"],
        "import nearfar": [python, "-c", "import nearfar"],
        "import nearfar; Query": [python, "-c", "from nearfar import Query"],
        f"bare typer app of {_COMMANDS} commands, --help": [python, str(bare), "--help"],
        "nearfar --help": [python, "-m", "nearfar.cli", "--help"],
        "nearfar --version": [python, "-m", "nearfar.cli", "--version"],
    }


def measure(runs: int) -> dict[str, list[float]]:
    """Seconds of every run, by subject."""
    compileall.compile_dir(str(ROOT / "nearfar"), quiet=1)
    with tempfile.TemporaryDirectory() as folder:
        commands = subjects(Path(folder))
        compileall.compile_dir(folder, quiet=1)
        times: dict[str, list[float]] = {name: [] for name in commands}
        environment = {**os.environ, "HOME": folder, "NEARFAR_HOME": folder, "PYTHONPATH": str(ROOT)}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for run in range(runs + 1):
            for name, command in commands.items():
                started = time.perf_counter()
                subprocess.run(command, check=True, env=environment, cwd=folder, stdout=subprocess.DEVNULL)
                if run:  # the first warms the file cache
                    times[name].append(time.perf_counter() - started)
    return times


def main() -> None:
    """Measures, prints and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=31)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/startup.json")
    arguments = parser.parse_args()
    times = measure(arguments.runs)
    medians = {name: statistics.median(values) for name, values in times.items()}
    idle = medians["bare interpreter"]
    bare_app = next(name for name in times if name.startswith("bare typer"))
    ratios = {
        "import nearfar over import asyncio": (medians["import nearfar"] - idle) / (medians["import asyncio"] - idle),
        "nearfar --help over the bare typer app": medians["nearfar --help"] / medians[bare_app],
    }
    result = {
        "command": shlex.join(["python", "benchmarks/startup.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "python": platform.python_version(),
        "versions": {"nearfar": nearfar.__version__, "typer": version("typer"), "rich": version("rich")},
        "runs": arguments.runs,
        "aims": {"import nearfar over import asyncio": 2.0, "nearfar --help over the bare typer app": 3.0},
        "ratios": {name: round(value, 3) for name, value in ratios.items()},
        "wall_ms": {
            name: {
                "median": round(medians[name] * 1e3, 1),
                "p5": round(statistics.quantiles(values, n=20)[0] * 1e3, 1),
                "p95": round(statistics.quantiles(values, n=20)[-1] * 1e3, 1),
                "over_bare_interpreter": round((medians[name] - idle) * 1e3, 1),
            }
            for name, values in times.items()
        },
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    for name, row in result["wall_ms"].items():
        print(f"{name:<46} {row['median']:7.1f} ms  [{row['p5']:.1f}, {row['p95']:.1f}]")
    for name, ratio in ratios.items():
        print(f"{name:<46} {ratio:7.2f} ×   (aim: at most {result['aims'][name]:g})")


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
