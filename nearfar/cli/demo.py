"""`nearfar demo`: a handful of questions on this machine, live, with what the router thought of each answer."""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from nearfar.errors import NearfarError

from . import options as opt
from .ask import show_sources, stream_answer
from .console import complain, remark, seconds, stdout, usd, waiting
from .models import download_bar
from .run import DONE, FAILED

if TYPE_CHECKING:
    from nearfar.config import Settings
    from nearfar.types import Decision, Query
    from nearfar.wiring import Wired

#: Of each kind some: what a small model knows, what it half knows, and what it makes up.
_QUESTIONS = (
    "What is the capital of Japan?",
    "List the first five prime numbers.",
    "Why do leaves turn red in autumn?",
    "What is 17 times 23?",
    "Who won the 1937 chess tournament in Kemeri?",
)
_MAX_TOKENS = 48
#: What Python's own documentation holds, and a small model alone does not know for sure.
_DOCUMENT_QUESTION = "What does str.rpartition do?"
_DOCUMENTS = "python-docs"


def demo(config: opt.ConfigOption = None) -> int:
    """Answer a few questions live, and show which would go far."""
    from nearfar.config import Settings

    settings = Settings.load(config)
    _fetch_weights(settings)

    async def main() -> int:
        async with opt.opened(config) as wired:
            return await _Demo(wired).run()

    return asyncio.run(main())


def _fetch_weights(settings: Settings) -> None:
    """Puts the weights of every embedded model in place."""
    from nearfar.config.models import LlamaCppSettings
    from nearfar.models import weights

    cache_dir = weights.default_cache_dir()
    for model in settings.models.values():
        if isinstance(model, LlamaCppSettings) and model.weights and weights.find(model.weights, cache_dir) is None:
            with download_bar(model.weights) as progress:
                path = weights.fetch(model.weights, cache_dir=cache_dir, progress=progress)
            remark(f"fetched {model.weights} ({path.stat().st_size / 1e6:.0f} MB) into {path.parent}")


