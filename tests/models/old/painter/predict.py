"""Takes its time to write a file, and on request dies of it, or keeps a diary of its runs."""

import os
import time
from tempfile import mkdtemp

from cog import BasePredictor, Input, Path


class Predictor(BasePredictor):
    def predict(
        self,
        seconds: float = Input(description="How long to take", ge=0, le=600),
        diary: str = Input(description="The file to write to", default=""),
        name: str = Input(description="The name of the file, which is not there without one", default="painted.txt"),
        crash: bool = Input(description="Die instead of painting", default=False),
    ) -> Path:
        print("painting")
        write(diary, "begin")
        time.sleep(seconds)
        write(diary, "end")
        if crash:
            os._exit(13)
        path = Path(mkdtemp()) / name
        if name:
            path.write_text("painted")
        return path


def write(diary: str, event: str) -> None:
    if diary:
        with open(diary, "a") as file:
            file.write(f"{event}\n")
