"""Policies on disk: which scorer and threshold each tier uses, what they were fitted on and what they promise."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from math import isfinite
from pathlib import Path
from typing import Any

import msgspec

from nearfar.errors import ConfigError, DataError

from .scorers import AnyScorer

#: Version of the file format. Raise it for any change that an older nearfar would misread.
FORMAT_VERSION = 1

#: Values of a reference: enough for the ranks of the shift test, and some 10 kB of the file.
_MOST_REFERENCES = 500


class DataFingerprint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which labelled answers a tier was fitted on.

    Attributes:
        sha256: of the labelled answers, in order, as `calibration.fingerprint` writes them.
        n: how many.
        accuracy: their mean outcome, in [0, 1].
    """

    sha256: str
    n: int
    accuracy: float


class Reference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A signal of the labelled answers, by which a monitor tells whether later ones are like them.

    Attributes:
        signal: its name.
        values: of the labelled answers, or of some of them; finite.
    """

    signal: str
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values or not all(map(isfinite, self.values)):
            raise ValueError("a reference needs values, all of them finite")

    @classmethod
    def of(cls, signal: str, values: Sequence[float]) -> Reference | None:
        """With so many of the values, evenly spaced, that a policy file stays small; None: none of them is finite."""
        finite = [value for value in values if isfinite(value)]
        step = -(-len(finite) // _MOST_REFERENCES) or 1
        return cls(signal, tuple(finite[::step])) if finite else None


class TierPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How one tier decides.

    Attributes:
        model: name of the model whose answers were labelled; the policy holds for no other.
        scorer: turns the answer's signals into a score.
        threshold: the tier's answer is final where score ≥ threshold; None: it never is.
        data: what it was fitted on; None: written by hand.
        guarantee: what the threshold promises, and with which confidence; None: nothing.
        measured: figures of the fit on answers that it had not seen (auroc, ece, brier, coverage, …).
        reference: a signal of the labelled answers, for the monitor; None: shifts are not watched.
        abstain_below: the score below which no further tier is asked, where the query takes abstention; None: never.
    """

    model: str
    scorer: AnyScorer
    threshold: float | None
    data: DataFingerprint | None = None
    guarantee: Mapping[str, Any] | None = None
    measured: Mapping[str, float] = {}
    reference: Reference | None = None
    abstain_below: float | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must be in [0, 1], or null where nothing is accepted, not {self.threshold!r}")
        highest = 1.0 if self.threshold is None else self.threshold
        if self.abstain_below is not None and not 0 <= self.abstain_below <= highest:
            raise ValueError(f"abstain_below must be in [0, threshold], not {self.abstain_below!r}")

    @property
    def signals(self) -> tuple[str, ...]:
        """The signals that the scorer reads."""
        return self.scorer.signals

    @property
    def accepts_nothing(self) -> bool:
        """Whether the tier always defers, because no threshold was good enough."""
        return self.threshold is None


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A fitted policy, as `nearfar calibrate` writes it.

    Attributes:
        name: what configs and decision records call it.
        version: counts up with every fit under the same name.
        created_at: when it was fitted, with a time zone.
        nearfar_version: the version that fitted it.
        tiers: by the tier's name.
        format_version: of the file.
    """

    format_version: int = FORMAT_VERSION
    name: str
    version: int = 1
    created_at: datetime
    nearfar_version: str
    tiers: Mapping[str, TierPolicy]

    def __post_init__(self) -> None:
        if not self.name or "@" in self.name:
            raise ValueError(f"name must be some text without '@', not {self.name!r}")
        if self.version < 1:
            raise ValueError(f"version must be at least 1, not {self.version!r}")
        if self.created_at.tzinfo is None:
            raise ValueError("created_at needs a time zone")
        if not self.tiers:
            raise ValueError("a policy needs at least one tier")

    @property
    def label(self) -> str:
        """name@version, as decision records cite it."""
        return f"{self.name}@{self.version}"

    def tier(self, name: str, *, model: str) -> TierPolicy:
        """The part for one tier, provided that it was fitted on this model's answers.

        Raises:
            ConfigError: the policy has no such tier, or was fitted on another model.
        """
        found = self.tiers.get(name)
        if found is None:
            raise ConfigError(
                f"The policy {self.label!r} has no tier {name!r}; it has {', '.join(map(repr, sorted(self.tiers)))}. "
                "Rename the tier, or fit it: nearfar calibrate."
            )
        if found.model != model:
            raise ConfigError(
                f"The policy {self.label!r} was fitted on answers of {found.model!r}, and tier {name!r} is {model!r}. "
                f"Fit it on labelled answers of {model!r}: nearfar calibrate."
            )
        return found

    def save(self, path: str | Path) -> None:
        """Writes the policy file, whole or not at all.

        Raises:
            DataError: the file cannot be written.
        """
        path = Path(path)
        text = msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                Path(name).chmod(0o644)
                Path(name).replace(path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError as exc:
            raise DataError(
                f"Cannot write the policy {str(path)!r}: {exc.strerror}. Name a file where you may write.",
                path=str(path),
            ) from exc

    @classmethod
    def load(cls, path: str | Path) -> Policy:
        """The policy in a file.

        Raises:
            ConfigError: there is no such file.
            DataError: not a policy, of a newer format, or with keys or numbers that no policy has.
        """
        path = Path(path)
        try:
            data = path.read_bytes()
        except FileNotFoundError as exc:
            raise ConfigError(f"No policy at {str(path)!r}. Fit one: nearfar calibrate --help.") from exc
        except OSError as exc:
            raise DataError(f"Cannot read the policy {str(path)!r}: {exc.strerror}.", path=str(path)) from exc
        try:
            header = msgspec.json.decode(data, type=_Header)
            if header.format_version > FORMAT_VERSION:
                raise DataError(
                    f"The policy {str(path)!r} has format version {header.format_version}; this nearfar knows "
                    f"{FORMAT_VERSION}. Upgrade nearfar, or fit the policy anew: nearfar calibrate.",
                    path=str(path),
                )
            return msgspec.json.decode(data, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise DataError(
                f"{str(path)!r} is not a policy: {exc}. Mend it, or fit it anew: nearfar calibrate.", path=str(path)
            ) from exc


class _Header(msgspec.Struct):
    """What every format version has, read before the rest."""

    format_version: int
