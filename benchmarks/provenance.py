"""What a published number needs to be measured again: command, commit, machine, versions, and where the data are."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import nearfar

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def provenance(command: str, packages: Iterable[str] = ()) -> dict[str, Any]:
    """The facts that go at the head of a results file; no host name and no path."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return {
        "command": command,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": {
            "cpu": found[1].strip() if found else platform.processor(),
            "cores": os.cpu_count(),
            "system": platform.system(),
        },
        "versions": {"nearfar": nearfar.__version__, "python": platform.python_version()}
        | {package: _version(package) for package in packages},
    }


def commit() -> str:
    """The checkout's commit, marked where the package differs from it."""
    head = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if head.returncode:
        return "unknown"
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "nearfar/router"], cwd=ROOT, check=False)
    return head.stdout.strip() + ("+changes" if changed.returncode else "")


def data_folder() -> Path:
    """$NEARFAR_DATA, or ../shared/data beside the checkout; ends the run with a reason where it is missing."""
    folder = Path(os.environ.get("NEARFAR_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        sys.exit(f"skipped: no evaluation data at {str(folder)!r}; set NEARFAR_DATA")
    return folder


def save(results: Mapping[str, Any], name: str, out: Path = RESULTS) -> Path:
    """Writes `results` to NAME.json and returns its path."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    return path


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