class _Demo:
    """The questions, asked one after the other."""

    def __init__(self, wired: Wired) -> None:
        self._wired = wired
        cards = wired.router.cards().values()
        self._near = [card for card in cards if card.placement == "near"]
        self._far = [card for card in cards if card.placement == "far"]
        self._decisions: list[Decision] = []

    async def run(self) -> int:
        console = stdout()
        near = ", ".join(card.name for card in self._near) or "none"
        far = ", ".join(card.name for card in self._far) or "none configured"
        console.print(f"[bold]nearfar[/]  near: [green]{near}[/], on this machine   far: [cyan]{far}[/]\n")
        await self._warm_up()
        started = time.perf_counter()
        for question in _QUESTIONS:
            if not await self._ask(question):
                return FAILED
        elapsed_s = time.perf_counter() - started
        has_documents = await self._ask_documents()
        self._sum_up(elapsed_s, has_documents=has_documents)
        return DONE

    async def _warm_up(self) -> None:
        """Loads the embedded models, so that the first answer's time is an answer's."""
        from nearfar.types import Query, SamplingOptions

        for card in self._near:
            started = time.perf_counter()
            with waiting(f"loading {card.name} …"), suppress(NearfarError):
                await self._wired.models[card.name].complete(Query("Hi", sampling=SamplingOptions(max_tokens=1)))
            remark(f"{card.name} is ready after {seconds(time.perf_counter() - started)}\n")

    async def _ask(self, question: str) -> bool:
        stdout().print(f"[bold]› {question}[/]")
        query = opt.QueryOptions(max_tokens=_MAX_TOKENS, temperature=0.0).query(question)
        try:
            answer = await stream_answer(self._wired.router, query)
        except NearfarError as exc:
            complain(" ".join(str(exc).split()))
            return False
        if answer.decision is not None:
            self._decisions.append(answer.decision)
            stdout().print(f"  {self._verdict(answer.decision)}\n")
        return True

    async def _ask_documents(self) -> bool:
        """Answers from the running Python's own documentation, with the file and line; whether it could be done."""
        from nearfar.wiring.documents import open_library

        try:
            await asyncio.to_thread(self._index_documents)
            with closing(open_library(self._wired.settings)) as library:
                attached = await library.attach(_documented_query(), _DOCUMENTS, k=1)
        except NearfarError as exc:
            remark(f"No answer from documents: {' '.join(str(exc).split())}\n")
            return False
        stdout().print(f"[bold]› {_DOCUMENT_QUESTION}[/] [dim]from Python's own documentation[/]")
        try:
            answer = await stream_answer(self._wired.router, attached.query)
        except NearfarError as exc:
            complain(" ".join(str(exc).split()))
            return False
        show_sources(attached, answer.text)
        stdout().print()
        return True

    def _index_documents(self) -> None:
        """Makes the collection of docstrings and help topics, or sees that it is up to date."""
        from nearfar.retrieval.python_docs import index_python
        from nearfar.wiring.documents import open_collection_writer

        started = time.perf_counter()
        with waiting("reading Python's own documentation …"):
            writer = open_collection_writer(self._wired.settings, _DOCUMENTS, embedder="static")
            with writer:
                report = index_python(writer)
        if report.added:
            files, passages = f"{report.added:,} files", f"{report.num_chunks:,} passages"
            elapsed = seconds(time.perf_counter() - started)
            remark(f"indexed Python's own documentation, {files} with {passages}, in {elapsed}\n")

    def _verdict(self, decision: Decision) -> str:
        """What the router thought of it, in rich markup of our own making."""
        from .views import score_label

        first = decision.steps[0] if decision.steps else None
        facts = f"{usd(decision.cost_usd)} · {seconds(decision.latency_s.get('total', 0.0))}"
        if first is None:
            return f"[yellow]no tier may take it[/] [dim]· {facts}[/]"
        if decision.escalations:
            reasons = "; ".join(f"{step.tier}: {step.reason}" for step in decision.steps[:-1])
            return f"[cyan]went far[/] to {decision.tier} [dim]· {reasons} · {facts}[/]"
        score = score_label(decision)
        if _is_unsure(decision):
            return f"[yellow]unsure[/] [dim]· {score} · a far model would be asked, and none is configured · {facts}[/]"
        return f"[green]stayed near[/] [dim]· {score} · {facts}[/]"

    def _sum_up(self, elapsed_s: float, *, has_documents: bool) -> None:
        console = stdout()
        escalated = sum(1 for decision in self._decisions if decision.escalations)
        unsure = sum(1 for decision in self._decisions if not decision.escalations and _is_unsure(decision))
        cost = sum(decision.cost_usd or 0.0 for decision in self._decisions)
        far = f"{escalated} went far" if self._far else f"{unsure} would have gone far"
        kept = len(self._decisions) - escalated - (0 if self._far else unsure)
        console.print(
            f"[bold]{len(self._decisions)} answers in {seconds(elapsed_s)} for {usd(cost)}:[/] "
            f"{kept} stayed near, {far}."
        )
        console.print(
            "[dim]The scores are mean token probabilities, uncalibrated: they rank answers and promise nothing until\n"
            "nearfar calibrate has seen labelled ones. A small model is often wrong, and sometimes sure.[/]"
        )
        if not self._far:
            console.print(
                "[dim]Set OPENAI_API_KEY, ANTHROPIC_API_KEY or NEARFAR_FAR_URL, and the unsure ones go far.[/]"
            )
        command = _command()
        console.print("\nTry next:")
        console.print(f'  {command} ask "Why is the sky blue?" --explain', markup=False)
        console.print(f"  {command} chat", markup=False)
        if has_documents:
            question = "How do I find the most common elements of a Counter?"
            console.print(f'  {command} ask --docs {_DOCUMENTS} "{question}"', markup=False)
        console.print(
            f"  {command} serve      # then point any OpenAI client at http://127.0.0.1:8642/v1", markup=False
        )


def _documented_query() -> Query:
    return opt.QueryOptions(max_tokens=2 * _MAX_TOKENS, temperature=0.0).query(_DOCUMENT_QUESTION)


def _is_unsure(decision: Decision) -> bool:
    return decision.score is not None and decision.threshold is not None and decision.score < decision.threshold


def _command() -> str:
    """How this nearfar is called from the shell that runs it."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return f"{Path(sys.executable).name} -m nearfar.cli"
    found = shutil.which("nearfar")
    if found is not None and Path(found).resolve() == called.resolve():
        return "nearfar"
    with suppress(ValueError):
        return str(called.absolute().relative_to(Path.cwd()))
    return str(called)
