"""Takes its time to write a file, and on request keeps a diary of its runs."""

import time
from tempfile import mkdtemp

from cog import BasePredictor, Input, Path


class Predictor(BasePredictor):
    def predict(
        self,
        seconds: float = Input(description="How long to take", ge=0, le=600),
        diary: str = Input(description="The file to write to", default=""),
    ) -> Path:
        print("painting")
        write(diary, "begin")
        time.sleep(seconds)
        write(diary, "end")
        path = Path(mkdtemp()) / "painted.txt"
        path.write_text("painted")
        return path


def write(diary: str, event: str) -> None:
    if diary:
        with open(diary, "a") as file:
            file.write(f"{event}\n")
