"""`nearfar train`: adapters for agents' roles, and adapters and calibrations for routers of functional tokens."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nearfar.errors import ConfigError, DataError, RequestError

from . import options as opt
from .console import remark, stdout, write_json
from .run import DONE

if TYPE_CHECKING:
    from nearfar.config import Settings
    from nearfar.config.token_routers import TokenRouterSettings

app = typer.Typer(
    help="Fit agents' roles to tasks done well, and routers of functional tokens to labelled queries.",
    no_args_is_help=True,
)

RouterArgument = Annotated[str, typer.Argument(metavar="ROUTER", help="The router's name in the config.")]
TableArgument = Annotated[
    Path, typer.Argument(metavar="TABLE", help="Labelled queries: JSONL, CSV or parquet with `query` and `worker`.")
]
QueryColumnOption = Annotated[str, typer.Option("--query-column", help="The table's name for the query.")]
WorkerColumnOption = Annotated[str, typer.Option("--worker-column", help="The table's name for the worker.")]


@app.command("functional-tokens")
def functional_tokens(
    router: RouterArgument,
    table: TableArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the adapter.", show_default=False)],
    query_column: QueryColumnOption = "query",
    worker_column: WorkerColumnOption = "worker",
    layers: Annotated[int, typer.Option("--layers", min=1, help="Layers that get an adapter, from the top.")] = 4,
    rank: Annotated[int, typer.Option("--rank", min=1, help="Rank of the adapter's matrices.")] = 16,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes over the queries.")] = 3,
    stop_after: Annotated[
        int | None,
        typer.Option("--stop-after", min=0, help="Passes of this call; call again to go on.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the adapter's first numbers and the order.")] = 0,
    as_json: opt.JsonOption = False,
    config: opt.ConfigOption = None,
) -> int:
    """Train an adapter that makes the embedded model name the worker, and write it for llama.cpp and vLLM.

    A fifth of the queries is held back to measure on. Needs the extra "train".
    """
    from nearfar.config import Settings
    from nearfar.config.models import LlamaCppSettings
    from nearfar.router.functional_tokens.labelled import load_labelled
    from nearfar.router.functional_tokens.prompts import choice_prompt
    from nearfar.training.functional_tokens import LabelledPrompt, Recipe, train
    from nearfar.wiring.models import weights_path
    from nearfar.wiring.token_routers import worker_graph

    settings = Settings.load(config, needs_keys=False)
    found = _router(settings, router)
    base_name = found.model.partition("+")[0]
    base = settings.models[base_name]
    if not isinstance(base, LlamaCppSettings):
        raise ConfigError(f"{base_name!r} is no llama.cpp model; an adapter is trained on a GGUF file.")
    graph = worker_graph(found)
    columns = {"query": query_column, "worker": worker_column}
    queries = load_labelled(table, graph.by_name, columns)
    prompts = [
        LabelledPrompt(choice_prompt(graph.workers, each.text, "trained"), graph.by_name[each.worker].label)
        for each in queries
    ]
    trained = train(
        weights_path(base),
        [prompt for prompt, each in zip(prompts, queries, strict=True) if not each.is_held_back],
        out,
        labels=[worker.label for worker in graph.workers],
        recipe=Recipe(rank=rank, alpha=2.0 * rank, layers=layers, epochs=epochs, seed=seed),
        validation=[prompt for prompt, each in zip(prompts, queries, strict=True) if each.is_held_back],
        stop_after=stop_after,
        progress=lambda at, total, loss: remark(f"{at}/{total}, loss {loss:.3f}") if at % 20 == 0 else None,
    )
    if as_json:
        write_json(trained)
        return DONE
    measured = "" if trained.validation_accuracy is None else f", {trained.validation_accuracy:.1%} right"
    remark(f"{trained.epochs} of {epochs} passes{measured}; {trained.gguf_bytes:,} bytes")
    for line in (
        f"[models.{base_name}.loras]",
        f'router = "{trained.gguf}"',
        "",
        f"[routers.{router}]",
        f'model = "{base_name}+router"',
        'style = "trained"',
    ):
        stdout().print(line, markup=False)
    return DONE


@app.command("roles")
def roles(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE…", help="Tasks done well, API-Bank's or MetaTool's as JSONL, also as .gz.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the adapters.", show_default=False)],
    model: Annotated[
        str, typer.Option("--model", "-m", help="The llama.cpp model of the config to train.")
    ] = "smollm2",
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", min=10, help="So many tasks, drawn at random.", show_default=False)
    ] = None,
    layers: Annotated[int, typer.Option("--layers", min=1, help="Layers that get an adapter, from the top.")] = 8,
    rank: Annotated[int, typer.Option("--rank", min=1, help="Rank of the adapters' matrices.")] = 8,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes of the first stage, over all turns.")] = 2,
    seconds: Annotated[
        float | None,
        typer.Option("--seconds", min=1, help="Time of this call; call again to go on.", show_default=False),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    seed: Annotated[int, typer.Option("--seed", help="Of the adapters' first numbers, the tools and the order.")] = 0,
    as_json: opt.JsonOption = False,
    config: opt.ConfigOption = None,
) -> int:
    """Train an adapter each for the planner, the caller and the summarizer of α-UMi agents, for llama.cpp and vLLM.

    A file's own tasks have task, tools (name, description, parameters), steps (tool, arguments, observation) and
    answer. A tenth of the tasks is held back to measure on. Needs the extras train and agents.
    """
    import random

    from nearfar.config import Settings
    from nearfar.config.models import LlamaCppSettings
    from nearfar.training.role_adapters import RolesRecipe, train_roles
    from nearfar.wiring.models import weights_path

    try:
        from nearfar.agents.evaluation.benchmarks import read_rows
        from nearfar.agents.evaluation.role_turns import gold_tasks, role_turns
    except ImportError as exc:
        raise ConfigError(f"Agents need {exc.name}. Install it: pip install 'nearfar[agents]'") from exc
    settings = Settings.load(config, needs_keys=False)
    base = settings.models.get(model)
    if not isinstance(base, LlamaCppSettings):
        raise ConfigError(f"{model!r} is no llama.cpp model of the config; adapters are trained on a GGUF file.")
    tasks = gold_tasks(read_rows(files), seed=seed)
    if len(tasks) < 10:
        raise DataError(f"The files hold {len(tasks)} tasks; training takes 10 or more.", path=str(files[0]))
    random.Random(seed).shuffle(tasks)  # noqa: S311 - an order, no secret
    tasks = tasks[:limit]
    held = max(1, len(tasks) // 10)
    trained = train_roles(
        weights_path(base),
        role_turns(tasks[held:]),
        out,
        recipe=RolesRecipe(rank=rank, alpha=2.0 * rank, layers=layers, backbone_epochs=epochs, seed=seed),
        validation=role_turns(tasks[:held]),
        seconds=seconds,
        device=device,
        progress=lambda stage, at, of, loss: remark(f"{stage} {at}/{of}, loss {loss:.3f}") if at % 20 == 0 else None,
    )
    if as_json:
        write_json(trained)
        return DONE
    for stage in trained.stages:
        losses = ", ".join(
            f"{role} {trained.untrained[role]:.2f} → {loss:.2f}" for role, loss in stage.validation.items()
        )
        remark(f"{stage.name}: {stage.num_turns} turns; nats per token held back: {losses}; {stage.gguf_bytes:,} bytes")
    if not trained.is_complete:
        remark("not done yet: call again to go on")
        return DONE
    adapters = {stage.name: stage.gguf for stage in trained.stages[1:]}
    for line in (
        f"[models.{model}.loras]",
        *(f'{role} = "{path}"' for role, path in adapters.items()),
        "",
        "[agents.NAME.roles]",
        *(f'{role} = "{model}+{role}"' for role in adapters),
    ):
        stdout().print(line, markup=False)
    return DONE


@app.command("calibration")
def calibration(
    router: RouterArgument,
    table: TableArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="The policy's file.", show_default=False)],
    query_column: QueryColumnOption = "query",
    worker_column: WorkerColumnOption = "worker",
    as_json: opt.JsonOption = False,
    config: opt.ConfigOption = None,
) -> int:
    """Ask a router's choosing model about labelled queries and fit how its labels are read."""
    from nearfar.router.functional_tokens.labelled import fit_policy, load_labelled
    from nearfar.router.functional_tokens.policy import TokenPolicy
    from nearfar.wiring.token_routers import token_router

    async def main() -> TokenPolicy:
        async with opt.opened(config) as wired:
            found = _router(wired.settings, router).model_copy(update={"policy": None})
            tokens = token_router(router, found, wired.models[found.model])
            queries = load_labelled(table, tokens.graph.by_name, {"query": query_column, "worker": worker_column})
            version = TokenPolicy.load(out).version + 1 if out.exists() else 1
            return await fit_policy(
                tokens,
                queries,
                name=router,
                version=version,
                progress=lambda at, total: remark(f"{at}/{total}") if at % 50 == 0 else None,
            )

    policy = asyncio.run(main())
    policy.save(out)
    if as_json:
        write_json(policy)
        return DONE
    for name, value in policy.measured.items():
        stdout().print(f"{name:<24}{value:.3f}", markup=False)
    remark(f'{policy.label} on {policy.n} queries; use it: policy = "{out}" in [routers.{router}]')
    return DONE


def _router(settings: Settings, name: str) -> TokenRouterSettings:
    found = settings.routers.get(name)
    if found is None:
        known = ", ".join(map(repr, settings.routers)) or "none"
        raise RequestError(f"There is no router {name!r} in the config; there are: {known}.", param="router")
    return found
