"""The programs in tools/: those with verbs, and those that make and check data sets."""
import argparse
import hashlib
import os
import pickle
import pickletools
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from GENet import cifar
from common import data, transforms
from common.cli import UserError
from conftest import ROOT, assert_bad_input, environment, load_script, running_in, wait_until, write_images

sys.path.append(os.path.join(ROOT, "tools"))
from datasets import check as check_verb, demo as demo_verb  # noqa: E402
import verbs  # noqa: E402

CIFAR = "cifar-10-batches-py"


def command(tool, *options):
    return [sys.executable, os.path.join(ROOT, "tools", tool)] + [str(option) for option in options]


def run_tool(tool, *options):
    return subprocess.run(command(tool, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True, timeout=300, env=environment())


def contents(folder):
    """Return {relative path: bytes} of every file below a folder."""
    found = {}
    for below, _, names in os.walk(str(folder)):
        for name in names:
            path = os.path.join(below, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, str(folder))] = file.read()
    return found


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The folder of a small demo data set of both kinds, made by the program, at a path with a space and a $."""
    out = tmp_path_factory.mktemp("demo") / "a $b"
    done = run_tool("dataset.py", "demo", "--out", out, "--train", 100, "--val", 30, "--seed", 3, "--workers", 2)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def copy_of(demo, tmp_path):
    """A function that returns a copy, to be damaged, of a part of the demo data."""
    def copy(name):
        return shutil.copytree(str(demo / name), str(tmp_path / name)) and tmp_path / name
    return copy


# --- programs with verbs ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("program, folder", [("benchmark.py", "benchmarks"), ("dataset.py", "datasets"), ("runs.py", "runs"),
                                             ("weights.py", "weights")])
def test_verbs_of_a_program(program, folder, monkeypatch, capsys):
    """Each module of the folder is a verb, whose help is its docstring, with an example; no verb, a wrong one and an unknown option are
    one line and status 2."""
    overview = run_tool(program, "--help")
    assert overview.returncode == 0 and "Example: " + program in overview.stdout
    assert_bad_input(run_tool(program), "VERB")
    assert_bad_input(run_tool(program, "none"), "none")
    monkeypatch.setattr(sys, "argv", [program])
    for verb in verbs.found(folder):
        assert "\n  %s " % verb in overview.stdout
        for word, status in (("--help", 0), ("--no-such-option", 2)):
            with pytest.raises(SystemExit) as ended:
                verbs.run(folder, "", [verb, word])
            assert ended.value.code == status
        said = capsys.readouterr()
        assert "usage: %s %s " % (program, verb) in said.out
        assert re.search(r"(Example: |python tools/)%s %s\s" % (program, verb), said.out)
        assert said.err.startswith("%s %s: error: " % (program, verb)) and len(said.err.splitlines()) == 1


def test_whoever_reads_the_lines_may_leave(demo):
    """As `| head` does: no word, and the status that a shell gives. Defect: a traceback, or a good data set called bad."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command("dataset.py", "check", demo / "imagenet"), stdout=writer, stderr=subprocess.PIPE, env=environment())
    os.close(writer)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, b"")


# --- dataset.py demo --------------------------------------------------------------------------------------------------

def test_pixels_are_the_same_everywhere():
    """The pictures of a seed do not depend on the versions of numpy and Python or on the CPU."""
    scans = np.random.RandomState(1).random_sample((64, 8, 8)).astype(np.float32)
    small = demo_verb.draw(scans, 32, 32, 2.5, np.random.RandomState(2))
    assert hashlib.sha256(small.tobytes()).hexdigest().startswith("54557518eb3c72fa")
    photos = [demo_verb.draw_photo(scans[i], demo_verb.stream(0, "imagenet val", i)).tobytes() for i in range(24)]
    assert hashlib.sha256(b"".join(photos)).hexdigest().startswith("53997f698beb9a2d")


