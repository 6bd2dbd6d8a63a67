"""A classifier as the first tier: what it is not sure of, the embedded model answers; and saying how good that was."""

import tempfile
from pathlib import Path

from nearfar import Message, Nearfar, Query

CONFIG = f"""
[models.rules]
kind = "python"
callable = "{Path(__file__).resolve().as_posix()}:classify"

[models.smollm2]
kind = "llama.cpp"

[cascades.auto]
tiers = [{{ model = "rules", threshold = 0.8 }}, "smollm2"]
"""


def classify(query: Query) -> tuple[str, dict[str, float]]:
    """The level of a log line, and how sure that is: any callable will do, a fitted one too."""
    line = query.text.lower()
    if "failed" in line or "timeout" in line:
        return "error", {"confidence": 0.95}
    return "info", {"confidence": 0.9 if "started" in line else 0.4}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "nearfar.toml"
        path.write_text(CONFIG)
        with Nearfar.from_config(path) as nearfar:
            for line in ("Connection failed: timeout after 30 s", "Disk usage is at 91 %"):
                messages = (
                    Message("system", "Say the log level in one word: error, warning, info."),
                    Message("user", line),
                )
                answer = nearfar.answer_sync(Query(messages))
                print(f"{answer.tier:8} {answer.text.strip()[:40]!r:42} {line}")
                nearfar.tell_sync(answer.decision_id, 1.0)
