"""`nearfar ask`: one question, one answer."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, aclosing
from typing import TYPE_CHECKING, Annotated

import typer

from nearfar.errors import NearfarError, UpstreamError

from . import options as opt
from .console import complain, printable, remark, waiting, write, write_json
from .run import DONE, FAILED

if TYPE_CHECKING:
    from nearfar.router.router import Router
    from nearfar.types import Answer, Query


def ask(
    prompt: Annotated[
        str | None, typer.Argument(help='The question; "-" or a pipe: from stdin.', show_default=False)
    ] = None,
    model: opt.ModelOption = "auto",
    system: opt.SystemOption = None,
    budget_usd: opt.BudgetOption = None,
    deadline_s: opt.DeadlineOption = None,
    privacy: opt.PrivacyOption = opt.Privacy.any,
    quality: opt.QualityOption = None,
    abstain: opt.AbstainOption = False,
    max_tokens: opt.MaxTokensOption = None,
    temperature: opt.TemperatureOption = None,
    seed: opt.SeedOption = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show the whole decision, too.", rich_help_panel=opt.OUTPUT)
    ] = False,
    as_json: opt.JsonOption = False,
    config: opt.ConfigOption = None,
) -> int:
    """Answer one question with the cheapest model that is sure enough."""
    given = opt.QueryOptions(
        model, system, budget_usd, deadline_s, privacy, quality, abstain, max_tokens, temperature, seed
    )
    query = given.query(opt.read_prompt(prompt))

    async def main() -> int:
        async with opt.opened(config) as wired:
            opt.refuse_contradictions(wired, query)
            if as_json:
                return await _ask_json(wired.router, query, explain=explain)
            answer = await stream_answer(wired.router, query)
            return _conclude(answer, explain=explain)

    return asyncio.run(main())


async def stream_answer(router: Router, query: Query) -> Answer:
    """The answer, shown on stdout as it comes.

    Raises:
        NearfarError: nobody answered.
    """
    from nearfar.types import StreamEnd, StreamStart, TextDelta

    answer: Answer | None = None
    has_text = False
    try:
        with ExitStack() as stack:
            stack.enter_context(waiting("asking …"))
            async with aclosing(router.stream(query, door="cli")) as events:
                async for event in events:
                    match event:
                        case StreamStart():
                            stack.close()
                        case TextDelta():
                            write(printable(event.text))
                            has_text = True
                        case StreamEnd():
                            answer = event.answer
                        case _:
                            pass
    finally:
        if has_text:
            write("\n")
    assert answer is not None  # a stream ends with StreamEnd or raises
    if answer.text and not has_text:  # an abstention is said whole
        write(f"{printable(answer.text)}\n")
    return answer


def _conclude(answer: Answer, *, explain: bool) -> int:
    from .views import footer, print_decision, refusal, short_id

    decision = answer.decision
    if decision is not None and decision.status == "refused":
        complain(f"{refusal(decision)} (nearfar explain {decision.id})")
        return FAILED
    for call in answer.tool_calls:
        write(f"{call.name}({call.arguments})\n")
    if explain and decision is not None:
        write("\n")
        print_decision(decision)
    else:
        remark(f"{footer(answer)} · nearfar explain {short_id(answer.decision_id)}")
    return DONE


async def _ask_json(router: Router, query: Query, *, explain: bool) -> int:
    from .views import answer_json, decision_json

    try:
        answer = await router.answer(query, door="cli")
    except UpstreamError as exc:
        write_json({"answer": None, "status": "failed", "error": str(exc), **_blank(exc)})
        raise
    shown = answer_json(answer)
    if explain and answer.decision is not None:
        shown["decision"] = decision_json(answer.decision)
    write_json(shown)
    if answer.decision is not None and answer.decision.status == "refused":
        complain(shown["error"])
        return FAILED
    return DONE


def _blank(exc: NearfarError) -> dict[str, object]:
    """The fields of an answer that a failure does not have."""
    names = ("tier", "model", "score", "cost_usd", "latency_s")
    return {**dict.fromkeys(names), "calibrated": False, "decision_id": exc.decision_id}
