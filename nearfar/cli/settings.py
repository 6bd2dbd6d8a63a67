"""`nearfar init` and `nearfar config`: writing the config, and showing what is in force."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from nearfar.errors import ConfigError

from . import options as opt
from .console import escape, remark, table, write, write_json
from .run import DONE

#: Where the common servers listen unless told otherwise.
_SERVERS = {"ollama": 11434, "vllm": 8000, "llamacpp": 8080, "lmstudio": 1234}
_PROBE_TIMEOUT_S = 1.0


def show_config(
    everything: Annotated[bool, typer.Option("--all", "-a", help="Those that nobody has set, too.")] = False,
    as_json: opt.JsonOption = False,
    config: opt.ConfigOption = None,
) -> int:
    """Show every setting and where it came from."""
    from nearfar.config import Settings

    settings = Settings.load(config, needs_keys=False)
    values = settings.describe()
    if as_json:
        write_json(
            {
                "file": str(settings.path.absolute()) if settings.path else None,
                "settings": {each.key: {"value": each.value, "source": each.source} for each in values},
            }
        )
        return DONE
    from .views import pretty

    remark(f"file: {settings.path.absolute()}" if settings.path else "no config file; nearfar init writes one")
    rows = []
    for each in values:
        style = "dim" if each.source == "default" else "bold" if each.source.startswith("$") else "default"
        if not everything and each.source == "default" and each.value in (None, [], {}):
            continue
        value = "—" if each.value is None else pretty(each.value)
        rows.append([f"[{style}]{escape(each.key)}[/]", escape(value), f"[dim]{escape(each.source)}[/]"])
    table(["setting", "value", "from"], rows, wrap=["value"])
    return DONE


@dataclass(frozen=True, slots=True)
class Found:
    """What `nearfar init` came across."""

    has_weights: bool
    servers: dict[str, tuple[str, list[str]]]  # name → URL, models
    far: dict[str, Any] | None  # a table of the config


def init(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("nearfar.toml"),
    user: Annotated[bool, typer.Option("--user", help="Write your own config file, used everywhere.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    as_json: opt.JsonOption = False,
) -> int:
    """Write a commented config from what is found here.

    Looks for weights, keys in the environment, and model servers at the usual loopback ports.
    """
    from nearfar.config import Settings
    from nearfar.config.environment import user_config_path
    from nearfar.config.models import found_models
    from nearfar.models import weights

    target = user_config_path() if user else path
    if target.exists() and not force:
        raise ConfigError(f"{str(target)!r} is there already. Edit it, or replace it: nearfar init --force.")
    found = Found(
        weights.find("smollm2", weights.default_cache_dir()) is not None, running_servers(), found_models().get("far")
    )
    text = config_text(found)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(target)
    except OSError as exc:
        raise ConfigError(f"Cannot write {str(target)!r}: {exc.strerror}. Name another file.") from exc
    settings = Settings.load(target, needs_keys=False)  # what we write must be a config
    if as_json:
        write_json({"path": str(target.absolute()), "models": list(settings.models)})
        return DONE
    write(f"{target}\n")
    remark(f"embedded   smollm2 {'(weights are here)' if found.has_weights else '(fetch: nearfar models get smollm2)'}")
    for name, (url, names) in found.servers.items():
        remark(f"near       {name}: {url} with {len(names)} model{'s' if len(names) != 1 else ''}")
    remark(f"far        {found.far['model']}" if found.far else "far        none: no key is set (OPENAI_API_KEY, …)")
    remark('next       nearfar ask "Why is the sky blue?"   nearfar doctor')
    return DONE


def running_servers() -> dict[str, tuple[str, list[str]]]:
    """The model servers that answer on loopback at their usual ports, with what they serve."""
    from concurrent.futures import ThreadPoolExecutor

    urls = {name: f"http://127.0.0.1:{port}/v1" for name, port in _SERVERS.items()}
    with ThreadPoolExecutor(len(urls)) as pool:
        answers = dict(zip(urls, pool.map(_served, _SERVERS.values()), strict=True))
    return {name: (urls[name], served) for name, served in answers.items() if served}


def _served(port: int) -> list[str]:
    import http.client
    import json

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PROBE_TIMEOUT_S)
    try:
        connection.request("GET", "/v1/models")
        response = connection.getresponse()
        listed = json.loads(response.read(1 << 20))["data"] if response.status == 200 else []
        return [str(each["id"]) for each in listed]
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return []  # nothing there, or nothing that speaks this wire
    finally:
        connection.close()


def config_text(found: Found) -> str:
    """The commented config file."""
    near = ["smollm2"]
    parts = [_HEADER, _EMBEDDED]
    for name, (url, served) in found.servers.items():
        parts.append(_server(name, url, served))
        near.append(name)
    if found.far:
        lines = [f"{key} = {_quoted(value)}" for key, value in found.far.items()]
        parts.append(
            "[models.far]                  # somebody else's hardware: sees what the near models are unsure of\n"
        )
        parts.append("\n".join(lines) + "\n" + _FAR_COMMENTS)
    else:
        parts.append(_NO_FAR)
    tiers = ", ".join(_quoted(tier) for tier in [*near, *(["far"] if found.far else [])])
    parts.append(_CASCADE.replace("TIERS", f"tiers = [{tiers}]".ljust(30)))
    parts.append(_REST)
    return "".join(parts)


def _server(name: str, url: str, served: Sequence[str]) -> str:
    others = f"               # or {', '.join(served[1:6])}" if len(served) > 1 else ""
    return (
        f"[models.{name}]\n"
        'kind = "openai"                # any server that speaks OpenAI\'s chat completions\n'
        f"url = {_quoted(url)}\n"
        f"model = {_quoted(served[0])}{others}\n"
        'placement = "near"             # hardware that you control\n\n'
    )


def _quoted(value: object) -> str:
    import json

    return json.dumps(value, ensure_ascii=False)


_HEADER = """\
# nearfar: which models answer, and when a larger one is asked.
# `nearfar config` shows what is in force and where it came from; `nearfar doctor` checks that it works.
# Keys stay out of this file: api_key_env names the variable that holds one.

