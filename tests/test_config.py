"""Settings: what is read from where, and what is refused."""

import json
import re
from pathlib import Path

import pytest

from nearfar.config import Settings
from nearfar.config.keys import StoredKey, read_keys, write_keys
from nearfar.config.models import AnthropicSettings, LlamaCppSettings, OpenAISettings, ReplaySettings
from nearfar.errors import ConfigError

SECRET = "sk-a-secret-that-must-not-be-seen"

WHOLE = """
[models.tiny]
kind = "llama.cpp"
path = "weights/tiny.gguf"
threads = 2

[models.gpt]
kind = "openai"
model = "gpt-4.1"
price = { prompt_usd_per_mtok = 2.0, completion_usd_per_mtok = 8 }
cache_ttl_s = inf

[models.claude]
kind = "anthropic"
model = "claude-sonnet-4-5"
api_key_env = "MY_CLAUDE_KEY"

[models.old]
kind = "replay"
table = "answers.jsonl"
model = "gpt-3.5-turbo"
columns = { query = "question" }

[cascades.auto]
tiers = ["tiny", { model = "gpt", draft = true, threshold = 0.7 }]
commit = "prefix"
prefix_tokens = 8

[decisions]
text = "hash"

[gateway]
port = 9000
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home and working folder."""
    monkeypatch.chdir(tmp_path)
    return {"HOME": str(tmp_path / "home")}


def load(text, home, **variables):
    """The settings of a file with this text."""
    path = Path("nearfar.toml")
    path.write_text(text, encoding="utf-8")
    return Settings.load(environ={**home, **variables})


def refused(text, home, **variables):
    """The one line with which a file is refused."""
    with pytest.raises(ConfigError) as caught:
        load(text, home, **variables)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_whole_file_is_read(home, tmp_path):
    """Every kind of model, cascades with tiers as tables, and sections come out typed."""
    settings = load(WHOLE, home, OPENAI_API_KEY=SECRET, MY_CLAUDE_KEY="other")

    tiny, gpt, claude, old = (settings.models[name] for name in ("tiny", "gpt", "claude", "old"))
    assert isinstance(tiny, LlamaCppSettings)
    assert tiny.path == tmp_path / "weights/tiny.gguf"  # beside the file, wherever the process is
    assert isinstance(gpt, OpenAISettings)
    assert gpt.price is not None
    assert gpt.price.completion_usd_per_mtok == 8
    assert isinstance(claude, AnthropicSettings)
    assert isinstance(old, ReplaySettings)
    assert old.table == tmp_path / "answers.jsonl"
    auto = settings.cascades["auto"]
    assert [(tier.model, tier.draft, tier.threshold) for tier in auto.tiers] == [
        ("tiny", False, None),
        ("gpt", True, 0.7),
    ]
    assert settings.gateway.port == 9000
    assert settings.decisions.text == "hash"


def test_nothing_at_all_is_the_embedded_model_alone(home):
    """Without a file and without keys, there is the embedded model and a cascade of it."""
    settings = Settings.load(environ=home)

    assert list(settings.models) == ["smollm2"]
    assert [tier.model for tier in settings.cascades["auto"].tiers] == ["smollm2"]
    assert settings.path is None


@pytest.mark.parametrize(
    ("variables", "kind", "model"),
    [
        ({"OPENAI_API_KEY": SECRET}, "openai", "gpt-4.1"),
        ({"ANTHROPIC_API_KEY": SECRET}, "anthropic", "claude-sonnet-4-5"),
        ({"OPENAI_API_KEY": SECRET, "NEARFAR_FAR_MODEL": "o3"}, "openai", "o3"),
        ({"NEARFAR_FAR_URL": "https://far.example/v1", "NEARFAR_FAR_MODEL": "big"}, "openai", "big"),
    ],
)
def test_a_key_in_the_environment_is_a_far_model(home, variables, kind, model):
    """A provider's key, or a server's URL, puts a far tier behind the embedded one."""
    settings = Settings.load(environ=home | variables)

    far = settings.models["far"]
    assert far.kind == kind
    assert far.model == model  # type: ignore[union-attr]  # neither kind is the embedded one
    assert [tier.model for tier in settings.cascades["auto"].tiers] == ["smollm2", "far"]


def test_a_far_url_needs_a_model(home):
    """A server without a model's name is refused, naming the variable to set."""
    with pytest.raises(ConfigError, match="NEARFAR_FAR_MODEL"):
        Settings.load(environ={**home, "NEARFAR_FAR_URL": "https://far.example/v1"})