def test_no_scan_is_on_both_sides():
    """Validation pictures show scans that training never sees, whatever the seed, and no scan is lost."""
    for seed in (0, 1):
        sides = demo_verb.split_scans(seed)
        train, val = ({scan.tobytes() for digit in sides[split] for scan in digit} for split in ("train", "val"))
        assert len(train) + len(val) == 1797 and not train & val
        assert all(len(scans) >= 30 for scans in sides["val"])


def test_scans_take_turns():
    """Classes are balanced, and no scan is drawn twice before all of its digit were drawn once."""
    scans = [np.full((5, 8, 8), digit) + np.arange(5).reshape(5, 1, 1) / 10.0 for digit in range(10)]
    drawn, labels = demo_verb.balanced(scans, range(100))
    assert np.bincount(labels).tolist() == [10] * 10
    assert (drawn[:, 0, 0].astype(int) == labels).all()
    assert len({scan.tobytes() for scan in drawn[:50]}) == 50


def test_imagenet_layout(demo):
    """ImageNet's folder and file names, RGB JPEG files of photographs' sizes, the same classes on both sides."""
    classes = ["n%08d" % digit for digit in range(10)]
    for split, count in (("train", 100), ("val", 30)):
        assert data.class_names(str(demo / "imagenet" / split)) == classes
        files = [(name, path) for name in classes for path in (demo / "imagenet" / split / name).iterdir()]
        assert len(files) == count
        images = [Image.open(str(path)) for _, path in files]
        assert all(image.format == "JPEG" and image.mode == "RGB" and 300 <= max(image.size) <= 500 for image in images)
        assert len({image.size[0] > image.size[1] for image in images}) == 2, "landscape and portrait"
    assert (demo / "imagenet/train/n00000007/n00000007_9.JPEG").exists()
    assert (demo / "imagenet/val/n00000007/ILSVRC2012_val_00000008.JPEG").exists()
    assert data.check_layout(str(demo / "imagenet")) is None


def test_cifar_layout(demo):
    """Any reader of the original reads the files: names, keys, types and shapes, as text and as bytes."""
    folder = demo / CIFAR
    with open(str(folder / "data_batch_2"), "rb") as file:
        batch = pickle.load(file, encoding="bytes")
    assert list(batch) == [b"batch_label", b"labels", b"data", b"filenames"]
    assert batch[b"batch_label"] == b"training batch 2 of 5"
    assert batch[b"data"].shape == (20, 3072) and batch[b"data"].dtype == np.uint8
    assert all(type(label) is int for label in batch[b"labels"]) and len(batch[b"filenames"]) == 20
    with open(str(folder / "batches.meta"), "rb") as file:
        meta = pickle.load(file, encoding="latin1")
    assert meta["num_vis"] == 3072 and meta["num_cases_per_batch"] == 20 and meta["label_names"][7] == "seven"
    images, labels = cifar.read_split(str(folder), "train")
    assert images.shape == (100, 3, 32, 32) and np.bincount(labels).tolist() == [10] * 10
    assert (images[20:40].reshape(20, 3072) == batch[b"data"]).all()


def test_cifar_pickles_name_only_what_every_numpy_has(demo):
    """Protocol 2 with Python 2's strings, and numpy by the module names that all its versions know."""
    with open(str(demo / CIFAR / "test_batch"), "rb") as file:
        codes = [(code.name, value) for code, value, _ in pickletools.genops(file)]
    assert codes[0] == ("PROTO", 2)
    assert {value for name, value in codes if name == "GLOBAL"} == {
        "numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"}
    assert not [name for name, _ in codes if "UNICODE" in name or "BYTES" in name]


def features(images):
    """Shrink PIL images or arrays to the scans' 8x8 pixels and take brightness and contrast away: (n, 64)."""
    small = [np.asarray(Image.fromarray(np.asarray(image)).convert("L").resize((8, 8), Image.BOX), float) for image in images]
    flat = np.reshape(small, (len(small), 64))
    return (flat - flat.mean(1, keepdims=True)) / flat.std(1, keepdims=True)


