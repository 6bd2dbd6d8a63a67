"""Builds everything that the settings describe, and nothing else: each kind of model is imported when one is named.

`build` gives all of it at once; each module builds what its name says, for doors that need no more.
"""

from .build import Wired, build

__all__ = ["Wired", "build"]
