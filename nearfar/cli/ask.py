"""`nearfar ask`: one question, one answer."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, aclosing
from typing import TYPE_CHECKING, Annotated

import typer

from nearfar.errors import NearfarError, RequestError, UpstreamError
from nearfar.retrieval.places import hit_json, place

from . import options as opt
from .console import complain, printable, remark, waiting, write, write_json
from .documents import WhereOption, read_filter
from .run import DONE, FAILED

if TYPE_CHECKING:
    from nearfar.retrieval.library import Attached
    from nearfar.router.router import Router
    from nearfar.types import Answer, Query
    from nearfar.wiring import Wired


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
    docs: Annotated[
        str | None,
        typer.Option("--docs", help="Answer from this collection; see nearfar index.", rich_help_panel=opt.ASKING),
    ] = None,
    passages: Annotated[
        int | None,
        typer.Option(
            "--passages",
            min=1,
            max=50,
            help="How many passages of it (default: the config's, 5).",
            rich_help_panel=opt.ASKING,
        ),
    ] = None,
    where: WhereOption = None,
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
    if docs is None and (passages is not None or where):
        raise RequestError("--passages and --where choose among a collection's passages; name it: --docs NAME")

    async def main() -> int:
        async with opt.opened(config) as wired:
            opt.refuse_contradictions(wired, query)
            if docs is not None:
                return await _ask_documents(wired, query, docs, passages, where, as_json=as_json, explain=explain)
            if as_json:
                return await _ask_json(wired.router, query, explain=explain)
            answer = await stream_answer(wired.router, query)
            return _conclude(answer, explain=explain)

    return asyncio.run(main())


async def _ask_documents(
    wired: Wired,
    query: Query,
    name: str,
    passages: int | None,
    where: list[str] | None,
    *,
    as_json: bool,
    explain: bool,
) -> int:
    """The answer from a collection's passages, and where they stand."""
    from contextlib import closing

    from nearfar.wiring.documents import open_library

    with closing(open_library(wired.settings)) as library:
        attached = await library.attach(query, name, k=passages, filter=read_filter(where))
    if not attached.has_evidence:
        return _abstain(attached, name, as_json=as_json)
    if as_json:
        return await _ask_json(wired.router, attached.query, explain=explain, attached=attached)
    answer = await stream_answer(wired.router, attached.query)
    if answer.text:
        show_sources(attached, answer.text)
    return _conclude(answer, explain=explain)


def show_sources(attached: Attached, text: str) -> None:
    """The passages that the answer rests on, or that it was given where it rests on none, with their places."""
    checked = attached.checked(text)
    cited = {citation.number for citation in checked.citations}
    for number, hit in enumerate(attached.hits, 1):
        if number in cited or not cited:
            about = hit.chunk.metadata.get("object") or hit.chunk.metadata.get("heading") or ""
            write(f"  [{number}] {printable(place(hit))}{f'  {printable(str(about))}' if about else ''}\n")
    if checked.unsupported:
        count = len(checked.unsupported)
        remark(f"{count} sentence{'s rest' if count > 1 else ' rests'} on none of the passages", style="yellow")


def _abstain(attached: Attached, name: str, *, as_json: bool) -> int:
    """Says that the documents do not hold it; no model is asked."""
    from nearfar.retrieval.grounding import ABSTENTION

    if as_json:
        write_json({"answer": ABSTENTION, "status": "abstained", "reason": "no_evidence", **_grounds(attached, None)})
        return DONE
    write(f"{ABSTENTION}\n")
    coverage = attached.signals["retrieval_coverage"]
    remark(
        f"{name!r} has {coverage:.0%} of the question's words, too little to ask a model; look: nearfar search {name}"
    )
    return DONE


def _grounds(attached: Attached, text: str | None) -> dict[str, object]:
    """What an answer rests on, as plain JSON values."""
    checked = attached.checked(text) if text else None
    citations = checked.citations if checked else ()
    return {
        "passages": [{"number": number, **hit_json(hit)} for number, hit in enumerate(attached.hits, 1)],
        "citations": [{"number": each.number, "quote": each.quote, "support": each.support} for each in citations],
        "unsupported": list(checked.unsupported) if checked else [],
        "signals": dict(attached.signals),
    }


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


async def _ask_json(router: Router, query: Query, *, explain: bool, attached: Attached | None = None) -> int:
    from .views import answer_json, decision_json

    try:
        answer = await router.answer(query, door="cli")
    except UpstreamError as exc:
        write_json({"answer": None, "status": "failed", "error": str(exc), **_blank(exc)})
        raise
    shown = answer_json(answer)
    if attached is not None:
        shown |= _grounds(attached, answer.text)
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
