"""`python -m graphpass`."""

from graphpass.cli import main

main()
