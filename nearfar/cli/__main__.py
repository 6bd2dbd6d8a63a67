"""`python -m nearfar.cli`, where the `nearfar` script is not on the path."""

from .run import main

main()
