"""Runs the command line and turns what went wrong into one line and an exit code: 0 done, 1 failed, 2 misused."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from nearfar.errors import ConfigError, NearfarError, RequestError

DONE, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130


def main() -> NoReturn:
    """The `nearfar` command."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code."""
    from .app import app

    try:
        code = app(args=list(arguments), prog_name="nearfar", standalone_mode=False)
        sys.stdout.flush()
    except SystemExit as exc:  # typer's own way out of a broken pipe
        return _quietly_closed() if exc.code else DONE
    except BrokenPipeError:
        return _quietly_closed()
    except KeyboardInterrupt:
        return INTERRUPTED
    except NearfarError as exc:
        return _report(exc, MISUSED if isinstance(exc, ConfigError | RequestError) else FAILED)
    except ModuleNotFoundError as exc:
        extra = _EXTRAS.get((exc.name or "").partition(".")[0])
        if extra is None:
            return _report(exc, FAILED, is_ours=False)
        return _report(ConfigError(f"This needs {exc.name}. Install it: pip install 'nearfar[{extra}]'"), MISUSED)
    except Exception as exc:
        if hasattr(exc, "format_message"):  # what typer raises for wrong usage, in a class that it keeps to itself
            return _report_usage(exc)
        return _report(exc, FAILED, is_ours=False)
    return code if isinstance(code, int) else DONE


#: Which extra brings a package that a command may find missing.
_EXTRAS = {
    "faiss": "retrieval",
    "langgraph": "agents",
    "mcp": "agents",
    "mcp_types": "agents",
    "psycopg": "postgres",
    "pyarrow": "fit",
    "pydantic_monty": "agents",
    "scipy": "fit",
    "sklearn": "fit",
    "yaml": "agents",
}


def _report(exc: Exception, code: int, *, is_ours: bool = True) -> int:
    from nearfar.config.environment import is_debugging

    if is_debugging():
        import traceback

        traceback.print_exception(exc)
    message = " ".join(str(exc).split())
    if not is_ours:
        message = f"{type(exc).__name__}: {message}. This is a fault in nearfar; NEARFAR_DEBUG=1 shows where."
    elif isinstance(exc, NearfarError) and exc.decision_id:
        message += f" (nearfar explain {exc.decision_id})"
    from .console import complain

    complain(message)
    return code


def _report_usage(exc: Exception) -> int:
    from .console import complain

    context = getattr(exc, "ctx", None)
    command = context.command_path if context is not None else "nearfar"
    message = " ".join(str(exc.format_message()).split())  # type: ignore[attr-defined]  # see the caller
    if message:
        complain(f"{message.rstrip('.')}. See: {command} --help")
    return MISUSED


def _quietly_closed() -> int:
    """The reader of our output has gone: nothing is left to say, not even by the interpreter on its way out."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILED
