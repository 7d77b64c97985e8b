"""Bad input to the Python programs themselves: their flags, the KEY VALUE pairs of the two configuration trees, YAML files."""
import os
import re
import sys

from ci.campaign import process
from conftest import ROOT, environment
from test_all_scripts import EVAL, FULL

PROGRAMS = {  # program: (script that calls it, folder)
    "ResNet50": {"main.py": FULL[1]}, "HRNet": {"tools/train.py": FULL[1], "tools/valid.py": EVAL[1]},
              "GENet": {"train.py": FULL[1]},
    "EfficientNet-B3": {"tools/train_net.py": FULL[1], "tools/test_net.py": EVAL[1]},
    "FixRes": {"main_resnet50_scratch.py": FULL[1], "main_finetune.py": "finetune_full_1p.sh", "main_evaluate_imnet.py": EVAL[1]}}
TREES = {"HRNet": "lib/config/default.py", "EfficientNet-B3": "pycls/core/config.py"}
VALUES = ("-1", "x", "nan", "1e999", "", "1" + 30 * "0", "5\n6", "0", "-0.5", "$(touch MARK)")
KEY_VALUES = ("-1", "-1.0", "x", "[]", "'nan'", "''", "None", "[-1, 0]", "1e999", "{1: 2}", "1" + 30 * "0",
              "__import__('os').system('touch MARK')", "0")
YAMLS = ("", "x", "[1, 2]", "a: &a [*a]", "MODEL: {NAME: !!python/object/apply:os.system ['touch MARK']}", "\0", "MODEL: 3",
         "TRAIN: {LR: [}",
         "NO_SUCH_KEY: 1", "OUT_DIR: 7\nOUTPUT_DIR: 7", "%YAML 9.9\n---\n", "\t- x", "--- 1\n--- 2\n", "!!python/name:os.system",
         "TRAIN:\n  BATCH_SIZE: text",
         "MODEL: {NUM_CLASSES: .nan}", "MODEL: {<<: 5}", "? [1]\n: 2", "MODEL: 2026-11-26", "DATASET: {ROOT: !!binary aGk=}")
# What the issue tracker knows to be out of range.
WRONG = {"EfficientNet-B3": (("OPTIM.WEIGHT_DECAY", "-1.0"), ("EN.STEM_W", "0"), ("BN.EPS", "-1.0"), ("EN.STEM_W", "-8"),
                             ("OPTIM.BASE_LR", "-1.0"),
                             ("TRAIN.BATCH_SIZE", "0"), ("DATA_LOADER.NUM_WORKERS", "-1"), ("OPTIM.MAX_EPOCH", "0"),
                             ("RNG_SEED", "-1")),
         "HRNet": (("TRAIN.LR_STEP", "text"), ("TRAIN.LR_STEP", "['a']"), ("TRAIN.BEGIN_EPOCH", "-3"), ("TRAIN.WD", "-1.0"),
                   ("TRAIN.MOMENTUM", "-1.0"), ("MODEL.NUM_CLASSES", "0"), ("WORKERS", "-1"), ("PRINT_FREQ", "0"))}
SIGNED = ("lr", "learning-rate", "momentum", "wd", "weight-decay", "batch-size", "batch", "bs", "epochs", "seed", "workers")


def cases(model):
    """Yield the trials of a model's programs. A negative number is wrong for most flags; other values only may not crash."""
    for program, script in PROGRAMS[model].items():
        for flag in flags(model, program):
            for value in VALUES:
                right = (2,) if (flag in SIGNED and value in ("-1", "x", "nan")) else (0, 2, 3)
                yield _case(script, ["--%s=%s" % (flag, value)], right)
        for words in (["--no-such-flag"], ["--="], ["--"], ["stray"], ["-"], ["NO.SUCH.KEY", "1"], ["--lr"], ["\udcff"]):
            yield _case(script, words, (0, 2))
        for key in keys(model):
            for value in KEY_VALUES:
                yield _case(script, [key, value], (0, 2, 3))
        for text in YAMLS if model in TREES else ():
            yield _case(script, [], (2,) if "!!" in text or text in ("x", "\0", "[1, 2]") else (0, 2, 3), yaml=text)
    for key, value in WRONG.get(model, ()):
        yield _case(FULL[1], [key, value], (2,))


def _case(script, words, statuses, **more):
    return dict(more, kind="program", script=script, words=words, statuses=list(statuses))


def flags(model, program):
    """Return the flags of a program that take a value, from the calls of add_argument in its source and in common/."""
    found = set()
    for path in (program, "../common/flags.py"):
        with open(os.path.join(ROOT, model, path)) as stream:
            found.update(re.findall(r"[(\s]\"--([a-z0-9_-]+)\"(?![^)\n]*store_true)", stream.read()))
    return sorted(name.replace("_", "-") for name in found)


def keys(model):
    """Return the keys of a model's configuration tree."""
    if model not in TREES:
        return []
    with open(os.path.join(ROOT, model, TREES[model])) as stream:
        found = re.findall(r"^_C\.([A-Z0-9_.]+) = (.+)$", stream.read(), re.M)
    return [key for key, default in found if "CN(" not in default and "CfgNode(" not in default]


def prepare(trial, words, place, world):
    """Return the command of the trial: what the script hands over to the program, and the wrong words after it."""
    if "yaml" in trial:
        words["cfg"] = os.path.join(place, "c.yaml")
        with open(words["cfg"], "w") as stream:
            stream.write(trial["yaml"].replace("MARK", os.path.join(place, "mark")))
    command = handed_over(process.command(trial["model"], trial["script"],
                                          {k: v for k, v in words.items() if k != "cfg" or "yaml" not in trial}), place)
    if "yaml" in trial:
        command = [word for word in command if not word.startswith("--cfg=")]
        command[2:3] = [command[2], "--cfg=" + words["cfg"]]
    trial["folder"] = trial["model"]
    return command + trial["words"]


def handed_over(command, place):
    """Return the words that a script gives to python3 after run.py's own."""
    stand_in = os.path.join(place, "words", "python3")
    os.makedirs(os.path.dirname(stand_in))
    with open(stand_in, "w") as stream:
        stream.write("#!/bin/bash\ncase $1 in */launch.py) exec '%s' \"$@\" ;; esac\nprintf '%%s\\0' \"$@\"\n" % sys.executable)
    os.chmod(stand_in, 0o755)
    env = environment()
    env["PATH"] = os.path.dirname(stand_in) + os.pathsep + env["PATH"]
    done = process.run(command, place, env=env)
    assert done.status == 0, done.stderr
    words = done.stdout.split("\0")[:-1]
    return words[words.index("--") + 1:]
