"""Routers of functional tokens as a user sets them up: the config, the shell, and the embedded model that chooses."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.weights import smollm2_path

from nearfar.config import Settings
from nearfar.errors import ConfigError, DataError
from nearfar.router.functional_tokens.labelled import LabelledQuery, fingerprint, load_labelled
from nearfar.wiring.token_routers import worker_graph

WORKERS = """
[models.smollm2]
kind = "llama.cpp"
path = "{path}"
parallel = 1

[models.recorded]
kind = "replay"
table = "table.jsonl"
model = "small"
placement = "near"

[routers.domain]
model = "smollm2"
general = "other"
{options}

[routers.domain.workers.other]
model = "recorded"
description = "everything else"

[routers.domain.workers.code]
model = "recorded"
description = "programs in Python"
label = "X"

[routers.domain.workers.math]
model = "recorded"
description = "sums and word problems"

[data]
dir = "data"
"""


def config(path: object = "none.gguf", options: str = "") -> str:
    """A config with a router of three workers."""
    return WORKERS.format(path=path, options=options)


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str], Settings]:
    """Loads a config file of this text."""

    def load(text: str) -> Settings:
        (tmp_path / "nearfar.toml").write_text(text)
        return Settings.load(tmp_path / "nearfar.toml", environ={"NEARFAR_HOME": str(tmp_path)})

    return load


def test_workers_without_a_label_get_letters_that_are_free(load: Callable[[str], Settings]) -> None:
    """In the order of the file, beside those that have one."""
    graph = worker_graph(load(config()).routers["domain"])

    assert {worker.name: worker.label for worker in graph.workers} == {"other": "A", "code": "X", "math": "B"}
    assert graph.general == "other"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (config(options='modle = "smollm2"'), "unknown key 'modle'"),
        (config().replace('general = "other"', 'general = "othr"'), r"'othr', which is no worker.*mean 'other'"),
        (config().replace('model = "smollm2"', 'model = "smol"'), r"names the model 'smol'.*mean 'smollm2'"),
        (config().replace('label = "X"', 'lable = "X"'), r"unknown key 'lable' in \[routers.domain.workers.code\]"),
        (config(options="abstain_below = 1.5"), "less than or equal to 1"),
        (config().replace("routers.domain", "routers.smollm2"), "both a model and a router"),
        (config() + '[cascades.domain]\ntiers = ["recorded"]\n', "both a router and a cascade"),
    ],
)
def test_what_is_wrong_in_a_router_is_named(load: Callable[[str], Settings], text: str, message: str) -> None:
    """With the key at fault, and what was meant."""
    with pytest.raises(ConfigError, match=message):
        load(text)


def test_a_router_may_be_the_default_target(load: Callable[[str], Settings]) -> None:
    """Then queries that name nothing go through it, and there is no default cascade."""
    settings = load(config().replace("routers.domain", "routers.auto"))

    assert set(settings.routers) == {"auto"}
    assert not settings.cascades


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs nearfar in a folder whose config has a router that the embedded model chooses for."""
    folder = tmp_path_factory.mktemp("router")
    row = {"query": "What is 2 + 3?", "model": "small", "response": "5", "correct": 1}
    (folder / "table.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "nearfar.toml").write_text(config(smollm2_path()))
    (folder / "with_policy.toml").write_text(config(smollm2_path(), 'policy = "domain.json"'))
    long_label = config(smollm2_path()).replace('label = "X"', 'label = "Bureaucratically"')
    (folder / "long_label.toml").write_text(long_label)
    code = [{"query": f"Write a function that returns {n}.", "worker": "code"} for n in range(40)]
    math = [{"query": f"What is {n} plus {n + 3}?", "worker": "math"} for n in range(40)]
    (folder / "labels.jsonl").write_text("".join(json.dumps(each) + "\n" for each in (*code, *math)))
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "LANG", "PYTHONPATH"}}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "nearfar.cli", *arguments],
            cwd=folder,
            env={**kept, "HOME": str(folder)},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    return run