def test_without_cascades_near_models_come_first(home):
    """The cascade that nobody wrote asks near models before far ones, in the file's order otherwise."""
    text = """
    [models.gpt]
    kind = "openai"
    model = "gpt-4.1"
    [models.served]
    kind = "openai"
    url = "http://127.0.0.1:8000/v1"
    model = "qwen"
    placement = "near"
    [models.tiny]
    kind = "llama.cpp"
    """

    settings = load(text, home, OPENAI_API_KEY=SECRET)

    assert [tier.model for tier in settings.cascades["auto"].tiers] == ["served", "tiny", "gpt"]


def test_the_environment_overrides_the_file(home, tmp_path):
    """NEARFAR_<SECTION>_<KEY> wins over the file, in the type that the setting has."""
    settings = load(
        "[gateway]\nport = 9000\nhost = '127.0.0.1'",
        home,
        NEARFAR_GATEWAY_PORT="9001",
        NEARFAR_GATEWAY_ALLOW_ORIGINS="https://a.example, https://b.example",
        NEARFAR_HOME=str(tmp_path / "data"),
    )

    assert settings.gateway.port == 9001
    assert settings.gateway.allow_origins == ("https://a.example", "https://b.example")
    assert settings.store_path == tmp_path / "data/nearfar.db"
    sources = {each.key: each.source for each in settings.describe()}
    assert sources["gateway.port"] == "$NEARFAR_GATEWAY_PORT"
    assert sources["gateway.host"] == "nearfar.toml"
    assert sources["gateway.max_body_bytes"] == "default"
    assert sources["data.dir"] == "$NEARFAR_HOME"


def test_the_config_variable_names_the_file(home, tmp_path):
    """$NEARFAR_CONFIG goes before the file in the working folder, and must exist."""
    Path("nearfar.toml").write_text("[gateway]\nport = 1\n")
    other = tmp_path / "other.toml"
    other.write_text("[gateway]\nport = 2\n")

    assert Settings.load(environ={**home, "NEARFAR_CONFIG": str(other)}).gateway.port == 2
    with pytest.raises(ConfigError, match=r"'gone.toml'.*NEARFAR_CONFIG"):
        Settings.load(environ={**home, "NEARFAR_CONFIG": "gone.toml"})


def test_secrets_are_seen_nowhere(home):
    """Keys and headers are in no repr and in nothing that is shown, and come out only by asking for them."""
    text = WHOLE.replace('model = "gpt-4.1"', f'model = "gpt-4.1"\nheaders = {{ "X-Team" = "{SECRET}2" }}')

    settings = load(text, home, OPENAI_API_KEY=SECRET, MY_CLAUDE_KEY=SECRET + "3", NEARFAR_API_KEYS=SECRET + "4")

    assert SECRET not in repr(settings)
    assert SECRET not in repr(settings.describe())
    assert set(settings.secrets) == {SECRET, SECRET + "2", SECRET + "3", SECRET + "4"}


def test_a_missing_key_is_an_error_or_a_finding(home):
    """A model whose key is not set stops a run, and is named where the config is only looked at."""
    with pytest.raises(ConfigError, match=r"'gpt'.*\$OPENAI_API_KEY.*not set"):
        load(WHOLE, home, MY_CLAUDE_KEY="k")

    settings = Settings.load(environ=home, needs_keys=False)

    assert settings.missing_keys == {"gpt": "OPENAI_API_KEY", "claude": "MY_CLAUDE_KEY"}


