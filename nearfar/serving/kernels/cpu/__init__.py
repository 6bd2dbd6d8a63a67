"""Nested planes on CPUs: codes times int8 activations, with AVX-512 VNNI or AVX2, on torch's own threads."""

from .extension import Extension, load
from .linear import install, is_supported, pack, packed_linear

__all__ = ["Extension", "install", "is_supported", "load", "pack", "packed_linear"]
