"""Bad input of every kind: one line, status 2 (3 where it shows in the middle of a training), and nothing touched.

`statuses` of a trial are those that are right: 0 too where a program may well take the value.
"""
import atexit
import itertools
import os
import shutil
import sys

from ci.campaign import inputs_of_programs, mangled, process
from ci.campaign.forks import Forks
from ci.campaign.world import NETWORK, SMALL
from conftest import ROOT, environment
from test_all_scripts import EVAL, FULL

SHORT, LONG = 40, 1000

NATURAL = ("device_id", "workers", "seed", "checkpoint_steps")
POSITIVE = ("batch_size", "train_epochs", "accumulate", "max_steps", "image_size", "num_classes", "eval_freq", "test_batch_size",
            "depth",
            "width")
SWITCHES = ("resume", "deterministic", "allow_tf32", "compile", "skip_bad_images")
CHOICES = ("device", "opt_level", "precision_mode", "amp_dtype", "decoder", "use_ema", "lr_scaling", "transforms", "dataset",
           "extent",
           "extra_params", "mlp", "architecture", "resize")
# MARK: a file that only a shell that runs the value would make.
WORDS = ("", "x", "-1", "nan", "-inf", "0x10", "1_0", "\u0663", " 5", "5 ", "5\n6", "--", "$(touch MARK)", "`touch MARK`",
         "5;touch MARK", "*", "5,6",
         "'", '"', "\\", "%s", "5.5.5", "+", "1e", "A" * 5000, "\udcff", "True", "None", "a b", "../..", "0x", "~", "[5]", "{5}",
         "5|touch MARK")
HUGE = str(10 ** 30)
TEXTS = ("arch", "cfg", "epoch_step")
OTHERS = ("learning_rate", "device_list", "profile_steps")
PLACES = {"file": "file/o", "proc": "/proc/campaign", "long name": "o" * 300, "null": "/dev/null", "link to nothing": "nowhere/x",
          "device file": "/dev/full/o", "sys": "/sys/x", "metacharacters": "a $HOME $(touch MARK) ;touch MARK; 'b\" * é",
          "newline": "a\nb"}


def trials(seed, world):
    """Return every case once, in an order that `seed` draws, the kinds in turn; then none is left."""
    world.forks = Forks(world.folder)
    atexit.register(world.forks.close)  # trials still run when the last one has been drawn
    cases = [dict(case, model=model) for model in sorted(NETWORK) for case in itertools.chain(
        _options(model, world), _words(), _weights(model), _resumes(model, world), _data(model), _outputs(), _environments(),
        inputs_of_programs.cases(model))]
    world.rng("inputs", seed).shuffle(cases)
    kinds = [[case for case in cases if case["kind"] == kind] for kind in sorted(_PREPARE)]
    return filter(None, itertools.chain.from_iterable(itertools.zip_longest(*kinds)))


def _case(kind, script, statuses=(2,), **more):
    return dict(more, kind=kind, script=script, statuses=list(statuses))


def _options(model, world):
    for script in (FULL[1], FULL[2], EVAL[1]):
        known = world.options(model, script)
        for name in [name for name in NATURAL + POSITIVE + SWITCHES + CHOICES + TEXTS + OTHERS if name in known]:
            for value in world.rng(model, script, name).sample(WORDS, 8 if script == FULL[1] else 3):
                yield _case("option", script, _right(name, value), option=name, value=value)
        for name in [name for name in NATURAL + POSITIVE if name in known]:
            yield _case("option", script, (2, 3), option=name, value=HUGE)
            if name != "train_epochs" or model == "GENet":  # whose eight epochs take seconds
                yield _case("option", script, (0, 2), option=name, value="08")
        for name in [name for name in POSITIVE if name in known]:
            yield _case("option", script, (2,), option=name, value="0")
    for value in ("1e999", "1e30", HUGE, "inf"):
        yield _case("option", FULL[1], (2, 3), option="learning_rate", value=value)
    yield _case("option", FULL[1], (2, 3), option="image_size", value="100000")
    if model == "ResNet50":
        machines = {"nnodes": "2", "node_rank": "1", "device_list": "0"}
        for option, value in (("master_addr", "no.such.host.invalid"), ("master_addr", ""), ("master_addr", "a b"),
                              ("master_port", "70000"), ("node_rank", "2"),
                              ("nnodes", "0")):
            yield _case("option", "train_performance_multinodes.sh", (2,), option=option, value=value, more=machines)
    for value in ("0,0", "0,", ",", "0,99999999999999999999", "0,1,0"):
        yield _case("option", FULL[2], (2,), option="device_list", value=value)


def _right(name, value):
    """The statuses that are right for a value of an option: most are wrong for all of them."""
    if name == "device_list" and value == "5,6":
        return (0, 2)  # a batch may not divide
    if name in ("extra_params", "mlp") and value == "True" or name == "epoch_step" and value == "[5]":
        return (0,)
    if value == "" and name not in TEXTS or name == "epoch_step":
        return (0, 2)  # empty: the recipe's
    return (2,)


