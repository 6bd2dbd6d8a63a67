"""Wiring: that what the config says is what is built."""

import json
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from support.counting_upstream import CountingUpstream

from nearfar.config import Settings
from nearfar.config.keys import StoredKey, write_keys
from nearfar.errors import ConfigError, DataError, NearfarError
from nearfar.models.error_cases import WithErrorCases
from nearfar.router.cascade import UNCALIBRATED_THRESHOLD
from nearfar.router.policies import Policy, TierPolicy
from nearfar.router.scorers import IsotonicScorer
from nearfar.serving.gateway.keys import KeyRing, hash_key, new_key
from nearfar.types import FREE, Price, Query
from nearfar.wiring import build
from nearfar.wiring.gateway import gateway_settings
from nearfar.wiring.models import build_model

ROWS = [
    {"query": "capital of France?", "model": "small", "response": "Paris", "correct": 1},
    {"query": "capital of France?", "model": "gpt-4.1", "response": "It is Paris.", "correct": 1},
]
REPLAY = """
[models.near]
kind = "replay"
table = "table.jsonl"
model = "small"
placement = "near"
[models.far]
kind = "replay"
table = "table.jsonl"
model = "gpt-4.1"
"""


@pytest.fixture
def load(tmp_path):
    """Loads a config beside the table of recorded answers."""
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def load(text, **variables):
        path = tmp_path / "nearfar.toml"
        path.write_text(text)
        return Settings.load(path, environ={"NEARFAR_HOME": str(tmp_path / "home"), **variables})

    return load


@pytest.fixture
async def wire(load):
    """Builds what a config says, and closes it after the test."""
    built = []

    def wire(text, **variables):
        built.append(build(load(text, **variables)))
        return built[-1]

    yield wire
    for wired in built:
        await wired.aclose()


async def test_a_config_answers_a_query(wire):
    """A cascade of recorded answers asks near, then far, and leaves a decision in the store."""
    wired = wire(REPLAY)

    answer = await wired.router.answer(Query("capital of France?"))

    assert answer.text == "It is Paris."  # the near answer has no log-probabilities, so no score
    assert [step.tier for step in answer.decision.steps] == ["near", "far"]
    recorded = await wired.log.get(answer.decision_id)
    assert recorded is not None
    assert recorded.steps == answer.decision.steps


def test_prices_come_from_config_then_catalogue(load):
    """A far model's price is the config's, else the catalogue's at that provider, else unknown; near is free."""
    text = """
    [models.listed]
    kind = "openai"
    model = "gpt-4.1"
    [models.mine]
    kind = "openai"
    model = "gpt-4.1"
    price = { prompt_usd_per_mtok = 1, completion_usd_per_mtok = 2 }
    [models.elsewhere]
    kind = "openai"
    model = "gpt-4.1"
    url = "https://far.example/v1"
    [models.own]
    kind = "openai"
    model = "gpt-4.1"
    url = "http://127.0.0.1:8000/v1"
    placement = "near"
    [models.claude]
    kind = "anthropic"
    model = "claude-sonnet-4-5"
    """
    settings = load(text, OPENAI_API_KEY="k", ANTHROPIC_API_KEY="k")

    cards = {name: build_model(settings, name).card for name in settings.models}

    assert cards["listed"].price == Price(2.0, 8.0, 0.5)
    assert cards["listed"].context_window == 1_047_576
    assert cards["mine"].price == Price(1.0, 2.0)
    assert cards["elsewhere"].price is None
    assert cards["own"].price == FREE
    assert cards["claude"].price is not None
    assert cards["claude"].max_output_tokens == 4096


def test_uncalibrated_tiers_have_the_default_scorer(load):
    """Tiers that can defer are scored by default; a last far tier is not asked for what it may not give."""
    wired = build(load(REPLAY + '[cascades.both]\ntiers = ["near", { model = "far", draft = true, deadline_s = 3 }]\n'))
    wired.store.close()

    near, far = wired.cascades["both"].tiers

    assert near.scorer is not None
    assert not near.scorer.is_calibrated
    assert near.threshold == UNCALIBRATED_THRESHOLD
    assert far.scorer is None
    assert (far.wants_draft, far.deadline_s) == (True, 3)


