"""Who can be chosen: workers with their labels, descriptions and edges, checked to be a graph that can be walked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import ascii_lowercase, ascii_uppercase, digits

from nearfar.errors import ConfigError

#: Labels of workers that have none of their own: text that is one token of every tokenizer in use, and looks the same
#: on every wire. See docs/functional-tokens.md for why no tokens are added.
DEFAULT_LABELS = ascii_uppercase + ascii_lowercase + digits


@dataclass(frozen=True, slots=True)
class Worker:
    """A node of the graph: somebody who answers queries of a kind.

    `description` is the docstring that the choosing model reads, and that a trained label stands for.
    """

    name: str
    description: str
    label: str  # one token of the choosing model's tokenizer
    successors: tuple[str, ...] = ()  # workers that may go on with this one's answer


@dataclass(frozen=True, slots=True)
class WorkerGraph:
    """Workers by the order in which the choosing model is told of them.

    Args:
        workers: at least two.
        general: the one that takes what nobody is chosen for with enough certainty.

    Raises:
        ConfigError: fewer than two workers, two of one name or label, an empty description, or an edge, or `general`,
            that leads to nobody.
    """

    workers: Sequence[Worker]
    general: str
    by_name: Mapping[str, Worker] = field(init=False)

    def __post_init__(self) -> None:
        if len(self.workers) < 2:
            raise ConfigError(f"There are {len(self.workers)} workers to choose from; name two or more.")
        for kind in ("name", "label"):
            values = [getattr(worker, kind) for worker in self.workers]
            twice = next((value for value in values if values.count(value) > 1), None)
            if twice is not None:
                raise ConfigError(f"Two workers have the {kind} {twice!r}; give each its own.")
        object.__setattr__(self, "by_name", {worker.name: worker for worker in self.workers})
        for worker in self.workers:
            if not worker.description.strip():
                raise ConfigError(f"Worker {worker.name!r} has no description; say what it is good at.")
            if not worker.label:
                raise ConfigError(f"Worker {worker.name!r} has an empty label; leave it out, or give one token.")
            for successor in worker.successors:
                if successor not in self.by_name:
                    raise ConfigError(
                        f"Worker {worker.name!r} hands on to {successor!r}, which is no worker; there are "
                        f"{', '.join(map(repr, self.by_name))}."
                    )
            if worker.name in worker.successors:
                raise ConfigError(f"Worker {worker.name!r} hands on to itself; remove the edge.")
        if self.general not in self.by_name:
            raise ConfigError(
                f"The general worker {self.general!r} is no worker; there are {', '.join(map(repr, self.by_name))}."
            )

    def successors(self, name: str) -> tuple[Worker, ...]:
        """The workers that may go on after `name` has answered."""
        return tuple(self.by_name[each] for each in self.by_name[name].successors)


def free_labels(taken: Sequence[str], count: int) -> list[str]:
    """So many default labels that are not taken.

    Raises:
        ConfigError: there are not so many.
    """
    free = [label for label in DEFAULT_LABELS if label not in taken]
    if len(free) < count:
        raise ConfigError(f"There are labels for {len(DEFAULT_LABELS)} workers; give the others a label each.")
    return free[:count]