def _words():
    for word in ("--=5", "--", "-", "---seed=1", "nonsense", "--no_such=1", "--$(touch MARK)=1", "--seed", "--seed==5", "-x",
                 "--help=1",
                 "--batch size=8", "--batch_size 8", "", " ", "--\n=1", "--a[$(touch MARK)]=1", "--path=1", "--PATH=1",
                 "--option_check=1",
                 "--flags=1", "--IFS=,", "--model_path=/"):
        for script in (FULL[1], EVAL[1]):
            yield _case("word", script, (0, 2) if word == "--help=1" else (2,), word=word)


def _weights(model):
    scripts = [EVAL[1], FULL[1]] + (["finetune_full_1p.sh"] if model == "FixRes" else [])
    for name in list(mangled.BYTES) + list(mangled.WEIGHTS):
        for script in scripts:
            right = (2, 3) if name in ("nan", "inf") else (0, 2) if name in ("bool", "missing key", "a number key") else (2,)
            yield _case("weights", script, right, mangle=name)


def _resumes(model, world):
    names = list(mangled.BYTES) + list(mangled.RESUMED) + list(mangled.PARTS)
    if model != "GENet":  # whose checkpoints are a hundredth of the others'
        names = world.rng(model, "resume").sample(names, len(names) // 3)
    for name in names:
        lenient = name in ("gone", "folder", "pipe", "link to itself") or name in mangled.RESUMED or name in mangled.PARTS
        yield _case("resume", FULL[1], (0, 2, 3) if lenient else (2,), mangle=name)
    for option, value in (("seed", "6"), ("batch_size", "4")):
        yield _case("resume", FULL[1], (2,), mangle="", option=option, value=value)
    for content in ("", "no record\n", "DLLL {\n", "\0" * 100, "DLLL []\n", "DLLL {}\n",
                    'DLLL {"type": "LOG", "step": "x", "data": 3}\n'):
        yield _case("resume", FULL[1], (0, 2), mangle="", records=content)


def _data(model):
    for name in mangled.CIFAR if SMALL[model].layout == "cifar" else mangled.IMAGES:
        lenient = name in ("folder as picture", "macOS file", "empty class", "huge PNG", "class links back", "floats", "no images",
                           "file gone", "other classes in val") or model == "FixRes"  # whose epochs see a third of the images
        for workers in ("0", "1"):
            yield _case("data", FULL[1], (0, 2, 3) if lenient else (2, 3), mangle=name, workers=workers)
    for path in ("", "/no/such", "/dev/null", "/proc", "$(touch MARK)", "a\nb", "A" * 300, "/etc/passwd", "."):
        for script in (FULL[1], EVAL[1]):
            yield _case("option", script, (2,), option="data_path", value=path)


def _outputs():
    for name in PLACES:
        for script in (FULL[1], EVAL[1]):
            yield _case("output", script, {"metacharacters": (0,), "newline": (0, 2)}.get(name, (2,)), where=name)
    for planted in ("checkpoint.pth.tar.part", "metrics.jsonl", "train_0.log", "model_best.pth.tar.part", "report.json"):
        yield _case("planted", FULL[1], (0, 2, 3), link=planted)


def _environments():
    for setting, right in (
            ({"NODE_RANK": "abc"}, (0, 2)), ({"NODE_RANK": "-5"}, (0, 2)), ({"WORLD_SIZE": "x"}, (0, 2)), ({"RANK": "0"}, (0, 2)),
            ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "x"}, (2,)),
            ({"RANK": "x", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}, (2,)),
            ({"RANK": "0", "LOCAL_RANK": "y", "WORLD_SIZE": "1"}, (2,)),
            ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, (2,)),
            ({"RANK": "7", "LOCAL_RANK": "7", "WORLD_SIZE": "1"}, (2,)),
            ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "0"}, (2,)),
            ({"ASCEND_DEVICE_ID": "../../x"}, (2,)), ({"ASCEND_DEVICE_ID": "$(touch MARK)"}, (2,)),
            ({"ASCEND_DEVICE_ID": ""}, (0, 2)),
            ({"ASCEND_DEVICE_ID": "99999999999999999999"}, (0, 2)),
            ({"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}, (0,)), ({"HOME": "/no/such"}, (0,)), ({"TMPDIR": "/no/such"}, (0,)),
            ({"LOCAL_WORLD_SIZE": "0", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}, (2,)),
            ({"etp_running_flag": "$(touch MARK)"}, (0,)),
            ({"COLUMNS": "x"}, (0,)), ({"CDPATH": "/"}, (0,)), ({"IFS": "/"}, (0,)), ({"resume": "1", "flags": "x"}, (0,))):
        yield _case("environment", FULL[1], right, setting=setting)
    for script in (FULL[1], EVAL[1]):
        for python in ("none", "no packages"):
            yield _case("python", script, (2,), python=python)


# --- making one -------------------------------------------------------------------------------------------------------

def attempt(trial, place, world):
    """Give the bad input to a script; returns what is unclean."""
    model, script, mark = trial["model"], trial["script"], os.path.join(place, "mark")
    out, env = os.path.join(place, "output", "o"), environment()
    env["PATH"] = world.forks.path + os.pathsep + env["PATH"]
    words = world.words(model, script, out)
    words.update({name: "1" for name in ("train_epochs", "max_steps") if name in words})
    words.pop("checkpoint_steps", None)
    if "eval" in script or "finetune" in script:
        words["pth_path"] = world.weights(model)
    command = _PREPARE[trial["kind"]](trial, words, place, world)
    if command is None:
        return []
    env.update({name: value.replace("MARK", mark) for name, value in trial.get("setting", {}).items()})
    before = process.tree(place)
    command = [os.fsencode(word.replace("MARK", mark)) for word in command]
    done = process.run(command, place, env=env, cwd=trial.get("folder") and os.path.join(ROOT, trial["folder"]), limit_s=90)
    found = done.unclean(trial["statuses"])
    if os.path.exists(mark):
        found.append("runs what it was given")
    if done.status == 2:
        found += ["touched: %s" % path for path in process.changes(before, process.tree(place))]
    elif trial["kind"] == "planted" and process.tree(place)["theirs"] != before["theirs"]:
        found.append("a file of somebody else, to which a link was planted, was written")
    return found


def _script(trial, words):
    return process.command(trial["model"], trial["script"], words)


def _option(trial, words, place, world):
    return _script(trial, dict(words, **dict(trial.get("more", {}), **{trial["option"]: trial["value"]})))


def _word(trial, words, place, world):
    return _script(trial, words) + [trial["word"]]


def _bad_weights(trial, words, place, world):
    path = words["pth_path"] = os.path.join(place, "weights.pth")
    shutil.copyfile(world.weights(trial["model"]), path)
    mangle = trial["mangle"]
    mangled.BYTES[mangle](path, os.path.join(place, "mark")) if mangle in mangled.BYTES else mangled.weights(mangle, path)
    return _script(trial, words)


def _resume(trial, words, place, world):
    out, mangle = words["output_path"], trial["mangle"]
    os.makedirs(out)
    for name in ("checkpoint.pth.tar", "metrics.jsonl", "train_0.log"):
        shutil.copyfile(os.path.join(world.reference(trial["model"], 1), name), os.path.join(out, name))
    path = os.path.join(out, "checkpoint.pth.tar")
    words.update(resume="1", train_epochs="3", max_steps="3")
    if mangle in mangled.BYTES:
        mangled.BYTES[mangle](path, os.path.join(place, "mark"))
    elif mangle and not mangled.resumed(mangle, path):
        return None
    if "records" in trial:
        with open(os.path.join(out, "metrics.jsonl"), "a") as stream:
            stream.write(trial["records"])
    if "option" in trial:
        words[trial["option"]] = trial["value"]
    return _script(trial, words)


def _bad_data(trial, words, place, world):
    model, root = trial["model"], os.path.join(place, "data")
    shutil.copytree(world.data(model), root)
    table = mangled.CIFAR if SMALL[model].layout == "cifar" else mangled.IMAGES
    table[trial["mangle"]](root, os.path.join(place, "mark"))
    words.update(data_path=root, workers=trial["workers"], max_steps="100")
    return _script(trial, words)


def _output(trial, words, place, world):
    with open(os.path.join(place, "file"), "w") as stream:
        stream.write("a user's")
    os.symlink(os.path.join(place, "file", "x"), os.path.join(place, "nowhere"))  # which nobody can make
    words["output_path"] = os.path.join(place, PLACES[trial["where"]])
    return _script(trial, words)


def _planted(trial, words, place, world):
    with open(os.path.join(place, "theirs"), "w") as stream:
        stream.write("somebody else's")
    os.makedirs(words["output_path"])
    os.chmod(words["output_path"], 0o777)
    os.symlink(os.path.join(place, "theirs"), os.path.join(words["output_path"], trial["link"]))
    return _script(trial, words)


def _environment(trial, words, place, world):
    if "ASCEND_DEVICE_ID" in trial["setting"]:
        words.pop("output_path")  # which is then named after it
    return _script(trial, words)


def _python(trial, words, place, world):
    """The PATH has no python3, or one without packages."""
    folder = os.path.join(place, "bin")
    os.mkdir(folder)
    for name in (name for path in ("/usr/bin", "/bin") for name in os.listdir(path) if not name.startswith("python")):
        if not os.path.lexists(os.path.join(folder, name)):
            os.symlink(shutil.which(name) or "/bin/" + name, os.path.join(folder, name))
    if trial["python"] == "no packages":
        with open(os.path.join(folder, "python3"), "w") as stream:
            stream.write("#!/bin/bash\nexec '%s' -S \"$@\"\n" % sys.executable)
        os.chmod(stream.name, 0o755)
    trial["setting"] = {"PATH": folder}
    return _script(trial, words)


_PREPARE = {"option": _option, "word": _word, "weights": _bad_weights, "resume": _resume, "data": _bad_data, "output": _output,
            "planted": _planted, "environment": _environment, "python": _python, "program": inputs_of_programs.prepare}
