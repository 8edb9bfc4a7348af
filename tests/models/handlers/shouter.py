"""A handler as RunPod's documentation writes them: it checks its input, tells how far it is, and says what is wrong."""

import time

import runpod
from runpod.serverless.utils.rp_validator import validate

SCHEMA = {
    "text": {"type": str, "required": True},
    "times": {"type": int, "required": False, "default": 1, "constraints": lambda times: 0 < times < 100},
    "seconds": {"type": float, "required": False, "default": 0.0},
}

log = runpod.RunPodLogger()


def handler(job):
    checked = validate(job["input"], SCHEMA)
    if "errors" in checked:
        return {"error": checked["errors"]}
    given = checked["validated_input"]

    log.info(f"shouting {given['times']} times", job["id"])
    shouted = []
    for number in range(given["times"]):
        runpod.serverless.progress_update(job, f"Update {number + 1}/{given['times']}")
        time.sleep(given["seconds"])
        shouted.append(given["text"].upper())
    return {"shouted": shouted, "refresh_worker": False}


if __name__ == "__main__":
    runpod.serverless.start({"handler": handler})
