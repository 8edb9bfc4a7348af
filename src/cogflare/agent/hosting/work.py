"""The model's process: sets the model up, then runs what the front tells it (`turns`, or `tasks` for coroutines)."""

import argparse
import faulthandler
import os
import socket
import sys

from . import functions, handlers, tasks, turns
from .capture import Logs
from .frames import Channel
from .model import Model, SetupError
from .reports import Reports, told_traceback
from .stopping import Interrupts


def serve(options: argparse.Namespace) -> None:
    """Set the model up and run until the front is gone."""
    os.set_inheritable(options.model_fd, False)
    interrupts = Interrupts()
    channel = Channel(socket.socket(fileno=options.model_fd), interrupts.shield)
    os.register_at_fork(after_in_child=channel.close)
    faulthandler.enable()
    logs = Logs(channel)
    logs.install()
    sys.argv = [options.target]
    reports = Reports(channel, logs, options.upload_url)

    def ready(model: Model) -> None:
        if options.slots > 1 and not model.is_async:
            raise SetupError(f"it is no async function, so it takes one run at a time and not {options.slots}")
        logs.flush(None)
        channel.send({"type": "ready", "document": model.document, "slots": options.slots})
        if model.is_async:
            tasks.run(model, channel, reports)
        turns.run(model, channel, reports, interrupts)

    try:
        if options.mode == "function":
            ready(functions.load(options.target))
        else:
            handlers.run(options.target, ready)
    except SetupError as error:
        _give_up(channel, logs, f"{error}\n")
    except BaseException as error:
        if not channel.is_ours:
            raise
        _give_up(channel, logs, told_traceback(error))


def _give_up(channel: Channel, logs: Logs, why: str) -> None:
    logs.flush(None)
    channel.send({"type": "unready", "error": why})
    sys.exit(1)
