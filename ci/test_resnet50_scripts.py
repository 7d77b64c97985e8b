"""ResNet50's own: networks of torchvision, flags of main.py, other ways to start it; and what is the same in all models and
tested on one: Ctrl-C, the death of a rank, disk full, a crash, a taken port."""
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from common import flags, records
from conftest import (ROOT, assert_bad_input, block, differences, environment, free_port, load_script, run_script, running_in,
                      script_command, start_script, wait_until, weights_of)
from test_all_scripts import Watch

pytestmark = pytest.mark.usefixtures("narrow_networks")
FULL_1P, FULL_8P = "ResNet50/test/train_full_1p.sh", "ResNet50/test/train_full_8p.sh"
TINY = ["--device=cpu", "--arch=resnet18", "--image_size=32", "--opt_level=O0", "--workers=0", "--batch_size=8",
        "--train_epochs=2", "--learning_rate=0.01", "--seed=49"]
PROGRAM = [os.path.join(ROOT, "ResNet50", "main.py"), "--device=cpu", "-aresnet18", "-j0", "--image-size=32"]


def tiny(data, out, *more):
    """Return the options of a small run; `more` count more than these."""
    return ["--data_path=%s" % data, "--output_path=%s" % out] + TINY + list(more)


@pytest.fixture(scope="module")
def trained(narrow_networks, tiny_imagenet, tmp_path_factory):
    """The output path of a short full run on one device, and its result block."""
    out = tmp_path_factory.mktemp("trained")
    return out, block(run_script(FULL_1P, *tiny(tiny_imagenet, out)))


