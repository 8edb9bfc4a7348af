"""`cogflare-worker`, which is `python -m cogflare.cli.workergroup` too: in the join line, and in units of systemd."""

from cogflare.cli.starting import start


def main() -> None:
    """Run the command line."""
    start("cogflare.cli.workercommands:worker", "cogflare-worker")


if __name__ == "__main__":
    main()