async def test_a_tier_is_shown_past_mistakes(wire, tmp_path):
    """The cases of the file beside the config go into its prompt; a file that is not there is refused."""
    pytest.importorskip("wordllama", reason="the static embedder finds the cases")
    cases = tmp_path / "cases.jsonl"
    cases.write_text('{"question": "capital of Italy?", "wrong": "Milan", "right": "Rome"}\n')
    text = REPLAY + '[cascades.both]\ntiers = ["near", {{ model = "far", error_cases = "{}" }}]\n'

    _, far = wire(text.format("cases.jsonl")).cascades["both"].tiers

    assert isinstance(far.model, WithErrorCases)
    assert (await far.model.complete(Query("capital of France?"))).text == "It is Paris."
    with pytest.raises(ConfigError, match=r"nowhere\.jsonl"):
        wire(text.format("nowhere.jsonl"))


def policy(name, *, tier="near", model="near", threshold=0.25):
    """A policy with one fitted tier."""
    fitted = TierPolicy(
        model=model, scorer=IsotonicScorer("mean_logprob", (-1.0, 0.0), (0.1, 0.9)), threshold=threshold
    )
    return Policy(
        name=name, version=3, created_at=datetime(2026, 1, 1, tzinfo=UTC), nearfar_version="0", tiers={tier: fitted}
    )


def test_a_policy_sets_scorer_and_threshold(load, tmp_path):
    """The policy of a cascade decides its tiers; further ones are there by name, for queries that ask for a quality."""
    policy("careful", threshold=0.75).save(tmp_path / "careful.json")
    policy("never", threshold=None).save(tmp_path / "never.json")
    text = REPLAY + '[cascades.auto]\ntiers = ["near", "far"]\npolicy = "careful.json"\npolicies = ["never.json"]\n'

    wired = build(load(text))
    wired.store.close()

    auto = wired.cascades["auto"]
    assert auto.policy == "careful@3"
    assert (auto.tiers[0].threshold, auto.tiers[0].scorer.is_calibrated) == (0.75, True)
    assert set(auto.variants) == {"careful", "never"}
    assert auto.variants["never"].tiers[0].accepts_nothing


@pytest.mark.parametrize(
    ("fitted", "says"),
    [
        ({"tier": "other"}, "tier 'other', which cascade 'auto' has not"),
        ({"model": "other"}, "fitted on answers of 'other'"),
    ],
)
def test_a_policy_of_another_cascade_is_refused(load, tmp_path, fitted, says):
    """A policy that was fitted on other tiers or models promises nothing here."""
    policy("p", **fitted).save(tmp_path / "p.json")

    with pytest.raises(ConfigError, match=says):
        build(load(REPLAY + '[cascades.auto]\ntiers = ["near", "far"]\npolicy = "p.json"\n'))


UPSTREAM = """
[models.up]
kind = "openai"
url = "URL"
model = "m"
max_output_tokens = 20
supports_logprobs = false
price = { prompt_usd_per_mtok = 10, completion_usd_per_mtok = 10 }
"""


async def test_a_cached_answer_is_not_paid_for_again(wire):
    """With a cache, the same question costs once, also after a restart."""
    with CountingUpstream() as upstream:
        text = UPSTREAM.replace("URL", upstream.url) + "cache_ttl_s = inf\n"
        first = await wire(text).router.answer(Query("hello"))
        second = await wire(text).router.answer(Query("hello"))

    assert upstream.prompts == ["hello"]
    assert first.text == second.text == "echo: hello"
    assert second.is_cached
    assert first.cost_usd is not None
    assert first.cost_usd > 0
    assert second.cost_usd == 0


async def test_the_budget_outlives_the_process(wire):
    """The budget of the config holds over restarts: what is spent stays spent."""
    with CountingUpstream() as upstream:
        text = UPSTREAM.replace("URL", upstream.url) + "[budget]\nlimit_usd = 0.0011\n"
        statuses = []
        for i in range(6):
            wired = wire(text)
            try:
                answer = await wired.router.answer(Query(f"question {i}"))
                statuses.append(answer.decision.status)
            except NearfarError as exc:
                statuses.append(type(exc).__name__)
        spent = await wired.budget.spent()

    assert statuses[0] == "answered"
    assert statuses[-1] != "answered"
    assert len(upstream.prompts) == statuses.count("answered")
    assert spent <= 0.0011