def test_pictures_show_their_label(demo):
    """A classifier that has seen only the scans of the training side reads the validation pictures of both sets."""
    from sklearn.neighbors import KNeighborsClassifier
    scans = demo_verb.split_scans(3)["train"]
    labels = np.repeat(range(10), [len(of_digit) for of_digit in scans])
    classifier = KNeighborsClassifier(3).fit(features(np.concatenate(scans) * 255), labels)
    images, labels = cifar.read_split(str(demo / CIFAR), "test")
    assert classifier.score(features(images.transpose(0, 2, 3, 1)), labels) > 0.75
    paths = sorted((demo / "imagenet" / "val").glob("*/*"))
    squares = [transforms.center_crop(image, min(image.size)) for image in (Image.open(str(path)) for path in paths)]
    assert classifier.score(features(squares), [int(path.parent.name[1:]) for path in paths]) > 0.75


def test_bytes_depend_on_the_seed_only(demo, tmp_path):
    """Another number of processes writes the same bytes; another seed writes other pictures."""
    options = ["--train", 100, "--val", 30]
    assert run_tool("dataset.py", "demo", "--out", tmp_path / "1", "--seed", 3, "--workers", 1, *options).returncode == 0
    assert contents(tmp_path / "1") == contents(demo)
    assert run_tool("dataset.py", "demo", "--out", tmp_path / "2", "--seed", 4, "--what", "cifar10", *options).returncode == 0
    assert contents(tmp_path / "2" / CIFAR)["test_batch"] != contents(demo / CIFAR)["test_batch"]


def test_a_set_that_is_there_is_left_alone(copy_of):
    """The same parameters: kept, and said. Other parameters, or a folder of somebody else: status 2. Nothing is touched."""
    folder = copy_of(CIFAR)
    before = contents(folder.parent)
    same = ["--out", folder.parent, "--what", "cifar10", "--train", 100, "--val", 30]
    done = run_tool("dataset.py", "demo", *(same + ["--seed", 3]))
    assert done.returncode == 0 and "left as it is" in done.stdout
    assert_bad_input(run_tool("dataset.py", "demo", *same), folder, "other parameters (seed 3)")
    assert contents(folder.parent) == before
    (folder / ".demo_data.json").unlink()
    assert_bad_input(run_tool("dataset.py", "demo", *(same + ["--seed", 3])), folder, "not made by this program")
    assert set(before) - set(contents(folder.parent)) == {os.path.join(CIFAR, ".demo_data.json")}


@pytest.mark.parametrize("sent, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_leaves_nothing(tmp_path, sent, status):
    """Ctrl-C and SIGTERM end the program soon, all of its processes too, and nothing half-written stays."""
    out = tmp_path / "out"
    options = command("dataset.py", "demo", "--out", out, "--train", 20000, "--what", "imagenet", "--workers", 2)
    process = subprocess.Popen(options, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), start_new_session=True)
    wait_until(lambda: list(out.glob(".*/train/*/*.JPEG")))
    os.killpg(process.pid, sent)
    _, errors = process.communicate(timeout=60)  # reads on until the last child has closed its end
    assert process.returncode == status, errors
    assert errors == b"" and not out.exists()


def many_pictures(folder):
    """Write a class of 3000 pictures of 600 x 600 pixels."""
    write_images(folder, classes=1, per_class=1, size=(600, 600))
    only, = (folder / "n00000000").iterdir()
    for number in range(3000):
        os.link(str(only), str(only.parent / ("%d.JPEG" % number)))


@pytest.mark.parametrize("verb", ["check", "pack"])
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_program(tmp_path, verb, sent):
    """Whatever ends it alone; defect: those that decode stayed for ever."""
    many_pictures(tmp_path / "data" / "train")
    options = [tmp_path / "out"] if verb == "pack" else []
    process = subprocess.Popen(command("dataset.py", verb, tmp_path / "data", *options, "--workers", 2), env=environment(),
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: len(running_in(tmp_path)) >= 2)
    process.send_signal(sent)
    assert process.wait(timeout=60) == -sent
    wait_until(lambda: not running_in(tmp_path), timeout=60)


