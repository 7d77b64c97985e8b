"""Kill -9 at a file of the output folder: the campaign puts this folder on the PYTHONPATH of a run.

CAMPAIGN_KILL = {"out": folder, "at": k, "delay": seconds, "pid": file} has the process that is about to write or rename its k-th
file in that folder kill the script and itself, `delay` seconds later.
"""
import json
import os
import signal
import sys
import threading
import time

import eager  # noqa: F401  (networks as narrow as those of the other runs)


def _kill(asked):
    time.sleep(asked["delay"])
    try:
        with open(asked["pid"]) as stream:
            os.kill(int(stream.read()), signal.SIGKILL)
    finally:
        os.kill(os.getpid(), signal.SIGKILL)


def _watch(asked):
    seen = [0]

    def hook(event, arguments):
        if event not in ("open", "os.rename", "os.link"):
            return
        path, write = arguments[0], event != "open" or arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if not write or not isinstance(path, str) or not path.startswith(asked["out"]):
            return
        seen[0] += 1
        if seen[0] == asked["at"]:
            if asked["delay"]:
                threading.Thread(target=_kill, args=(asked,), daemon=True).start()
            else:
                _kill(asked)
    sys.addaudithook(hook)


if "CAMPAIGN_KILL" in os.environ:
    _watch(json.loads(os.environ["CAMPAIGN_KILL"]))