async def test_keys_and_headers_reach_their_server_alone(wire):
    """The key and the headers of a model go out with its calls."""
    with CountingUpstream() as upstream:
        text = UPSTREAM.replace("URL", upstream.url) + 'api_key_env = "MY_KEY"\nheaders = { "X-Team" = "blue" }\n'
        await wire(text, MY_KEY="sk-mine").router.answer(Query("hello"))

    assert upstream.headers[0]["Authorization"] == "Bearer sk-mine"
    assert upstream.headers[0]["X-Team"] == "blue"


def test_missing_weights_say_how_to_fetch_them(load, tmp_path):
    """An embedded model without its file is there, unavailable, with the reason."""
    settings = load('[models.tiny]\nkind = "llama.cpp"\npath = "none.gguf"\n')

    reason = build_model(settings, "tiny").unavailable()

    assert reason is not None
    assert str(tmp_path / "none.gguf") in reason


def test_weights_that_were_not_fetched_say_the_command(load, tmp_path, monkeypatch):
    """Weights known by name and not in the cache: the plan drops the model and names the command that gets them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    wired = build(load('[models.tiny]\nkind = "llama.cpp"\nweights = "smollm2"\n'))

    (candidate,) = wired.router.plan(Query("hello")).candidates
    wired.store.close()

    assert not candidate.is_eligible
    assert "nearfar models get smollm2" in candidate.reason


def test_gateway_settings_take_every_key(load):
    """Keys from the environment and from the file open the gateway, each with its rights; a short one is refused."""
    here, approver, stored, desk, wrong = (new_key() for _ in range(5))
    settings = load(
        REPLAY + "[gateway]\nport = 1234\n", NEARFAR_API_KEYS=here, NEARFAR_APPROVER_KEYS=f"{approver}, {here}"
    )
    kept = [
        StoredKey(hash_key(stored), "k", "2026-01-01"),
        StoredKey(hash_key(desk), "desk", "2026-01-01", ("approve",)),
    ]
    write_keys(settings.keys_path, kept)

    gateway = gateway_settings(settings)

    ring = KeyRing(gateway.keys)
    rights = {key: found.rights for key in (here, approver, stored, desk) if (found := ring.find(bearer(key)))}
    assert gateway.port == 1234
    assert rights == {
        here: {"ask", "run", "approve"},
        approver: {"approve"},
        stored: {"ask", "run"},
        desk: {"approve"},
    }
    assert ring.find(bearer(wrong)) is None
    assert {here, approver} <= set(settings.secrets)
    with pytest.raises(ConfigError, match="too short"):
        gateway_settings(load(REPLAY, NEARFAR_API_KEYS="short"))


def bearer(key):
    """The header that carries the key."""
    return f"Bearer {key}".encode()


def test_beyond_loopback_needs_a_key(load):
    """An address that others can reach is refused without a key, and taken with one."""
    settings = load(REPLAY + '[gateway]\nhost = "0.0.0.0"\n')

    with pytest.raises(ConfigError, match="nearfar keys new"):
        gateway_settings(settings)
    assert gateway_settings(load(REPLAY, NEARFAR_GATEWAY_HOST="0.0.0.0", NEARFAR_API_KEYS=new_key())).host == "0.0.0.0"


def test_a_missing_table_is_one_clear_error(load):
    """A table that is not there is named."""
    settings = load(REPLAY)
    (settings.path.parent / "table.jsonl").unlink()

    with pytest.raises(DataError, match=r"table\.jsonl"):
        build(settings)


@pytest.mark.parametrize(
    ("text", "absent"),
    [
        (UPSTREAM.replace("URL", "http://127.0.0.1:9/v1"), ["xllamacpp", "starlette", "pyarrow", "sklearn", "numpy"]),
        (REPLAY, ["xllamacpp", "aiohttp", "starlette", "pyarrow", "sklearn", "numpy"]),
        ('[models.tiny]\nkind = "llama.cpp"\n', ["aiohttp", "starlette", "pyarrow", "sklearn", "numpy"]),
    ],
)
def test_only_what_is_named_is_imported(load, text, absent):
    """Building a config imports the libraries of its own models and no others."""
    settings = load(text)
    script = (
        "import sys; from nearfar.config import Settings; from nearfar.wiring import build\n"
        f"build(Settings.load({str(settings.path)!r}, environ={{'NEARFAR_HOME': {str(settings.data.dir)!r}}}))\n"
        f"print([name for name in {absent!r} if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    assert done.stdout.strip() == "[]", done.stderr
