"""`cogflare`, which is `python -m cogflare.cli` too."""

from cogflare.cli.starting import start


def main() -> None:
    """Run the command line."""
    start("cogflare.cli.main:cogflare")


if __name__ == "__main__":
    main()
