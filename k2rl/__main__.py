"""`python -m k2rl`."""

from k2rl.cli import main

main()