@pytest.mark.parametrize("verb", ["check", "demo"])
def test_a_process_that_is_killed_ends_the_program(tmp_path, verb):
    """As by a machine without memory: one line and status 3, and none of the others stays."""
    if verb == "check":
        many_pictures(tmp_path / "data" / "train")
    options = [tmp_path / "data"] if verb == "check" else ["--out", tmp_path / "out", "--train", 20000, "--what", "imagenet"]
    process = subprocess.Popen(command("dataset.py", verb, *options, "--workers", 2), env=environment(), stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE)
    wait_until(lambda: len(running_in(tmp_path)) == 3)
    killed = [pid for pid in (int(line.split()[0]) for line in running_in(tmp_path)) if pid != process.pid][0]
    os.kill(killed, signal.SIGKILL)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 3 and errors.startswith(b"dataset.py: error: one of the processes was killed"), errors
    assert len(errors.splitlines()) == 1 and not running_in(tmp_path)


@pytest.mark.parametrize("word", ["--no-such=1", "two\nlines", "--batch_size=x"])
def test_quickstart_refuses_at_once(word):
    """What its scripts do not take is said before anything is installed or made. Defect: minutes later."""
    done = subprocess.run(["bash", os.path.join(ROOT, "tools", "quickstart.sh"), word], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True, env=environment(VENV="/dev/null/venv"))
    assert_bad_input(done, "train_full_1p.sh: error: ", "(see --help)" if "x" not in word else "--batch_size=x is not right")
    assert done.stdout == ""


def test_a_terminated_benchmark_leaves_nothing(tmp_path):
    """The pictures that it has made go. Defect: 70 MB stayed in the temporary folder."""
    process = subprocess.Popen(command("benchmark.py", "input"), env=environment(TMPDIR=str(tmp_path)))
    wait_until(lambda: list(tmp_path.glob("*/train/*/*.jpg")))
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143 and os.listdir(str(tmp_path)) == []


def test_a_killed_candidate_is_left_out():
    """One that is killed, as by the kernel for its memory, at its start, in a round or between. Defect: it was waited for for ever."""
    code = ("import multiprocessing, os, sys; sys.path[:0] = %r; from benchmarks import _turns\n"
            "def candidate(name):\n"
            "    return os.abort() if name == 'early' else lambda count: os.abort() if name == 'late' else count\n"
            "with _turns.started(['early', 'late', 'sound'], candidate) as pipes:\n"
            "    print(_turns.rounds(pipes, 2, 5))\n"
            "with _turns.started(['idle'], candidate) as pipes:\n"
            "    child, = multiprocessing.active_children()\n"
            "    child.kill(), child.join()\n"
            "    print(_turns.rounds(pipes, 2, 5))" % [os.path.join(ROOT, "tools"), ROOT])
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, universal_newlines=True, timeout=60, env=environment())
    assert done.stdout.splitlines() == ["left out: %s (its process was killed)" % name for name in ("early", "late")] + [
        "{'sound': [5, 5]}", "left out: idle (its process was killed)", "{}"]


def test_no_candidate_outlives_the_benchmark(tmp_path):
    """The processes that take turns end with the one that has started them. Defect: they held each other's pipes open, and stayed."""
    code = ("import os, sys, time; sys.path[:0] = %r; from benchmarks import _turns\n"
            "with _turns.started(['one', 'two'], lambda name: time.sleep):\n"
            "    print('started', flush=True); time.sleep(600)  # %s" % ([os.path.join(ROOT, "tools"), ROOT], tmp_path))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment())
    assert process.stdout.readline() == b"started\n" and len(running_in(tmp_path)) == 3
    process.kill()
    process.wait()
    wait_until(lambda: not running_in(tmp_path), timeout=60)
    process.stdout.close()


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    """When writing fails in the middle, what was written goes and what was there before stays."""
    def fail(folder, *_):
        (tmp_path / os.path.basename(folder) / "half").write_text("x")
        raise OSError(28, "No space left on device", "half")
    (tmp_path / "mine").write_text("y")
    monkeypatch.setitem(demo_verb.WRITERS, "cifar10", fail)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(UserError, match="half: No space left on device"):
        demo_verb.run(argparse.Namespace(what=["cifar10"], out=str(tmp_path), train=None, val=None, seed=0, workers=1))
    assert contents(tmp_path) == {"mine": b"y"}


