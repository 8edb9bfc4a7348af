"""Gives a file back under a name that needs care, as large as is asked for."""

from tempfile import mkdtemp

from cog import BaseRunner, Input, Path


class Runner(BaseRunner):
    def run(
        self,
        source: Path = Input(description="The file"),  # noqa: B008 - how Cog says it
        megabytes: int = Input(description="Make it so large, by repetition", default=0, ge=0, le=500),
    ) -> Path:
        content = source.read_bytes()
        path = Path(mkdtemp()) / "an écho, again.png"
        with path.open("wb") as file:
            written = file.write(content)
            while written < megabytes << 20:
                print(f"{written} bytes")
                written += file.write((content * (1 + (1 << 20) // len(content)))[: (megabytes << 20) - written])
        return path
