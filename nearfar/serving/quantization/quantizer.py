"""Turns a model folder into nested planes, one block of layers at a time, and goes on where it was stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from nearfar.errors import ConfigError, DataError

from .checkpoint import Checkpoint, copy_file, names, notes, write_json, write_shard
from .format import NestedWeights, check_widths
from .mixing import Sensitivity, mix
from .rounding import round_matrix
from .settings import METHOD, VERSION, NestedConfig

#: Told after each block: blocks done, blocks in all.
Progress = Callable[[int, int], None]

#: Sets of layers that share their input, each with the second moments of it where they are known.
Groups = list[tuple[list[str], torch.Tensor | None]]

#: Files of a model folder that are copied as they are.
_COPIED = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)

#: What a folder under work says of itself.
_STATE = "quantization_state.json"


@dataclass(frozen=True, slots=True)
class Options:
    """How to quantize.

    `group_size` None is the largest of 128, 64 and 32 that divides every matrix's columns, else 32. `precisions` are
    further ones between the widths, each a mix of widths over the layers; None is every whole number between them.
    """

    widths: tuple[int, ...] = (2, 4, 6, 8)
    group_size: int | None = None
    precisions: tuple[int, ...] | None = None
    num_samples: int = 32
    sample_tokens: int = 512


@dataclass(frozen=True, slots=True)
class Quantized:
    """What came of it."""

    config: NestedConfig
    kept: tuple[str, ...]  # layers that stay in high precision
    num_weights: int  # of all matrices that are stored as planes
    num_bytes: int  # of them
    dedicated_bytes: int  # of the widest width alone at the same group size
    model_bytes: int  # of the whole folder's tensors
    original_bytes: int  # of the original folder's


def quantize(
    model: Path,
    out: Path,
    *,
    calibration: Path | None = None,
    options: Options | None = None,
    progress: Progress | None = None,
) -> Quantized:
    """Writes the folder `out`: nested planes for every linear layer of the blocks, all else as it was.

    Holds one block, the embeddings and the calibration samples' states in memory. What was stopped goes on after the
    last whole block when it is called again with the same arguments.

    Args:
        model: a Hugging Face folder with safetensors.
        out: a folder that does not exist, is empty, or was begun by the same call.
        calibration: a text like what the model will be asked; None: matrices are rounded without knowing their inputs,
            and there are no mixes.
        options: how.
        progress: told after each block.

    Raises:
        ConfigError: transformers is not installed, or an argument cannot be used.
        DataError: a file is damaged, or cannot be written.
    """
    options = options or Options()
    try:
        check_widths(options.widths)
    except ValueError as exc:
        raise ConfigError(f"{exc}.") from exc
    wanted = _between(options)
    source = Checkpoint.open(model)
    blocks = Blocks.open(model, source)
    if not blocks.linears():
        kinds = sorted(
            {type(part).__name__ for part in blocks.block.modules() if any(True for _ in part.parameters(False))}
        )
        raise ConfigError(
            f"{str(model)!r} has no linear layers in its blocks, but {', '.join(kinds)}; planes hold linear ones alone."
        )
    group_size = options.group_size or default_group_size(blocks)
    widest = max(part.in_features for part in blocks.linears().values())
    if group_size > widest:
        raise ConfigError(f"A group has {group_size} columns, and the widest matrix {widest}; give at most those.")
    state = _state(model, source, calibration, options, group_size)
    pieces = None if calibration is None else samples(model, calibration, options)
    _begin(out, state)
    hidden = None if pieces is None else blocks.enter(pieces)
    found: list[Sensitivity] = []
    shards = [f"model-{i + 1:05d}-of-{len(blocks) + 1:05d}.safetensors" for i in range(len(blocks) + 1)]
    if not (out / shards[0]).exists():
        write_shard(out / shards[0], {name: source.tensor(name) for name in blocks.outside}, {"format": "pt"})
    for number in range(len(blocks)):
        path = out / shards[number + 1]
        states: list[torch.Tensor] = []
        if not path.exists():
            blocks.load(number)
            tensors, sensitivities, states = _block(blocks, number, hidden, options.widths, group_size)
            beside = {"format": "pt", "sensitivities": json.dumps(sensitivities)}
            write_shard(path, tensors, beside)
        elif hidden is not None and number + 1 < len(blocks):
            blocks.load(number)
            states = [hidden.through(blocks.block, state) for state in hidden.states]
        for entry in json.loads(notes(path)["sensitivities"]):
            errors = {int(width): error for width, error in entry["errors"].items()}
            found.append(Sensitivity(tuple(entry["matrices"]), entry["num_weights"], errors))
        if hidden is not None:
            hidden.states = states
        if progress is not None:
            progress(number + 1, len(blocks))
    mixes = {bits: mix(found, mean_bits=bits, widths=options.widths) for bits in wanted if hidden is not None}
    return _finish(model, out, source, shards, found, options, group_size, mixes)


@dataclass(slots=True)
class Hidden:
    """The states that enter the next block, for every sample, and what else blocks are called with."""

    states: list[torch.Tensor]
    arguments: dict[str, Any]

    def through(self, block: nn.Module, state: torch.Tensor) -> torch.Tensor:
        """What the block makes of one sample."""
        with torch.no_grad():
            made = block(state, **self.arguments)
        return made[0] if isinstance(made, tuple) else made


@dataclass(slots=True)
class Blocks:
    """A model of one block, whose weights are exchanged: every block of the original in turn."""

    shell: nn.Module
    block: nn.Module
    prefix: str  # of all blocks' tensors
    numbers: tuple[int, ...]
    source: Checkpoint
    outside: tuple[str, ...] = field(default=())  # tensors of no block

    @classmethod
    def open(cls, model: Path, source: Checkpoint) -> Blocks:
        """Builds the shell.

        Raises:
            ConfigError: transformers is not installed or does not know the model, it is quantized, or it is not a
                stack of blocks that are alike.
        """
        try:
            from transformers import AutoConfig, AutoModelForCausalLM
        except ImportError as exc:
            raise ConfigError(f"Quantizing needs {exc.name}. Install it: pip install 'nearfar[quantize]'") from exc
        try:
            config = AutoConfig.from_pretrained(model, local_files_only=True)
        except (OSError, ValueError) as exc:
            raise ConfigError(f"{str(model)!r} is no model that transformers knows: {_line(exc)}") from exc
        if getattr(config, "quantization_config", None):
            raise ConfigError(f"{str(model)!r} is quantized already; give the original weights.")
        depth = getattr(config, "num_hidden_layers", 0)
        kinds = getattr(config, "layer_types", None) or []
        if not depth or len(set(kinds)) > 1:
            raise ConfigError(f"{str(model)!r} is not a stack of blocks that are alike; it cannot be quantized here.")
        config.num_hidden_layers = 1
        if len(getattr(config, "layer_types", None) or []) > 1:  # some configs make it of the number of layers
            config.layer_types = kinds[:1]
        shell = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        stacks = [(name, part) for name, part in shell.named_modules() if isinstance(part, nn.ModuleList)]
        prefix, stack = next(((name, part) for name, part in stacks if len(part) == 1), ("", None))
        numbers = sorted(
            {int(name[len(prefix) + 1 :].split(".")[0]) for name in source.files if name.startswith(prefix + ".")}
        )
        if stack is None or numbers != list(range(depth)):
            raise ConfigError(
                f"{str(model)!r} should have {depth} blocks under {prefix!r} and has {len(numbers)}; it cannot be "
                "quantized here."
            )
        outside = tuple(sorted(name for name in source.files if not name.startswith(prefix + ".")))
        blocks = cls(shell, stack[0], prefix, tuple(numbers), source, outside)
        for name, parameter in shell.named_parameters():
            if not name.startswith(prefix + ".") and name in source.files:
                parameter.data.copy_(source.tensor(name))
        return blocks

    def __len__(self) -> int:
        return len(self.numbers)

    def names(self, number: int) -> list[str]:
        """The tensors of a block, without its prefix."""
        start = f"{self.prefix}.{number}."
        return sorted(name[len(start) :] for name in self.source.files if name.startswith(start))

    def load(self, number: int) -> None:
        """Puts a block's weights into the shell.

        Raises:
            ConfigError: they are stored in another form than transformers runs them.
            DataError: they are not those of such a block.
        """
        start = f"{self.prefix}.{number}."
        weights = {name: self.source.tensor(start + name).float() for name in self.names(number)}
        lacking = sorted({name for name, _ in self.block.named_parameters()} - set(weights))
        if lacking:
            strange = sorted(set(weights) - set(self.block.state_dict()))
            instead = f", but {start + strange[0]!r}" if strange else ""
            raise ConfigError(
                f"The model has no {start + lacking[0]!r}{instead}: layers that are stored in another form than "
                "transformers runs them, such as mixtures of experts, cannot be quantized here."
            )
        try:
            self.block.load_state_dict(weights)
        except RuntimeError as exc:
            raise DataError(f"Block {number} does not fit the model's config: {_line(exc)}") from exc

    def linears(self) -> dict[str, nn.Linear]:
        """The layers that become planes, by name in the block."""
        return {name: part for name, part in self.block.named_modules() if isinstance(part, nn.Linear)}

    def enter(self, samples: Sequence[torch.Tensor]) -> Hidden:
        """The states that enter the first block."""
        states: list[torch.Tensor] = []
        arguments: dict[str, Any] = {}

        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            states.append(args[0] if args else kwargs["hidden_states"])
            arguments.update({name: value for name, value in kwargs.items() if name != "hidden_states"})

        handle = self.block.register_forward_pre_hook(keep, with_kwargs=True)
        with torch.no_grad():
            for sample in samples:
                self.shell(sample[None], use_cache=False, logits_to_keep=1)
        handle.remove()
        return Hidden(states, arguments)


def _block(
    blocks: Blocks, number: int, hidden: Hidden | None, widths: Sequence[int], group_size: int
) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]], list[torch.Tensor]]:
    """The tensors of a block as they are written, what its matrices lose at each width, and the states after it."""
    linears = blocks.linears()
    start = f"{blocks.prefix}.{number}."
    kept = [name for name in blocks.names(number) if name.removesuffix(".weight") not in linears]
    tensors = {start + name: blocks.source.tensor(start + name) for name in kept}
    groups: Groups = [([name], None) for name in linears]
    states: list[torch.Tensor] = []
    if hidden is not None:
        groups, states = moments(blocks.block, hidden, linears)
    sensitivities: list[dict[str, Any]] = []
    for members, seen in groups:
        stacked = torch.cat([linears[name].weight.detach() for name in members])
        try:
            weights = round_matrix(stacked, seen, widths=widths, group_size=group_size)
        except ValueError as exc:
            raise DataError(f"{start + members[0]!r} cannot be quantized: {exc}.") from exc
        row = 0
        for name in members:
            rows = linears[name].weight.shape[0]
            tensors |= {f"{start}{name}.{part}": tensor for part, tensor in _rows(weights, row, row + rows).items()}
            row += rows
        sensitivities.append(
            {
                "matrices": [start + name for name in members],
                "num_weights": stacked.numel(),
                "errors": {} if hidden is None else _errors(blocks.block, hidden, linears, members, weights),
            }
        )
    return tensors, sensitivities, states


def _rows(weights: NestedWeights, start: int, stop: int) -> dict[str, torch.Tensor]:
    parts: dict[str, NDArray[Any]] = {
        "planes": weights.planes[:, start:stop],
        "scales": weights.scales[start:stop],
        "zeros": weights.zeros[start:stop],
        "refits": weights.refits[:, start:stop],
        "ranges": weights.ranges,
    }
    return {name: torch.from_numpy(part.copy()) for name, part in parts.items()}


def moments(block: nn.Module, hidden: Hidden, linears: dict[str, nn.Linear]) -> tuple[Groups, list[torch.Tensor]]:
    """Layers with one and the same input, each set with the sum of x·xᵀ over all samples; and the states after."""
    sums: dict[str, torch.Tensor] = {}
    leader: dict[str, str] = {}
    seen: list[tuple[torch.Tensor, str]] = []

    def watch(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def note(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            first = next((other for tensor, other in seen if tensor is args[0]), None)
            if first is not None:
                leader[name] = first
                return
            seen.append((args[0], name))
            leader[name] = name
            rows = args[0].reshape(-1, args[0].shape[-1]).float()
            sums[name] = sums[name].addmm_(rows.T, rows) if name in sums else rows.T @ rows

        return note

    handles = [part.register_forward_pre_hook(watch(name)) for name, part in linears.items()]
    states = []
    for state in hidden.states:
        seen.clear()
        states.append(hidden.through(block, state))
    for handle in handles:
        handle.remove()
    unused = [name for name in linears if name not in leader]
    groups: Groups = [([name for name in linears if leader.get(name) == first], sums[first]) for first in sums]
    return groups + [([name], None) for name in unused], states


def _errors(
    block: nn.Module, hidden: Hidden, linears: dict[str, nn.Linear], members: Sequence[str], weights: NestedWeights
) -> dict[int, float]:
    """Squared error of the block's output on one sample, over the squared output, by width."""
    state = hidden.states[len(hidden.states) // 2]
    exact = hidden.through(block, state)
    originals = [linears[name].weight.detach().clone() for name in members]
    errors: dict[int, float] = {}
    for width in weights.widths:
        parts = torch.from_numpy(weights.at(width)).split([len(original) for original in originals])
        for name, part in zip(members, parts, strict=True):
            linears[name].weight.data.copy_(part)
        errors[width] = float((hidden.through(block, state) - exact).square().sum() / exact.square().sum())
    for name, original in zip(members, originals, strict=True):
        linears[name].weight.data.copy_(original)
    return errors


def _finish(
    model: Path,
    out: Path,
    source: Checkpoint,
    shards: Sequence[str],
    found: Sequence[Sensitivity],
    options: Options,
    group_size: int,
    mixes: Mapping[int, Mapping[str, int]],
) -> Quantized:
    """Writes what makes the shards a model, the config last."""
    files = {name: shard for shard in shards for name in sorted(names(out / shard))}
    columns = {name: 0 for part in found for name in part.matrices}
    num_weights = num_bytes = dedicated = 0
    for name in columns:
        rows, columns[name] = source.tensor(name + ".weight").shape
        num_weights += rows * columns[name]
    config = NestedConfig(options.widths, group_size, columns, mixes)
    written = Checkpoint(out, files)
    for name in columns:
        weights = written.nested(name, config)
        num_bytes += weights.num_bytes
        dedicated += weights.planes.nbytes + weights.scales.nbytes + weights.zeros.nbytes
    model_bytes = sum((out / shard).stat().st_size for shard in shards)
    for name in _COPIED:
        if (model / name).is_file():
            copy_file(model / name, out / name)
    write_json(out / "model.safetensors.index.json", {"metadata": {"total_size": model_bytes}, "weight_map": files})
    page = json.loads((model / "config.json").read_text())
    write_json(out / "config.json", page | {"quantization_config": config.to_json()})
    (out / _STATE).unlink()
    planes = {name + ".weight" for name in columns}
    return Quantized(
        config=config,
        kept=tuple(sorted(name for name in source.files if name not in planes)),
        num_weights=num_weights,
        num_bytes=num_bytes,
        dedicated_bytes=dedicated,
        model_bytes=model_bytes,
        original_bytes=sum((model / file).stat().st_size for file in set(source.files.values())),
    )


def samples(model: Path, calibration: Path, options: Options) -> list[torch.Tensor]:
    """Pieces of the text, spread over all of it, as tokens."""
    from transformers import AutoTokenizer

    try:
        text = calibration.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{str(calibration)!r} cannot be read as UTF-8 text: {exc}.") from exc
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    except (OSError, ValueError, ImportError) as exc:
        raise ConfigError(f"{str(model)!r} has no tokenizer that can be loaded: {_line(exc)}") from exc
    tokens = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    return list(spread(tokens, options.num_samples, options.sample_tokens, name=str(calibration)))


def spread(tokens: torch.Tensor, count: int, length: int, *, name: str) -> Iterator[torch.Tensor]:
    """At most `count` pieces of `length` tokens, evenly spread and without overlap.

    Raises:
        ConfigError: there are fewer than `length` tokens in the text called `name`.
    """
    pieces = len(tokens) // length
    if pieces == 0:
        raise ConfigError(f"{name!r} has {len(tokens)} tokens; give a text of at least {length}.")
    for i in range(min(count, pieces)):
        at = i * pieces // min(count, pieces) * length
        yield tokens[at : at + length]


def _between(options: Options) -> tuple[int, ...]:
    """The precisions to mix.

    Raises:
        ConfigError: one is a width, or not between the widths.
    """
    between = tuple(bits for bits in range(options.widths[0] + 1, options.widths[-1]) if bits not in options.widths)
    wanted = between if options.precisions is None else options.precisions
    if strange := sorted(set(wanted) - set(between)):
        said = ", ".join(map(str, between)) or "none"
        raise ConfigError(f"A mix of {strange[0]} bits cannot be made; between the widths there are: {said}.")
    return tuple(sorted(set(wanted)))


def default_group_size(blocks: Blocks) -> int:
    """The largest of 128, 64 and 32 that divides the columns of every matrix; else 32."""
    columns = {part.in_features for part in blocks.linears().values()}
    return next((size for size in (128, 64, 32) if not any(count % size for count in columns)), 32)


def _state(
    model: Path, source: Checkpoint, calibration: Path | None, options: Options, group_size: int
) -> dict[str, Any]:
    """What a folder was begun with."""
    files = {file: [(model / file).stat().st_size, _head(model / file)] for file in sorted(set(source.files.values()))}
    return {
        "method": METHOD,
        "version": VERSION,
        "model": hashlib.sha256(json.dumps([files, (model / "config.json").read_text()]).encode()).hexdigest(),
        "calibration": None if calibration is None else _digest(calibration),
        "widths": list(options.widths),
        "group_size": group_size,
        "samples": [options.num_samples, options.sample_tokens],
    }


def _head(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.sha256(file.read(1 << 20)).hexdigest()


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as exc:
        raise ConfigError(f"{str(path)!r} cannot be read: {exc.strerror}.") from exc


def _begin(out: Path, state: dict[str, Any]) -> None:
    """Makes the folder, or sees that it was begun alike.

    Raises:
        ConfigError: it holds something else.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{str(out)!r} is a file; name a folder to write.")
    if out.exists() and any(out.iterdir()):
        try:
            before = json.loads((out / _STATE).read_text())
        except (OSError, ValueError):
            is_done = (out / "model.safetensors.index.json").exists() and (out / "config.json").exists()
            why = "holds a whole model already" if is_done else "is not empty"
            raise ConfigError(f"{str(out)!r} {why}; name another folder.") from None
        if before != state:
            differs = next(key for key in state if before.get(key) != state[key])
            raise ConfigError(f"{str(out)!r} was begun with another {differs}; finish that, or name another folder.")
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError(f"{str(out)!r} cannot be made: {exc.strerror}.") from exc
    write_json(out / _STATE, state)


def _line(exc: Exception) -> str:
    return " ".join(str(exc).split())[:300]
