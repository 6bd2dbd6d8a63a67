"""Fitted label calibrations on disk: which workers, model and prompt one holds for, and what it was fitted on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import msgspec

from nearfar.errors import ConfigError, DataError

from .distribution import LabelCalibration
from .graph import WorkerGraph
from .prompts import Style, choice_prompt

#: Version of the file format. Raise it for any change that an older nearfar would misread.
FORMAT_VERSION = 1


class TokenPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a router reads its labels, as `nearfar train` writes it.

    Attributes:
        name: what decisions call it.
        version: counts up with every fit under the same name.
        created_at: with a time zone.
        nearfar_version: the version that fitted it.
        model: the choosing model's name; the calibration holds for no other.
        style: of the prompt.
        labels: by worker.
        prompt_sha256: of the prompt without a query, so that a calibration does not outlive its descriptions.
        scale: of the labels' log-probabilities.
        bias: by worker.
        n: labelled queries that it was fitted on.
        data_sha256: of those, in order.
        measured: figures on queries that the fit had not seen.
        format_version: of the file.
    """

    format_version: int = FORMAT_VERSION
    name: str
    version: int = 1
    created_at: datetime
    nearfar_version: str
    model: str
    style: Style
    labels: Mapping[str, str]
    prompt_sha256: str
    scale: float
    bias: Mapping[str, float]
    n: int
    data_sha256: str
    measured: Mapping[str, float] = {}

    @property
    def label(self) -> str:
        """name@version, as decision records cite it."""
        return f"{self.name}@{self.version}"

    def calibration(self, graph: WorkerGraph, *, model: str, style: Style) -> LabelCalibration:
        """The calibration, provided that it was fitted for these workers, this model and this prompt.

        Raises:
            ConfigError: it was fitted for others.
        """
        labels = {worker.name: worker.label for worker in graph.workers}
        if self.model != model:
            raise ConfigError(
                f"The policy {self.label!r} was fitted on choices of {self.model!r}, and the choosing model is "
                f"{model!r}. Fit it anew: nearfar train calibration."
            )
        if dict(self.labels) != labels or self.style != style or self.prompt_sha256 != prompt_sha256(graph, style):
            raise ConfigError(
                f"The policy {self.label!r} was fitted for other workers, labels or descriptions. Fit it anew: "
                "nearfar train calibration."
            )
        return LabelCalibration(self.scale, {labels[worker]: bias for worker, bias in self.bias.items()})

    @classmethod
    def load(cls, path: str | Path) -> TokenPolicy:
        """The policy in the file.

        Raises:
            ConfigError: there is no such file.
            DataError: it is no such policy, or of a newer format.
        """
        path = Path(path)
        try:
            found = msgspec.json.decode(path.read_bytes(), type=cls)
        except FileNotFoundError as exc:
            raise ConfigError(f"There is no policy {str(path)!r}. Make one: nearfar train calibration.") from exc
        except (OSError, msgspec.DecodeError) as exc:
            raise DataError(f"The policy {str(path)!r} cannot be read: {exc}.", path=str(path)) from exc
        if found.format_version != FORMAT_VERSION:
            raise DataError(
                f"The policy {str(path)!r} has format {found.format_version}; this nearfar reads {FORMAT_VERSION}.",
                path=str(path),
            )
        return found

    def save(self, path: str | Path) -> None:
        """Writes the file, whole or not at all.

        Raises:
            DataError: it cannot be written.
        """
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n")
            temporary.replace(path)
        except OSError as exc:
            raise DataError(f"Cannot write the policy {str(path)!r}: {exc.strerror}.", path=str(path)) from exc


def prompt_sha256(graph: WorkerGraph, style: Style) -> str:
    """SHA-256 of what the choosing model is told besides the query."""
    told = "\n".join(f"{message.role}: {message.text}" for message in choice_prompt(graph.workers, "", style))
    return hashlib.sha256(told.encode()).hexdigest()