def test_of_two_writers_the_first_wins(tmp_path, monkeypatch):
    """Two scripts that need the demo data at the same time: the slower one keeps the set of the faster one."""
    def slow(folder, counts, seed, workers):
        monkeypatch.setitem(demo_verb.WRITERS, "cifar10", demo_verb.write_cifar10)
        demo_verb.make("cifar10", str(tmp_path), counts, seed, workers)
        (tmp_path / CIFAR / "first").write_text("")
    monkeypatch.setitem(demo_verb.WRITERS, "cifar10", slow)
    demo_verb.make("cifar10", str(tmp_path), (10, 10), 0, 1)
    assert os.listdir(str(tmp_path)) == [CIFAR] and (tmp_path / CIFAR / "first").exists()


@pytest.mark.parametrize("options, words", [
    (["--train", "9"], ["--train", "9", "an integer from 10"]), (["--val", "x"], ["--val", "x"]), (["--what", "mnist"], ["mnist"]),
    (["--seed", str(2 ** 32)], ["--seed"]), (["--out", __file__], [__file__]),
])
def test_demo_data_of_wrong_options(options, words):
    """Counts below one picture per class, unknown sets, a place that cannot be written: one line, status 2."""
    assert_bad_input(run_tool("dataset.py", "demo", *options), *words)


# --- dataset.py check ---------------------------------------------------------------------------------------------------

def test_good_sets_are_good(demo):
    """Both kinds are recognised, from outside and from inside of the CIFAR folder, and counted."""
    done = run_tool("dataset.py", "check", demo / "imagenet", "--classes", 10)
    assert done.returncode == 0 and "GOOD" in done.stdout and done.stderr == ""
    assert "train 100 pictures, 10 classes, 10 to 10 per class" in done.stdout
    for folder in (demo, demo / CIFAR):
        done = run_tool("dataset.py", "check", folder)
        assert done.returncode == 0 and "a CIFAR-10 shaped data set" in done.stdout
        assert "test  30 pictures, 10 classes, 3 to 3 per class" in done.stdout


def test_every_bad_file_is_named(copy_of):
    """Truncated, empty and foreign files, links to nowhere; pictures of other modes and names without a suffix are fine."""
    train = copy_of("imagenet") / "train"
    cut = train / "n00000001" / "n00000001_3.JPEG"
    cut.write_bytes(cut.read_bytes()[:-200])
    (train / "n00000002" / "page.jpg").write_text("<html>not found</html>")
    (train / "n00000003" / "empty.png").write_bytes(b"")
    (train / "n00000004" / "link.jpeg").symlink_to("nowhere")
    for mode in ("L", "CMYK", "P", "RGBA", "1"):
        Image.new(mode, (8, 8)).save(str(train / "n00000005" / (mode + ".jpg")), "PNG" if mode in ("P", "RGBA", "1") else "JPEG")
    (train / "n00000005" / "notes.txt").write_text("ignored")
    done = run_tool("dataset.py", "check", train.parent)
    problems = [line for line in done.stdout.splitlines() if line.startswith("PROBLEM: ")]
    assert done.returncode == 1 and "BAD: 4 problems" in done.stdout
    for line, words in zip(problems, ["_3.JPEG cannot be read: image file is truncated", "page.jpg cannot be read: cannot identify image file",
                                      "empty.png is an empty file", "link.jpeg cannot be read: No such file"]):
        assert words in line


