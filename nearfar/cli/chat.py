"""`nearfar chat`: a conversation, with its history."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING

from nearfar.errors import NearfarError

from . import options as opt
from .ask import stream_answer
from .console import complain, remark, write
from .run import DONE

if TYPE_CHECKING:
    from nearfar.types import Message, Query
    from nearfar.wiring import Wired

_HELP = "/reset forgets · /explain shows the last decision · /exit or Ctrl-D leaves · Ctrl-C stops an answer"


def chat(
    model: opt.ModelOption = "auto",
    system: opt.SystemOption = None,
    budget_usd: opt.BudgetOption = None,
    deadline_s: opt.DeadlineOption = None,
    privacy: opt.PrivacyOption = opt.Privacy.any,
    quality: opt.QualityOption = None,
    abstain: opt.AbstainOption = False,
    max_tokens: opt.MaxTokensOption = None,
    temperature: opt.TemperatureOption = None,
    config: opt.ConfigOption = None,
) -> int:
    """Hold a conversation; every turn is routed by itself.

    Limits are for each answer.
    """
    given = opt.QueryOptions(model, system, budget_usd, deadline_s, privacy, quality, abstain, max_tokens, temperature)
    with asyncio.Runner() as runner:
        context = opt.opened(config)
        wired = runner.run(context.__aenter__())
        try:
            template = given.query(None)
            opt.refuse_contradictions(wired, template)
            wired.router.plan(given.query("?"))  # an unknown model is said before the first turn
            _Conversation(runner, wired, template).hold()
        finally:
            runner.run(context.__aexit__(None, None, None))
    return DONE


class _Conversation:
    """Turns of one user and the models, until the user leaves."""

    def __init__(self, runner: asyncio.Runner, wired: Wired, template: Query) -> None:
        self._runner = runner
        self._wired = wired
        self._template = template
        self._turns: tuple[Message, ...] = ()
        self._last_id: str | None = None
        self._is_interactive = sys.stdin.isatty()

    def hold(self) -> None:
        if self._is_interactive:
            with suppress(ImportError):
                import_module("readline")  # gives input() a history and line editing
            remark(_HELP)
        while (line := self._read()) is not None:
            text = line.strip()
            if text in {"/exit", "/quit"}:
                return
            if text.startswith("/"):
                self._command(text)
            elif text:
                self._turn(text)

    def _read(self) -> str | None:
        """The next line; None: no more."""
        try:
            return input("› " if self._is_interactive else "")
        except KeyboardInterrupt:
            sys.stderr.write("\n")
            return ""
        except EOFError:
            if self._is_interactive:
                sys.stderr.write("\n")
            return None
        except UnicodeDecodeError as exc:
            complain(f"The line is not UTF-8 (byte {exc.start}); it is left out.")
            return ""

    def _command(self, text: str) -> None:
        if text == "/reset":
            self._turns = ()
            remark("the conversation is forgotten")
        elif text == "/explain" and self._last_id:
            from .views import print_decision

            decision = self._runner.run(self._wired.log.get(self._last_id))
            if decision is not None:
                print_decision(decision)
        elif text == "/explain":
            remark("there is no decision yet")
        else:
            remark(_HELP)

    def _turn(self, text: str) -> None:
        from dataclasses import replace

        from nearfar.types import Message

        from .views import footer, refusal

        asked = (*self._turns, Message("user", text))
        query = replace(self._template, prompt=(*self._template.messages, *asked))
        try:
            answer = self._runner.run(stream_answer(self._wired.router, query))
        except KeyboardInterrupt:
            write("\n")
            remark("stopped; the turn is left out of the conversation")
            return
        except NearfarError as exc:
            complain(" ".join(str(exc).split()))
            self._last_id = exc.decision_id or self._last_id
            return
        self._last_id = answer.decision_id
        if answer.decision is not None and answer.decision.status == "refused":
            complain(refusal(answer.decision))
            return
        self._turns = (*asked, Message("assistant", answer.text))
        remark(footer(answer))
