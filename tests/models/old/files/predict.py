"""One file in; files out on their own, in a list and inside an object, beside text that only looks like one."""

from tempfile import mkdtemp
from typing import List  # noqa: UP035 - the first versions of Cog know no other

from cog import BasePredictor, Input, Path
from pydantic import BaseModel


class Output(BaseModel):
    single: Path
    many: List[Path]  # noqa: UP006
    text: str


class Predictor(BasePredictor):
    def predict(
        self,
        source: Path = Input(description="The file to shout"),  # noqa: B008 - how Cog says it
        copies: int = Input(default=2, ge=0),
    ) -> Output:
        shouted = source.read_bytes().upper()
        return Output(
            single=write("shout.txt", shouted),
            many=[write(f"copy{number}.bin", shouted + bytes([number])) for number in range(copies)],
            text="data:text/plain,not a file",
        )


def write(name: str, content: bytes) -> Path:
    path = Path(mkdtemp()) / name
    path.write_bytes(content)
    return path
