"""The command line: parse, call, print. Results go to stdout, progress to stderr."""

from .run import main

__all__ = ["main"]