def program(out, *words, launcher=()):
    """Run main.py, which writes to `out`; return the finished process."""
    command = [sys.executable] + list(launcher) + PROGRAM + ["--save-ckpt-path=%s" % out, "--workspace=%s" % out]
    return subprocess.run(command + [str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True, env=environment())


def in_process(out, *words):
    """The same in this process, on one rank; return the module and its arguments."""
    main = load_script("ResNet50/main.py")
    args = main.checked(main.parser().parse_args(PROGRAM[1:] + ["--save-ckpt-path=%s" % out, "--workspace=%s" % out,
                                                                "--raport-file=m.jsonl"] + list(words)))
    layout, previous = main.device_layout(args), signal.getsignal(signal.SIGTERM)
    flags.divide(args, layout)
    try:
        main.distributed.launch(main.train_or_evaluate, args, layout)
    finally:
        signal.signal(signal.SIGTERM, previous)
    return main, args


# --- networks of torchvision ------------------------------------------------------------------------------------------

def test_dropout_survives_a_kill(tiny_imagenet, tmp_path):
    """mobilenet_v2 has dropout: killed after step 3 of an 8p run and resumed, it ends with the whole one's weights (defect 1)."""
    network = ["--arch=mobilenet_v2", "--device_list=0", "--seed=3", "--train_epochs=1", "--checkpoint_steps=1"]
    whole, out = tmp_path / "whole", tmp_path / "o"
    block(run_script(FULL_8P, *tiny(tiny_imagenet, whole, *network)))
    options = tiny(tiny_imagenet, out, *network)
    watch, process = Watch(out), start_script(FULL_8P, *options)
    wait_until(lambda: process.poll() is not None or watch.passed(0, 3), interval=0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    wait_until(lambda: not running_in(out))
    block(run_script(FULL_8P, *options, "--resume"))
    assert differences(weights_of(whole), weights_of(out)) == []


def test_a_network_without_fc(tiny_imagenet, tmp_path):
    """The one-card recipe's initialisation of fc does not stop networks that have none (defect 2); an unknown name is refused."""
    options = tiny(tiny_imagenet, tmp_path / "o", "--max_steps=1", "--train_epochs=1")
    assert_bad_input(run_script(FULL_1P, *options, "--arch=resnet51"), "resnet51")
    assert not (tmp_path / "o").exists()
    block(run_script(FULL_1P, *options, "--arch=mobilenet_v2"))


# --- what goes wrong --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("how", ["Ctrl-C", "death of a rank"])
def test_two_ranks_end_together(tiny_imagenet, tmp_path, how):
    """Ctrl-C: status 130 and no traceback. SIGKILL of one rank ends the run and is named. Nobody is left."""
    out = tmp_path / "o"
    options = tiny(tiny_imagenet, out, "--train_epochs=1000", "--workers=2", "--checkpoint_steps=1", "--device_list=0,1")
    process = subprocess.Popen(script_command(FULL_8P, *options),
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, universal_newlines=True, env=environment())
    wait_until((out / "checkpoint.pth.tar").exists)
    if how == "Ctrl-C":
        process.send_signal(signal.SIGINT)
    else:
        trainer = children(process.pid)[0]
        os.kill([pid for pid in children(trainer) if "spawn_main" in arguments(pid)][-1], signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    wait_until(lambda: not running_in(out))
    if how == "Ctrl-C":
        assert process.returncode == 130 and "KeyboardInterrupt" not in errors
    else:
        assert process.returncode == 128 + signal.SIGKILL and "rank 1 was killed by signal 9" in errors
        assert len(errors.splitlines()) == 1


def children(pid):
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], stdout=subprocess.PIPE, universal_newlines=True).stdout
    return sorted(int(word) for word in listed.split())


def arguments(pid):
    return subprocess.run(["ps", "-ww", "-o", "args=", "-p", str(pid)], stdout=subprocess.PIPE, universal_newlines=True).stdout


def test_port_in_use(tiny_imagenet, tmp_path):
    """Two runs on one port: the second is told so."""
    import socket
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        url = "tcp://127.0.0.1:%d" % taken.getsockname()[1]
        done = program(tmp_path, tiny_imagenet, "--multiprocessing-distributed", "--dist-url=" + url)
    assert_bad_input(done, "cannot listen", "--master_port")


def test_output_path_that_cannot_be_written(tmp_path):
    """A file where the folder should be."""
    (tmp_path / "file").write_text("")
    assert_bad_input(run_script(FULL_1P, *tiny("/x", tmp_path / "file" / "o")), "cannot write to output path")


def test_disk_full_while_saving(trained, tiny_imagenet, tmp_path):
    """The old checkpoint stays whole, the run ends with status 3 and one line (here a file has room for half of it)."""
    out = tmp_path / "o"
    shutil.copytree(str(trained[0]), str(out))
    before = (out / "checkpoint.pth.tar").read_bytes()
    command = script_command(FULL_1P, *tiny(tiny_imagenet, out, "--train_epochs=3", "--resume"))
    done = subprocess.run(["bash", "-c", 'ulimit -S -f %d && exec "$@"' % (len(before) // 2048), "limited"] + command, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True, env=environment())
    assert done.returncode == 3 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "cannot write checkpoint" in done.stderr and "intact" in done.stderr
    assert (out / "checkpoint.pth.tar").read_bytes() == before and not list(out.glob("*.part"))


def test_a_crash_is_a_failed_script(tiny_imagenet, tmp_path):
    """An exception inside the training: its status, the last lines of the log and the log's path; no result block."""
    for name in ("common", "ResNet50"):
        shutil.copytree(os.path.join(ROOT, name), str(tmp_path / name), ignore=shutil.ignore_patterns("output"))
    path = tmp_path / "ResNet50" / "recipe.py"
    path.write_text(path.read_text().replace("torch.log_softmax(logits, dim=1)", "torch.log_softmax(logits, dim=7)"))
    done = run_script(str(tmp_path / FULL_1P), *tiny(tiny_imagenet, tmp_path / "o"))
    assert done.returncode == 1 and "Final" not in done.stdout
    assert "IndexError" in done.stderr and "training failed with status 1" in done.stderr and "train_0.log" in done.stderr


def test_a_finished_run_resumes_to_its_result(trained, tiny_imagenet, tmp_path):
    """--resume after the end trains nothing, and reports the accuracy that was reached; the speed was not measured."""
    out = tmp_path / "o"
    shutil.copytree(str(trained[0]), str(out))
    result = block(run_script(FULL_1P, *tiny(tiny_imagenet, out, "--resume")))
    assert result["Final Train Accuracy"] == trained[1]["Final Train Accuracy"]
    assert result["Final Performance images/sec"] == "not measured"


# --- the program ------------------------------------------------------------------------------------------------------

def test_torchrun_starts_the_same_training(tiny_imagenet, tmp_path):
    """Started by PyTorch's own launcher, main.py finds its ranks in the environment and trains bit for bit the same."""
    pytest.importorskip("torch.distributed.run")
    words = [tiny_imagenet, "-b8", "--epochs=1", "--max-steps=3", "--lr=0.01", "--seed=49"]
    launched = program(tmp_path / "launched", *words, launcher=["-m", "torch.distributed.run", "--nproc_per_node=2",
                                                                "--master_port=%d" % free_port()])
    spawned = program(tmp_path / "spawned", *words, "--multiprocessing-distributed", "--device-list=0,1")
    assert (launched.returncode, spawned.returncode) == (0, 0), launched.stderr + spawned.stderr
    assert differences(weights_of(tmp_path / "launched"), weights_of(tmp_path / "spawned")) == []


def test_fine_tuning_trains_fc_alone_however_a_batch_is_divided(trained, tiny_imagenet, tmp_path):
    """--fine-tuning freezes everything but fc, statistics included, and takes weights of another number of classes (defect 9).
    With such statistics an epoch ends alike at once, with --accumulate=2 and on two ranks."""
    words = [tiny_imagenet, "-b8", "--epochs=1", "--fine-tuning", "--num-classes=4", "--seed=1", "--lr=0.01",
             "--pth-path=%s" % (trained[0] / "checkpoint.pth.tar")]
    before, found = weights_of(trained[0]), []
    for number, division in enumerate(([], ["--accumulate=2"], ["--multiprocessing-distributed", "--device-list=0,1"])):
        done = program(tmp_path / str(number), *(words + division))
        assert done.returncode == 0, done.stderr
        found.append(weights_of(tmp_path / str(number)))
        assert [key for key in before if differences(before[key], found[-1][key])] == ["fc.weight", "fc.bias"]
        assert differences(found[0], found[-1], tolerance=1e-5) == []


@pytest.mark.parametrize("batch, accumulated, updates", [(8, 16, 4), (8, 24, 3), (64, 16, 1)])
def test_accumulation_leaves_no_batch_out(tiny_imagenet, tmp_path, monkeypatch, batch, accumulated, updates):
    """Any --optimizer-batch-size works, and what is left at the end of an epoch makes an update of its own (defect 10)."""
    main, counted = load_script("ResNet50/main.py"), []
    step = main.precision.NativeAmp.step
    monkeypatch.setattr(main.precision.NativeAmp, "step", lambda self: (counted.append(1), step(self)))
    in_process(tmp_path, str(tiny_imagenet), "-b%d" % batch, "--epochs=1", "--optimizer-batch-size=%d" % accumulated)
    assert len(counted) == updates


def test_mixup_and_the_other_switches_do_something(tiny_imagenet, tmp_path):
    """--mixup, --amp, --dynamic-loss-scale, --model-config, --print-freq and what says --opt-level do something (defect 9)."""
    losses, levels = {}, {}
    for name, extra in (("plain", []), ("mixup", ["--mixup=0.4"]), ("fanin", ["--model-config=fanin"]),
                        ("often", ["--print-freq=1"]), ("amp", ["--amp", "--dynamic-loss-scale"])):
        levels[name] = in_process(tmp_path, str(tiny_imagenet), "-b16", "--epochs=1", "--seed=1", *extra)[1].opt_level
        losses[name] = [record["data"]["train.loss"] for record in records.read(str(tmp_path / "m.jsonl"))
                        if record.get("type") == "LOG" and len(record["step"]) == 2]
    assert len(losses["plain"]) == 1 and len(losses["often"]) == 4
    assert len({losses[name][0] for name in ("plain", "mixup", "fanin")}) == 3 and losses["often"][0] == losses["plain"][0]
    assert np.isclose(losses["amp"][0], losses["plain"][0], rtol=0.02) and (levels["plain"], levels["amp"]) == ("O0", "O2")
    main = load_script("ResNet50/main.py")
    for words, level in ((["--fp16"], "O2"), (["--precision-mode=allow_mix_precision"], "O2"),
                         (["--amp", "--precision-mode=must_keep_origin_dtype"], "O0"), (["--amp", "--opt-level=O1"], "O1")):
        assert main.checked(main.parser().parse_args(["/x"] + words)).opt_level == level


def test_help_of_the_program():
    """Every flag that the seed README lists is in --help."""
    text = load_script("ResNet50/main.py").parser().format_help()
    for flag in ("data addr seed workers learning-rate weight-decay print-freq dist-backend epochs batch-size benchmark dist-url "
                 "multiprocessing-distributed world-size amp").split():
        assert "--" + flag in text
