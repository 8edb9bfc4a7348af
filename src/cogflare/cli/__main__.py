"""`python -m cogflare.cli` is `cogflare`."""

from cogflare.cli.main import main

main()
