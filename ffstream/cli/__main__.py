"""`python -m ffstream.cli` is `ffstream`."""

from ffstream.cli import main

main(prog_name="ffstream")