def test_layout_problems(tmp_path):
    """Classes on one side only, empty classes, unsorted pictures, a wrong number of classes; at most 20 lines and a count."""
    write_images(tmp_path / "train", classes=2, per_class=1)
    write_images(tmp_path / "val", classes=3, per_class=1)
    (tmp_path / "train" / "empty").mkdir()
    Image.new("RGB", (8, 8)).save(str(tmp_path / "val" / "loose.JPEG"))
    problems = "\n".join(check_verb.check(str(tmp_path), None, 2, 1))
    for words in ("train/empty holds no picture", "val: 1 picture directly in it", "train has 3 classes instead of 2",
                  "class n00000002 is in val but not in train", "class empty is in train but not in val"):
        assert words in problems
    for number in range(30):
        (tmp_path / "train" / ("c%d" % number)).mkdir()
    shutil.rmtree(str(tmp_path / "val"))
    done = run_tool("dataset.py", "check", tmp_path)
    assert done.returncode == 1 and done.stdout.count("PROBLEM: ") == 20
    assert "no folder %s" % (tmp_path / "val") in done.stdout and "... and 12 more" in done.stdout and "BAD: 32" in done.stdout


def test_the_check_reads_what_training_reads(demo):
    """No file that training opens goes unchecked."""
    root, problems = str(demo / "imagenet" / "train"), []
    files = data.Files(root)
    found = check_verb.find_pictures(root, problems)
    assert [path for paths in found.values() for path in paths] == [files.path(number) for number in range(len(files.targets))]
    assert list(found) == files.classes and not problems


def test_check_of_no_data_set(tmp_path):
    """A folder that holds none is a problem, with a hint; no folder, two kinds and wrong values are wrong usage."""
    (tmp_path / "x" / "train").mkdir(parents=True)
    done = run_tool("dataset.py", "check", tmp_path)
    assert done.returncode == 1 and "did you mean %s?" % (tmp_path / "x") in done.stdout
    assert_bad_input(run_tool("dataset.py", "check", tmp_path / "none"), tmp_path / "none", "not a folder")
    assert_bad_input(run_tool("dataset.py", "check", tmp_path, "--workers", "0"), "--workers")
    (tmp_path / "x" / CIFAR).mkdir()
    assert_bad_input(run_tool("dataset.py", "check", tmp_path / "x"), "--kind")


def write_batch(path, **changes):
    """Rewrite a CIFAR batch with some of its entries changed."""
    content = dict(cifar.load_pickle(str(path)), **changes)
    with open(str(path), "wb") as file:
        pickle.dump(content, file, protocol=2)


def check_cifar(folder, classes=None):
    return "\n".join(check_verb.check(str(folder), "cifar10", classes, 1))


def test_cifar_problems(copy_of):
    """Missing and truncated files, wrong shapes, labels out of range, classes without pictures: each named."""
    folder = copy_of(CIFAR)
    assert check_cifar(folder) == "" and "names 10 classes instead of 100" in check_cifar(folder, 100)
    write_batch(folder / "data_batch_1", data=np.zeros((20, 3071), np.uint8))
    write_batch(folder / "data_batch_2", labels=[10] * 20)
    batch = (folder / "data_batch_3").read_bytes()
    (folder / "data_batch_3").write_bytes(batch[:len(batch) // 2])
    write_batch(folder / "test_batch", labels=[1, 2, 3] * 10)
    problems = check_cifar(folder)
    for words in ("data_batch_1 is not a cifar10 batch", "data_batch_2: a label is not", "data_batch_3 is truncated",
                  "class 0 (zero) has no test picture"):
        assert words in problems
    (folder / "data_batch_5").unlink()
    assert "no file data_batch_5" in check_cifar(folder)


def test_a_pickle_that_would_run_code_is_refused(copy_of, tmp_path):
    """Checking a downloaded data set never runs what is in it."""
    class Evil(object):
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "it ran"),)
    folder = copy_of(CIFAR)
    with open(str(folder / "data_batch_4"), "wb") as file:
        pickle.dump({"data": Evil()}, file, protocol=2)
    assert "data_batch_4" in check_cifar(folder) and "mkdir, which was not run" in check_cifar(folder)
    assert not (tmp_path / "it ran").exists()


def test_the_original_is_recognised(copy_of, monkeypatch, capsys):
    """All published MD5: the original. The original's names with another file: damaged."""
    folder = copy_of(CIFAR)
    sums = {name: hashlib.md5(content).hexdigest() for name, content in contents(folder).items() if name[0] != "."}
    assert set(sums) == set(cifar.PUBLISHED_MD5["cifar10"])
    monkeypatch.setitem(cifar.PUBLISHED_MD5, "cifar10", sums)
    assert check_cifar(folder) == "" and "the original CIFAR-10" in capsys.readouterr().out
    write_batch(folder / "data_batch_1")
    assert "data_batch_1" in check_cifar(folder) and "MD5" in check_cifar(folder)