"""

_EMBEDDED = """\
[models.smollm2]
kind = "llama.cpp"             # runs inside nearfar, on this machine
weights = "smollm2"            # fetched by `nearfar models get smollm2`; or: path = "model.gguf"
# context_window = 4096        # tokens of one request
# parallel = 2                 # requests at once
# max_output_tokens = 512

"""

_FAR_COMMENTS = """\
# timeout_s = 120
# price = { prompt_usd_per_mtok = 2.0, completion_usd_per_mtok = 8.0 }   # where the catalogue is wrong
# requests_per_minute = 60
# cache_ttl_s = 86400          # answer the same question from the store

"""

_NO_FAR = """\
# A far model, for what the near ones are unsure of. Set its key in the environment and take the comments away:
# [models.far]
# kind = "openai"              # or "anthropic"
# model = "gpt-4.1"
# api_key_env = "OPENAI_API_KEY"
# url = "https://api.openai.com/v1"

"""

_CASCADE = """\
[cascades.auto]                # what is asked where nobody names a model
TIERS # in this order, until one is sure enough
# commit = "prefix"            # stream once the first tokens are sure, not the whole answer
# policy = "calibrated.policy.json"   # made by `nearfar calibrate`; without it the scores are uncalibrated

"""

_REST = """\
[decisions]
# text = "keep"                # "hash" or "drop": keep no prompts and answers in the decision log
# retention_days = 30

[budget]
# limit_usd = 5.0              # for all far calls together
# period = "day"               # "day", "month" or "total"

[gateway]
# host = "127.0.0.1"           # beyond loopback it needs a key: nearfar keys new
# port = 8642
"""
