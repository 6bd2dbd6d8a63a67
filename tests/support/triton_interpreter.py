"""Triton's interpreter for the tests of kernels; importing this skips the importing module where there is none."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

pytest.importorskip("torch", reason="torch is not installed; `make test-torch` has it")


@contextmanager
def interpreting() -> Iterator[None]:
    """Functions that are given to Triton in here are interpreted; programs started later know nothing of it."""
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TRITON_INTERPRET"]
        else:
            os.environ["TRITON_INTERPRET"] = before


with interpreting():
    pytest.importorskip("triton", reason="Triton is not installed; `make test-torch` has it")
    import triton
    import triton.language

    # Its own functions are made for the interpreter too, or not, when they are first loaded.
    if isinstance(triton.language.cdiv, triton.JITFunction):
        pytest.skip("Triton was loaded before, to compile; `make test-torch` interprets", allow_module_level=True)
    import triton.experimental.gluon.nvidia  # which the interpreter loads at its first launch

    import nearfar.serving.kernels.triton_gemm  # noqa: F401