def test_a_router_answers_and_shows_its_distribution(shell: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """`route` shows every worker's probability and asks none; `ask` goes to one and says which."""
    routed = shell("route", "-m", "domain", "--json", "What is 2 + 3?")
    answered = shell("ask", "-m", "domain", "--json", "--explain", "What is 2 + 3?")

    routing = json.loads(routed.stdout)["routing"]
    assert set(routing["probabilities"]) == {"other", "code", "math"}
    assert sum(routing["probabilities"].values()) == pytest.approx(1)
    decision = json.loads(answered.stdout)["decision"]
    assert decision["target"] == "domain"
    assert decision["routing"]["tier"] == decision["tier"] in {"other", "code", "math"}
    assert decision["routing"]["costs"][0]["usage"]["completion_tokens"] == 1


def test_models_lists_the_routers(shell: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """With each worker's model."""
    shown, as_json = shell("models"), shell("models", "--json")

    assert "smollm2 chooses among other (recorded), code (recorded), math (recorded)" in shown.stdout
    assert set(json.loads(as_json.stdout)["routers"]["domain"]) == {"other", "code", "math"}


def test_a_calibration_is_fitted_and_used(shell: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """It says how right it is on queries that were held back, counts its versions, and decisions cite it."""
    first = shell("train", "calibration", "domain", "labels.jsonl", "--out", "domain.json", "--json")
    second = shell("train", "calibration", "domain", "labels.jsonl", "--out", "domain.json", "--json")
    routed = shell("route", "-m", "domain", "--json", "-c", "with_policy.toml", "What is 2 + 3?")

    assert first.returncode == 0, first.stderr
    policy = json.loads(first.stdout)
    assert policy["n"] == 80
    assert 0 < policy["measured"]["n"] < 40
    assert policy["measured"].keys() >= {"accuracy", "accuracy_before", "accuracy_uncalibrated"}
    assert json.loads(second.stdout)["version"] == 2
    assert json.loads(routed.stdout)["routing"]["by"] == "domain domain@2"


def test_a_router_that_is_not_there_is_named(shell: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """With those that are."""
    failed = shell("train", "calibration", "domian", "labels.jsonl", "--out", "x.json")

    assert failed.returncode != 0
    assert "no router 'domian'" in failed.stderr
    assert "'domain'" in failed.stderr


def test_training_without_its_extra_says_what_to_install(
    shell: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """One line with the command."""
    if find_spec("torch") is not None:
        pytest.skip("torch is installed")

    failed = shell("train", "functional-tokens", "domain", "labels.jsonl", "--out", "adapter")

    assert failed.returncode != 0
    assert "nearfar[train]" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_labelled_queries_are_read_by_their_columns(tmp_path: Path) -> None:
    """Names may differ; the fingerprint is of what was read."""
    (tmp_path / "rows.csv").write_text("prompt,who\nadd 1 and 2,math\nsort a list,code\n")

    found = load_labelled(tmp_path / "rows.csv", ["math", "code"], {"query": "prompt", "worker": "who"})

    assert found == [LabelledQuery("add 1 and 2", "math"), LabelledQuery("sort a list", "code")]
    assert fingerprint(found) != fingerprint(found[::-1])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"query": "a", "worker": "cook"}], "row 1: 'worker' is 'cook'; the workers are 'math', 'code'"),
        ([{"query": "a", "worker": "math"}, {"query": " ", "worker": "math"}], "row 2 has no text"),
        ([{"worker": "math"}], "row 1 has no text"),
        ([], "no rows"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path: Path, rows: list[dict[str, str]], message: str) -> None:
    """The row and the column at fault."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    with pytest.raises(DataError, match=message):
        load_labelled(tmp_path / "rows.jsonl", ["math", "code"])


def test_copies_of_a_query_are_on_one_side() -> None:
    """Blanks and case make no difference to whether figures are measured on it; about a fifth is held back."""
    held = [LabelledQuery(f"query  Number {n}", "a").is_held_back for n in range(500)]

    assert held == [LabelledQuery(f"Query number {n} ", "b").is_held_back for n in range(500)]
    assert 60 < sum(held) < 140


def test_doctor_checks_the_labels(shell: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """A label that is not one token is found before any query."""
    good = json.loads(shell("doctor", "--json").stdout)
    bad = json.loads(shell("doctor", "--json", "-c", "long_label.toml").stdout)

    assert next(each for each in good["checks"] if each["name"] == "domain")["state"] == "ok"
    failed = next(each for each in bad["checks"] if each["name"] == "domain")
    assert failed["state"] == "failed"
    assert "'Bureaucratically' of worker 'code' is not one token" in failed["says"]
