"""Returns a plain list of files of very different sizes."""

from tempfile import mkdtemp
from typing import List  # noqa: UP035 - the first versions of Cog know no other

from cog import BasePredictor, Input, Path


class Predictor(BasePredictor):
    def predict(self, count: int = Input(description="How many files", default=6, ge=0, le=20)) -> List[Path]:  # noqa: UP006
        return [write(number) for number in range(count)]


def write(number: int) -> Path:
    path = Path(mkdtemp()) / "picture.png"
    path.write_bytes(bytes([number]) * (1 if number % 2 else 300_000))
    return path
