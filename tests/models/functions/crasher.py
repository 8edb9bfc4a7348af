"""Takes its whole process down in mid-run, as an out-of-memory kill would."""

import os


def run(crash: bool = True) -> str:
    if crash:
        print("about to die", flush=True)
        os._exit(13)
    return "alive"
