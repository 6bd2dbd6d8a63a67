"""`nearfar quantize`: a model folder as nested planes, which one server reads at several widths."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nearfar.errors import ConfigError, RequestError

from . import options as opt
from .console import remark, stderr, stdout, table, write_json
from .run import DONE

if TYPE_CHECKING:
    from nearfar.serving.quantization.quantizer import Quantized

#: Pieces of the text that is evaluated on, and tokens of each.
_PIECES, _LENGTH = 16, 512


def quantize(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A Hugging Face folder with safetensors.", show_default=False)
    ],
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="The folder to write; one that was begun goes on.", show_default=False),
    ],
    widths: Annotated[str, typer.Option("--widths", help="Bits to read the weights at, each in 1 to 8.")] = "2,4,6,8",
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            metavar="FILE",
            help="A text like what the model will be asked. Without one, each weight is rounded by itself: worse.",
        ),
    ] = None,
    mixes: Annotated[
        str | None,
        typer.Option(
            "--mixes",
            help="Further precisions: the widths mixed over the layers by what each loses (default: every whole "
            "number between the widths; needs --calibration).",
        ),
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option("--group-size", min=8, help="Weights that share a scale (default: 128, 64 or 32, what divides)."),
    ] = None,
    evaluate: Annotated[
        Path | None,
        typer.Option("--evaluate", metavar="FILE", help="Then measure each precision on this text, in float32."),
    ] = None,
    as_json: opt.JsonOption = False,
) -> int:
    """Store a model once to be served at several widths.

    The widths share one buffer: b bits are the top b of each weight's code. vLLM loads the folder with nearfar
    installed beside it, and each request says its width: model "name@4", or "vllm_xargs": {"bits": 4}.

    Stopped, the same command goes on after the last whole block of layers.
    """
    chosen = _numbers(widths, "--widths")
    wanted = None if mixes is None else _numbers(mixes, "--mixes")
    try:
        from nearfar.serving.quantization.quantizer import Options
        from nearfar.serving.quantization.quantizer import quantize as run
    except ImportError as exc:
        raise ConfigError(f"Quantizing needs {exc.name}. Install it: pip install 'nearfar[quantize]'") from exc
    options = Options(widths=chosen, group_size=group_size, precisions=wanted)
    if calibration is None and mixes:
        raise RequestError("--mixes needs --calibration: what a layer loses is measured on a text.", param="mixes")
    with _progress_bar("blocks") as show:
        done = run(model, out, calibration=calibration, options=options, progress=show)
    measured = _evaluate(model, out, evaluate) if evaluate is not None else None
    _show(done, measured, as_json=as_json)
    return DONE


def _numbers(text: str, option: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(part) for part in text.split(",") if part.strip()}))
    except ValueError:
        raise RequestError(f"{option} is {text!r}; give whole numbers with commas, such as 2,4,8.") from None


def _evaluate(model: Path, out: Path, text: Path) -> Mapping[int | None, tuple[float, float]]:
    from nearfar.serving.quantization.checkpoint import NestedCheckpoint
    from nearfar.serving.quantization.evaluation import compare
    from nearfar.serving.quantization.quantizer import Options, samples

    pieces = samples(model, text, Options(num_samples=_PIECES, sample_tokens=_LENGTH))
    with _progress_bar("precisions") as show:
        return compare(model, NestedCheckpoint.open(out), pieces, progress=show)


def _show(done: Quantized, measured: Mapping[int | None, tuple[float, float]] | None, *, as_json: bool) -> None:
    if as_json:
        page: dict[str, Any] = {
            "precisions": list(done.config.precisions),
            "kept": list(done.kept),
            "group_size": done.config.group_size,
            "num_weights": done.num_weights,
            "num_bytes": done.num_bytes,
            "over_dedicated": done.num_bytes / done.dedicated_bytes,
            "model_bytes": done.model_bytes,
            "original_bytes": done.original_bytes,
        }
        if measured is not None:
            page["measured"] = [
                {"precision": precision, "perplexity": perplexity, "agreement": agreement}
                for precision, (perplexity, agreement) in measured.items()
            ]
        write_json(page)
        return
    stdout().print(
        f"{done.num_weights:,} weights in groups of {done.config.group_size}: {done.num_bytes / 1e6:,.1f} MB, "
        f"{done.num_bytes / done.dedicated_bytes:.3f} of {done.config.widths[-1]} bits alone. The whole model: "
        f"{done.model_bytes / 1e6:,.1f} MB, was {done.original_bytes / 1e6:,.1f} MB."
    )
    kept = sorted({re.sub(r"\d+", "*", name) for name in done.kept})
    stdout().print(f"Kept as they were: {', '.join(kept)}.", markup=False)
    stdout().print(f"Requests may ask for {', '.join(map(str, done.config.precisions))} bits.")
    if measured is not None:
        table(
            ["precision", "perplexity", "same next token"],
            [
                ["original" if precision is None else str(precision), f"{perplexity:.3f}", f"{agreement:.1%}"]
                for precision, (perplexity, agreement) in measured.items()
            ],
            right=["perplexity", "same next token"],
        )


@contextmanager
def _progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr; a line now and then where nobody looks."""
    if not sys.stderr.isatty():
        yield lambda done, total: remark(f"{done} of {total} {what}")
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn(f"[dim]{what}[/]"),
        TimeRemainingColumn(),
        console=stderr(),
        transient=True,
    )
    task = bar.add_task("", total=None)
    with bar:
        yield lambda done, total: bar.update(task, total=total, completed=done)