TINY = '[models.tiny]\nkind = "llama.cpp"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[models.tiny\n", r"not valid TOML.*line 1"),
        (
            "[gatway]\nport = 1",
            r"line 1: unknown section 'gatway' \(did you mean 'gateway'\?\); valid sections: models,",
        ),
        (
            "[gateway]\nprot = 1",
            r"line 2: unknown key 'prot' in \[gateway\] \(did you mean 'port'\?\); valid keys: host",
        ),
        ('[gateway]\nport = "many"', r"line 2: gateway.port .*not 'many'"),
        ("[gateway]\nport = 70000", r"gateway.port .*65535.*not 70000"),
        ("gateway = 1", r"'gateway' must be a table"),
        ('[models.x]\nkind = "lama.cpp"', r"did you mean 'llama.cpp'.*\"openai\""),
        ("[models.x]\nmodel = 'm'", r"models.x has no kind"),
        ("[models.x]\nkind = ['openai']", r"models.x.kind is \['openai'\].*; use one of"),
        ('[models.x]\nkind = "openai"', r"models.x.model is missing"),
        ('[models.x]\nkind = "openai"\nmodel = "m"\nurl = "far.example"', r"models.x.url must begin with http"),
        (
            '[models.x]\nkind = "openai"\nmodel = "m"\napi_key = "sk-1"',
            r"unknown key 'api_key'.*did you mean 'api_key_env'",
        ),
        (TINY + 'weights = "smollm2"\npath = "a.gguf"', r"both path and weights"),
        (TINY + "attempts = 0", r"models.tiny.attempts .*not 0"),
        (TINY + '[cascades.auto]\ntiers = ["tinny"]', r"names the model 'tinny'.*did you mean 'tiny'"),
        (TINY + '[cascades.auto]\ntiers = ["tiny", "tiny"]', r"two tiers named 'tiny'"),
        (TINY + "[cascades.auto]\ntiers = []", r"cascades.auto.tiers must be a list"),
        (TINY + '[cascades.auto]\ntiers = [{ model = "tiny", treshold = 0.5 }]', r"did you mean 'threshold'"),
        (TINY + '[cascades.auto]\ntiers = [{ model = "tiny", threshold = 1.5 }]', r"tiers.0.threshold .*not 1.5"),
        (TINY + '[cascades.auto]\ntiers = [{ model = "tiny", draft = true }]', r"first tier has no earlier draft"),
        (TINY + '[cascades.auto]\ntiers = ["tiny"]\nprefix_tokens = 4', r"prefix_tokens, which needs commit"),
        (TINY + '[cascades.tiny]\ntiers = ["tiny"]', r"'tiny' is both a model and a cascade"),
        ("[agents.a]\nroles = 'planner'", r"agents.a.roles must be a table"),
        ("[agents.a]\nroles = { planner = 5 }", r"agents.a.roles.planner must be a table"),
        ("[routers.r]\nworkers = ['a']", r"routers.r.workers must be a table"),
        ("[embedders.e]\nmodel = 'm'", r"line 1: embedders.e has no kind"),
        ('[models."a b"]\nkind = "llama.cpp"', r"'a b' is no name"),
        ('[budget]\nperiod = "day"', r"budget.period is set and budget.limit_usd is not"),
        ('[budget]\nkilled_calls = "returned"', r"budget.killed_calls is set and budget.limit_usd is not"),
        ("[decisions]\nretention_days = 0", r"decisions.retention_days .*not 0"),
        (
            TINY + '[cascades.auto]\npolicy = "p.json"\ntiers = [{ model = "tiny", threshold = 0.5 }]',
            r"a policy and a threshold on 'tiny'",
        ),
    ],
)
def test_a_wrong_file_is_one_line_with_the_fix(home, text, says):
    """Each mistake is refused by a line that names the file, the key and what would do."""
    message = refused(text, home)

    assert re.search(says, message), message
    assert "nearfar.toml" in message


def test_a_file_that_is_not_utf8_is_refused(home):
    """A file in another encoding is named, with the byte at fault."""
    Path("nearfar.toml").write_bytes(b"# caf\xe9\n")

    with pytest.raises(ConfigError, match=r"not UTF-8 \(byte 5\)"):
        Settings.load(environ=home)


@pytest.mark.parametrize("name", ["NEARFAR_GATWAY_PORT", "NEARFAR_GATEWAY_PROT", "NEARFAR_CONFG"])
def test_a_misspelt_variable_is_refused(home, name):
    """A variable that looks like one of ours and is none is an error, not silence."""
    with pytest.raises(ConfigError, match=rf"\${name}.*did you mean"):
        Settings.load(environ={**home, name: "1"})


def test_a_wrong_variable_names_itself(home):
    """A value of the wrong type in the environment says which variable it came from."""
    with pytest.raises(ConfigError, match=r"gateway.port.*'x'.*NEARFAR_GATEWAY_PORT"):
        Settings.load(environ={**home, "NEARFAR_GATEWAY_PORT": "x"})


def test_variables_of_others_are_left_alone(home):
    """A variable that only shares the prefix is not ours to judge."""
    settings = Settings.load(environ={**home, "NEARFAR_SOMETHING_QUITE_DIFFERENT": "1"})

    assert settings.gateway.port == 8642


def test_gateway_keys_survive_the_file(tmp_path):
    """Stored keys come back as they were written, and nobody else may read them."""
    path = tmp_path / "data/keys.json"
    keys = (
        StoredKey("a" * 64, "laptop", "2026-01-01T00:00:00+00:00"),
        StoredKey("b" * 64, "phone", "2026-01-02", ("approve",)),
    )

    write_keys(path, keys)

    assert read_keys(path) == keys
    assert path.stat().st_mode & 0o077 == 0
    assert read_keys(tmp_path / "none.json") == ()


def test_a_key_from_before_there_were_rights_may_not_approve(tmp_path):
    """It goes on asking models and running agents."""
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [{"sha256": "a" * 64, "name": "old", "created_at": "2026-01-01"}]}))

    (key,) = read_keys(path)

    assert key.rights == ("ask", "run")


def test_a_broken_keys_file_is_refused(tmp_path):
    """A keys file that is not one is named rather than taken for no keys."""
    path = tmp_path / "keys.json"
    path.write_text("{}")

    with pytest.raises(ConfigError, match=r"keys.json"):
        read_keys(path)
