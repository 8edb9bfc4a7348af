"""Takes and gives back files in every shape that Cog has: one, a list, one that may be missing, one as a stream."""

from hashlib import sha256
from tempfile import mkdtemp
from typing import Optional

from cog import BaseModel, BaseRunner, File, Input, Path


class Output(BaseModel):
    one: Path
    some: list[Path]
    names: list[str]
    digests: list[str]
    maybe: Optional[Path] = None  # noqa: UP045 - as Cog's own models say it


class Runner(BaseRunner):
    def run(
        self,
        one: Path = Input(description="A file"),  # noqa: B008 - how Cog says it
        some: list[Path] = Input(description="Files"),  # noqa: B008
        maybe: Optional[Path] = Input(description="A file, or none", default=None),  # noqa: B008, UP045
        stream: Optional[File] = Input(description="A file, read as it comes", default=None),  # noqa: B008, UP045
    ) -> Output:
        given = [one, *some, *([maybe] if maybe else [])]
        contents = [path.read_bytes() for path in given]
        if stream:
            contents.append(stream.read())
        return Output(
            one=write("one.webp", contents[0]),
            some=[write(f"some{number}.wav", content) for number, content in enumerate(contents[1 : 1 + len(some)])],
            maybe=write("maybe.glb", maybe.read_bytes()) if maybe else None,
            names=[path.name for path in given],
            digests=[sha256(content).hexdigest() for content in contents],
        )


def write(name: str, content: bytes) -> Path:
    path = Path(mkdtemp()) / name
    path.write_bytes(content)
    return path
