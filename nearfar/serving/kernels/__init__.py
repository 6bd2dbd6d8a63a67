"""Fast kernels for nested planes; where one cannot run, the operation's reference in torch does.

`cpu` is built by a C++ compiler on the machine that it runs on. Imports torch, and is imported by those who have it.
"""