# --- benchmark.py -----------------------------------------------------------------------------------------------------

def test_share_of_a_step_outside_the_model(demo, tmp_path):
    """The clock runs inside the program's own training: forward, backward and update are most of a step, and not all of it."""
    program = os.path.join(ROOT, "GENet", "train.py")
    options = ["--DataPath=%s" % demo, "--depth=10", "--width=1", "--batch_size=10", "--no_epochs=1", "--max_steps=9",
               "--device=cpu", "--output_path=%s" % tmp_path]
    done = run_tool("benchmark.py", "step", program, *options)
    assert done.returncode == 0, done.stderr
    step, inside, outside = [float(line.split(":")[1].split()[0]) for line in done.stdout.splitlines()]
    assert 0 < inside < step and abs(step - inside - outside) < 0.02 and "mean of 5" in done.stdout
    assert "Epoch" in done.stderr and os.listdir(str(tmp_path))
    assert_bad_input(run_tool("benchmark.py", "step", tmp_path / "none.py"), tmp_path / "none.py")
    assert run_tool("benchmark.py", "step", program, "--DataPath=%s" % (tmp_path / "none")).returncode == 2


def test_inputs_are_compared(tmp_path):
    """Each candidate that is asked for has its line, the baseline's ratio is 1, and what is not installed is said; the pictures that
    are made for it are as large as ImageNet's, and the same each time."""
    small = ["--pictures", 24, "--rounds", 2, "--batches", 1, "--batch-size", 8, "--image-size", 32]
    done = run_tool("benchmark.py", "input", "--only", "ResNet50/cpu,HRNet,FixRes,ResNet50/packed,dali", *small)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    measured = dict((line.split()[0], float(line.split()[3])) for line in lines if " ms " in line)
    left_out = [line.split()[2] for line in lines if line.startswith("left out")]
    assert sorted(list(measured) + left_out) == ["FixRes", "HRNet", "ResNet50/cpu", "ResNet50/packed", "dali", "torchvision"]
    assert measured["torchvision"] == 1 and set(left_out) <= {"dali"} and min(measured.values()) > 0
    done = run_tool("benchmark.py", "input", "--only", "GENet", *small)  # of pictures of another size, and so to a baseline of its own
    lines = [line.split() for line in done.stdout.splitlines() if " ms " in line]
    assert [(words[0], float(words[3]) > 0) for words in lines] == [("GENet", True), ("torchvision/cifar", True)] and lines[1][3] == "1.00"
    assert_bad_input(run_tool("benchmark.py", "input", "--only", "fastest"), "fastest", "ResNet50")
    assert_bad_input(run_tool("benchmark.py", "input", "--data", tmp_path / "none"), tmp_path / "none" / "train")
    (tmp_path / "empty" / "train").mkdir(parents=True)
    done = run_tool("benchmark.py", "input", "--data", tmp_path / "empty", "--only", "ResNet50/packed")
    assert done.returncode == 2 and "Traceback" not in done.stderr and str(tmp_path / "empty") in done.stderr


def test_pictures_to_measure_with_are_like_imagenets(tmp_path):
    """500 x 375 pixels and 110 to 150 kB on the average, and the same each time."""
    pictures = load_script("tools/benchmarks/_pictures.py")
    for name in ("a", "b"):
        pictures.write_pictures(str(tmp_path / name), 24)
    files = contents(tmp_path / "a")
    assert files == contents(tmp_path / "b") and len(files) == 24
    assert 110e3 < sum(len(content) for content in files.values()) / 24 < 150e3
    pixels = [Image.open(str(tmp_path / "a" / name)).size for name in files]
    assert 0.9 < sum(width * height for width, height in pixels) / 24 / (500 * 375) < 1.2
