"""ResNet50 through its real scripts: smoke runs, bad input, interruption and exact resume, ranks against one rank."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from common import checkpoint, records
from conftest import (ROOT, assert_bad_input, environment, load_script, run_script, running_in, script_command, start_script,
                      wait_until, write_images)
from test_common import break_image

FULL_1P, FULL_8P = "ResNet50/test/train_full_1p.sh", "ResNet50/test/train_full_8p.sh"
TINY = ["--device=cpu", "--arch=resnet18", "--image_size=32", "--opt_level=O0", "--workers=0"]


def block(done):
    """Return the result block of a finished script as a dictionary; the script must have succeeded."""
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lines = done.stdout.splitlines()
    start = lines.index("------------------ Final result ------------------")
    return dict(line.split(" : ") for line in lines[start + 1:])


@pytest.fixture(scope="module")
def trained(tiny_imagenet, tmp_path_factory):
    """The output path of a short full run on one device, and its result block."""
    out = tmp_path_factory.mktemp("trained $1") / "out put"
    done = run_script(FULL_1P, "--data_path=%s" % tiny_imagenet, *TINY, "--batch_size=8", "--train_epochs=2", "--learning_rate=0.01",
                      "--output_path=%s" % out)
    return out, block(done)


# --- smoke runs of the scripts ----------------------------------------------------------------------------------------

def test_full_1p_leaves_what_it_should(trained):
    """Result block, files, records and their agreement, in a path with blanks and a `$`."""
    out, result = trained
    assert sorted(os.listdir(str(out))) == ["ResNet50_for_PyTorch_bs8_1p_acc.log", "checkpoint.pth.tar", "metrics.jsonl",
                                            "model_best.pth.tar", "report.json", "train_0.log"]
    assert list(result) == ["Final Performance images/sec", "Final Train Accuracy", "Best Train Accuracy", "E2E Training Duration sec"]
    last = records.read(str(out / "metrics.jsonl"))[-1]
    assert last["step"] == [] and (last["data"]["steady_steps"], last["data"]["warmup_steps"]) == (8, 8)
    assert result["Final Performance images/sec"] == "%.3f" % last["data"]["train.total_ips"]
    case = dict(line.split(" = ") for line in (out / "ResNet50_for_PyTorch_bs8_1p_acc.log").read_text().splitlines())
    assert list(case) == ["Network", "RankSize", "BatchSize", "DeviceType", "CaseName", "ActualFPS", "TrainingTime", "TrainAccuracy",
                          "ActualLoss", "E2ETrainingTime"]
    assert case["TrainAccuracy"] == result["Final Train Accuracy"] and case["CaseName"] == "ResNet50_for_PyTorch_bs8_1p_acc"
    assert json.loads((out / "report.json").read_text())["parameters"]["opt_level_run"] == "O0"
    assert " * Acc@1 %s" % result["Final Train Accuracy"] in (out / "train_0.log").read_text()
    assert checkpoint.load(str(out / "checkpoint.pth.tar"))["epoch"] == 2


def test_performance_1p(tiny_imagenet, tmp_path):
    """The performance script at the recipe's mixed precision, from another folder, with a relative output path."""
    done = run_script("ResNet50/test/train_performance_1p.sh", "--data_path=%s" % tiny_imagenet, "--device=cpu", "--arch=resnet18",
                      "--image_size=32", "--batch_size=8", "--workers=1", "--max_steps=4", "--output_path=o", cwd=str(tmp_path))
    assert float(block(done)["Final Performance images/sec"]) > 0
    assert (tmp_path / "o" / "ResNet50_ID0095_for_PyTorch_bs8_1p_perf.log").exists()


def test_performance_8p_on_eight_ranks(tiny_imagenet, tmp_path):
    """Eight gloo ranks through the performance script, at O2 where this PyTorch can."""
    done = run_script("ResNet50/test/train_performance_8p.sh", "--data_path=%s" % tiny_imagenet, "--device=cpu", "--arch=resnet18",
                      "--image_size=32", "--batch_size=16", "--workers=0", "--train_epochs=1", "--output_path=%s" % (tmp_path / "o"))
    assert "Final Train Accuracy" in block(done)
    assert "RankSize = 8" in (tmp_path / "o" / "ResNet50_ID0095_for_PyTorch_bs16_8p_perf.log").read_text()


def test_full_8p_and_evaluation_agree(tiny_imagenet, tmp_path):
    """The full 8p script, and its checkpoint evaluated on 1 and on 8 ranks: one figure, each image once (defects 3 to 5)."""
    out = tmp_path / "o"
    done = run_script(FULL_8P, "--data_path=%s" % tiny_imagenet, *TINY, "--batch_size=16", "--train_epochs=1",
                      "--learning_rate=0.05", "--output_path=%s" % out)
    trained = block(done)["Final Train Accuracy"]
    for script in ("train_eval_1p.sh", "train_eval_8p.sh"):
        done = run_script("ResNet50/test/" + script, "--data_path=%s" % tiny_imagenet, *TINY, "--batch_size=24",
                          "--pth_path=%s" % (out / "model_best.pth.tar"), "--output_path=%s" % (tmp_path / script))
        result = block(done)
        assert list(result) == ["Final Train Accuracy", "E2E Training Duration sec"]
        assert result["Final Train Accuracy"] == trained


def test_two_nodes_on_one_host(tiny_imagenet, tmp_path):
    """The multi-node script as two machines with two ranks each: both end, and both name the case after all four ranks."""
    nodes = []
    for number in range(2):
        nodes.append(subprocess.Popen(script_command(
            "ResNet50/test/train_performance_multinodes.sh", "--data_path=%s" % tiny_imagenet, *TINY, "--batch_size=8", "--nnodes=2",
            "--train_epochs=1", "--node_rank=%d" % number, "--device_list=%s" % ("0,1", "3,2")[number], "--master_port=29533",
            "--max_steps=3", "--output_path=%s" % (tmp_path / str(number))), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            universal_newlines=True, env=environment()))
    outputs = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert "Final Performance images/sec" in outputs[0]
    case = "ResNet50_ID0095_for_PyTorch_bs8_4p_perf.log"
    assert (tmp_path / "0" / case).exists() and "only on machine 0" in outputs[1]


def test_help_of_every_script():
    """--help answers with the options, their defaults and one example, and runs nothing."""
    for script in sorted(os.listdir(os.path.join(ROOT, "ResNet50", "test"))):
        if script.endswith(".sh"):
            done = run_script("ResNet50/test/" + script, "--help")
            assert done.returncode == 0 and "--data_path" in done.stdout and "Example:\n  bash test/" + script in done.stdout
    done = subprocess.run([sys.executable, os.path.join(ROOT, "ResNet50", "main.py"), "--help"], stdout=subprocess.PIPE,
                          universal_newlines=True)
    for flag in ("--data", "--addr", "--seed", "--workers", "--learning-rate", "--weight-decay", "--print-freq", "--dist-backend",
                 "--epochs", "--batch-size", "--benchmark", "--dist-url", "--multiprocessing-distributed", "--world-size", "--amp"):
        assert flag in done.stdout


# --- bad input --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("options, words", [
    (["--no_such_option=1"], ["unknown option --no_such_option"]),
    (["--batch_size"], ["--batch_size has no value"]),
    (["--batch_size=many"], ["--batch_size=many", "integer"]),
    (["--learning_rate=fast"], ["--learning_rate=fast", "number"]),
    (["--opt_level=O7"], ["O0, O1, O2"]),
    ([], ["--data_path is missing"]),
    (["--data_path=/no/such $HOME/folder"], ["/no/such $HOME/folder"]),
    (["--data_path=EMPTY"], ["no folder train"]),
    (["--data_path=DATA", "--device=npu"], ["no such device"]),
    (["--data_path=DATA", "--pth_path=/no/weights"], ["/no/weights"]),
    (["--data_path=DATA", "--batch_size=65"], ["larger than the data set"]),
    (["--data_path=DATA", "--arch=resnet51"], ["resnet51"]),
])
def test_bad_input_touches_nothing(tiny_imagenet, tmp_path, options, words):
    """One line that says what is wrong, status 2, and not even an output folder."""
    (tmp_path / "empty").mkdir()
    options = [option.replace("DATA", str(tiny_imagenet)).replace("EMPTY", str(tmp_path / "empty")) for option in options]
    defaults = TINY if not any(option.startswith("--arch") for option in options) else TINY[:1]
    done = run_script(FULL_1P, *(list(defaults) + ["--output_path=%s" % (tmp_path / "a" / "o")] + options))
    assert_bad_input(done, *words)
    assert not (tmp_path / "a").exists()


def test_bad_input_leaves_an_earlier_run_alone(trained, tmp_path):
    """A mistyped second run does not disturb the results of the first."""
    out = tmp_path / "copy"
    shutil.copytree(str(trained[0]), str(out))
    before = {name: (out / name).read_bytes() for name in os.listdir(str(out))}
    assert_bad_input(run_script(FULL_1P, "--data_path=/nowhere", *TINY, "--output_path=%s" % out), "/nowhere")
    assert {name: (out / name).read_bytes() for name in os.listdir(str(out))} == before


def test_an_earlier_run_is_set_aside(trained, tiny_imagenet, tmp_path):
    """A new run in an old output path deletes nothing (defect 21)."""
    out = tmp_path / "copy"
    shutil.copytree(str(trained[0]), str(out))
    old = (out / "train_0.log").read_text()
    block(run_script(FULL_1P, "--data_path=%s" % tiny_imagenet, *TINY, "--batch_size=8", "--max_steps=2", "--train_epochs=1",
                     "--output_path=%s" % out))
    assert (out / "earlier-1" / "train_0.log").read_text() == old and (out / "train_0.log").read_text() != old


@pytest.mark.parametrize("spoil, words", [
    (lambda path: open(path, "rb+").truncate(1000), ["truncated"]),
    (lambda path: torch.save({"state_dict": {"fc.weight": torch.ones(2, 2)}}, path), ["not a checkpoint of this network"]),
    (lambda path: torch.save({"epoch": 1}, path), ["no model weights"]),
])
def test_bad_weights(trained, tiny_imagenet, tmp_path, spoil, words):
    """Truncated, other architecture, no weights at all: named, status 2; strict, so nothing is hidden (defects 8 and 20)."""
    path = tmp_path / "w.pth"
    shutil.copy(str(trained[0] / "checkpoint.pth.tar"), str(path))
    spoil(str(path))
    done = run_script("ResNet50/test/train_eval_1p.sh", "--data_path=%s" % tiny_imagenet, *TINY, "--pth_path=%s" % path,
                      "--output_path=%s" % (tmp_path / "o"))
    assert_bad_input(done, "w.pth", *words)


def test_evaluation_without_weights():
    """The seed's call, --data_path alone, is told what is missing (defect 6)."""
    assert_bad_input(run_script("ResNet50/test/train_eval_1p.sh", "--data_path=x"), "--pth_path is missing")


def test_unreadable_image_in_the_middle_of_an_epoch(tmp_path):
    """The file is named, status 2; --skip_bad_images goes on and counts it."""
    write_images(tmp_path / "d" / "train", classes=2, per_class=8)
    write_images(tmp_path / "d" / "val", classes=2, per_class=2)
    break_image(str(tmp_path / "d" / "train" / "n00000001" / "n00000001_3.JPEG"), "truncated")
    options = ["--data_path=%s" % (tmp_path / "d")] + TINY[:-1] + ["--workers=2", "--batch_size=4", "--train_epochs=1"]
    done = run_script(FULL_1P, *options, "--output_path=%s" % (tmp_path / "o"))
    assert_bad_input(done, "n00000001_3.JPEG", "--skip_bad_images")
    done = run_script(FULL_1P, *options, "--skip_bad_images", "--output_path=%s" % (tmp_path / "p"))
    assert block(done) and records.read(str(tmp_path / "p" / "metrics.jsonl"))[-1]["data"]["bad_images"] == 1


def test_port_in_use(tiny_imagenet):
    """Two runs on one port: the second is told so."""
    import socket
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        done = subprocess.run([sys.executable, os.path.join(ROOT, "ResNet50", "main.py"), str(tiny_imagenet), "--device=cpu",
                               "--multiprocessing-distributed", "--dist-url=tcp://127.0.0.1:%d" % taken.getsockname()[1]],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    assert_bad_input(done, "cannot listen", "--master_port")


def test_batch_smaller_than_the_ranks():
    """Eight ranks cannot share four images."""
    assert_bad_input(run_script(FULL_8P, "--data_path=x", "--batch_size=4"), "--batch_size=4", "ranks (8)")


def test_output_path_that_cannot_be_written(tiny_imagenet, tmp_path):
    """A file where the folder should be."""
    (tmp_path / "file").write_text("")
    done = run_script(FULL_1P, "--data_path=%s" % tiny_imagenet, *TINY, "--output_path=%s" % (tmp_path / "file" / "o"))
    assert_bad_input(done, "cannot write to output path")


def test_disk_full_while_saving(trained, tiny_imagenet, tmp_path):
    """The old checkpoint stays whole, the run ends with status 2 and one line (here the file size is limited)."""
    out = tmp_path / "o"
    shutil.copytree(str(trained[0]), str(out))
    before = (out / "checkpoint.pth.tar").read_bytes()
    command = script_command(FULL_1P, "--data_path=%s" % tiny_imagenet, *TINY, "--batch_size=8", "--train_epochs=3", "--resume",
                             "--output_path=%s" % out)
    done = subprocess.run(["bash", "-c", 'ulimit -S -f 20000 && exec "$@"', "limited"] + command, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True, env=environment())
    assert_bad_input(done, "cannot write checkpoint", "intact")
    assert (out / "checkpoint.pth.tar").read_bytes() == before and not list(out.glob("*.part"))


def test_a_crash_is_a_failed_script(tiny_imagenet, tmp_path):
    """An exception inside the training: its status, the last lines of the log and the log's path; no result block (defect 1)."""
    broken = tmp_path / "repository"
    shutil.copytree(os.path.join(ROOT, "common"), str(broken / "common"))
    shutil.copytree(os.path.join(ROOT, "ResNet50"), str(broken / "ResNet50"), ignore=shutil.ignore_patterns("output"))
    path = broken / "ResNet50" / "recipe.py"
    path.write_text(path.read_text().replace("log_p = torch.log_softmax(logits, dim=1)", "log_p = torch.log_softmax(logits, dim=7)"))
    done = subprocess.run(["bash", str(broken / "ResNet50" / "test" / "train_full_1p.sh"), "--data_path=%s" % tiny_imagenet, *TINY,
                           "--batch_size=8", "--output_path=%s" % (tmp_path / "o")], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True, env=environment())
    assert done.returncode == 1 and "Final" not in done.stdout
    assert "IndexError" in done.stderr and "training failed with status 1" in done.stderr and "train_0.log" in done.stderr


# --- interruption and exact resume ------------------------------------------------------------------------------------

RUN = TINY + ["--batch_size=8", "--train_epochs=2", "--learning_rate=0.01", "--checkpoint_steps=1", "--seed=49"]
RUN_OF_TWO = RUN + ["--device_list=0,1"]


def weights_of(path):
    return checkpoint.load(str(path / "checkpoint.pth.tar"))["state_dict"]


def assert_same_weights(one, other):
    assert list(one) == list(other)
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def uninterrupted(tiny_imagenet, tmp_path_factory):
    """The weights that the runs of one and of two ranks end with when nothing disturbs them."""
    out = tmp_path_factory.mktemp("whole")
    for script, options, name in ((FULL_1P, RUN, "1"), (FULL_8P, RUN_OF_TWO, "2")):
        block(run_script(script, "--data_path=%s" % tiny_imagenet, *options, "--output_path=%s" % (out / name)))
    return {FULL_1P: weights_of(out / "1"), FULL_8P: weights_of(out / "2")}


def checkpoint_step(out):
    """Return how many updates the newest checkpoint has seen, -1 without one."""
    try:
        state = checkpoint.load(str(out / "checkpoint.pth.tar"))
    except Exception:
        return -1
    return state["epoch"] * 8 + state["step"]


MOMENTS = {
    "before the first checkpoint": lambda out: (out / "metrics.jsonl").exists(),
    "in the middle of the first epoch": lambda out: checkpoint_step(out) >= 3,
    "while a checkpoint is written": lambda out: checkpoint_step(out) >= 5 and (out / "checkpoint.pth.tar.part").exists(),
    "in the second epoch": lambda out: checkpoint_step(out) >= 11,
}


def kill_all(process):
    """SIGKILL to the script, and, as a machine that stops does, to everything that it has started."""
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("script, options", [(FULL_1P, RUN), (FULL_8P, RUN_OF_TWO)], ids=["1 rank", "2 ranks"])
def test_killed_runs_resume_exactly(uninterrupted, tiny_imagenet, tmp_path, script, options):
    """SIGKILL at four moments of one run, --resume after each: bit for bit the weights of the uninterrupted run."""
    out = tmp_path / "o"
    options = ["--data_path=%s" % tiny_imagenet, "--output_path=%s" % out] + options
    for number, moment in enumerate(sorted(MOMENTS, key=list(MOMENTS).index)):
        process = start_script(script, *(options + (["--resume"] if number else [])))
        wait_until(lambda: MOMENTS[moment](out) or process.poll() is not None, interval=0.002)
        assert process.poll() is None, "the run ended before the moment '%s' came" % moment
        kill_all(process)
        wait_until(lambda: not running_in(out), timeout=20)
    result = block(run_script(script, *(options + ["--resume"])))
    assert_same_weights(weights_of(out), uninterrupted[script])
    assert result["Final Train Accuracy"] != "not measured"


@pytest.mark.parametrize("script, options", [(FULL_1P, RUN), (FULL_8P, RUN_OF_TWO)], ids=["1 rank", "2 ranks"])
def test_sigterm_saves_and_resumes_exactly(uninterrupted, tiny_imagenet, tmp_path, script, options):
    """Pre-emption: SIGTERM to the script writes a checkpoint, ends with status 143, and the run goes on from there."""
    out = tmp_path / "o"
    options = ["--data_path=%s" % tiny_imagenet, "--output_path=%s" % out] + [
        option for option in options if "checkpoint_steps" not in option]
    process = start_script(script, *options)
    wait_until(lambda: "Epoch: [0]" in (out / "train_0.log").read_text() if (out / "train_0.log").exists() else False)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 143
    assert checkpoint_step(out) >= 0 and not running_in(out)
    block(run_script(script, *(options + ["--resume"])))
    assert_same_weights(weights_of(out), uninterrupted[script])


def test_ctrl_c_ends_every_rank(tiny_imagenet, tmp_path):
    """SIGINT: status 130, no KeyboardInterrupt on the screen, nobody left."""
    out = tmp_path / "o"
    process = subprocess.Popen(script_command(FULL_8P, "--data_path=%s" % tiny_imagenet, *RUN_OF_TWO, "--output_path=%s" % out,
                                              "--workers=2", "--train_epochs=90"),
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, universal_newlines=True, env=environment())
    wait_until(lambda: (out / "checkpoint.pth.tar").exists())
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and "KeyboardInterrupt" not in errors
    wait_until(lambda: not running_in(out), timeout=10)


def test_one_dying_rank_ends_the_run(tiny_imagenet, tmp_path):
    """SIGKILL to one rank: all the others end within seconds, the script fails and says which rank it was."""
    out = tmp_path / "o"
    process = subprocess.Popen(script_command(FULL_8P, "--data_path=%s" % tiny_imagenet, *RUN_OF_TWO, "--output_path=%s" % out,
                                              "--train_epochs=90"),
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, universal_newlines=True, env=environment())
    wait_until(lambda: (out / "checkpoint.pth.tar").exists())
    trainer = children(process.pid)[0]
    os.kill([pid for pid in children(trainer) if "spawn_main" in arguments(pid)][-1], signal.SIGKILL)
    killed_at = time.time()
    _, errors = process.communicate(timeout=60)
    assert time.time() - killed_at < 30 and process.returncode == 1
    assert "rank 1 was killed by signal 9" in errors and not running_in(out)


def children(pid):
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], stdout=subprocess.PIPE, universal_newlines=True).stdout
    return sorted(int(word) for word in listed.split())


def arguments(pid):
    return subprocess.run(["ps", "-ww", "-o", "args=", "-p", str(pid)], stdout=subprocess.PIPE, universal_newlines=True).stdout


def test_a_finished_run_resumes_to_its_result(trained, tiny_imagenet, tmp_path):
    """--resume after the end trains nothing, and reports the accuracy that was reached; the speed was not measured."""
    out = tmp_path / "o"
    shutil.copytree(str(trained[0]), str(out))
    result = block(run_script(FULL_1P, "--data_path=%s" % tiny_imagenet, *TINY, "--batch_size=8", "--train_epochs=2",
                              "--learning_rate=0.01", "--resume", "--output_path=%s" % out))
    assert result["Final Train Accuracy"] == trained[1]["Final Train Accuracy"]
    assert result["Final Performance images/sec"] == "not measured"


def test_torchrun_starts_the_same_training(uninterrupted, tiny_imagenet, tmp_path):
    """Started by PyTorch's own launcher, main.py finds its ranks in the environment and trains bit for bit the same."""
    pytest.importorskip("torch.distributed.run")
    script = open(os.path.join(ROOT, FULL_8P)).read()
    recipe = [word for word in script.split() if word.startswith(("--lr-schedule", "--warmup", "--label-s", "--smoothing", "--no-decay"))]
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29519",
                           os.path.join(ROOT, "ResNet50", "main.py"), str(tiny_imagenet), "--device=cpu", "-aresnet18", "-b8", "-j0",
                           "--image-size=32", "--epochs=2", "--lr=0.01", "--seed=49", "--save-ckpt-path=%s" % tmp_path,
                           "--workspace=%s" % tmp_path] + recipe, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True, env=environment())
    assert done.returncode == 0, done.stderr
    assert_same_weights(weights_of(tmp_path), uninterrupted[FULL_8P])


# --- numbers ----------------------------------------------------------------------------------------------------------

def losses_of(tiny_imagenet, out, ranks):
    """Return the losses of an epoch, averaged over the ranks, with BatchNorm in evaluation mode (--fine-tuning's)."""
    code = """
import sys
sys.path[:0] = [{root!r}, {root!r} + "/ResNet50"]
import torch
from common import cli, data, distributed, meters
import main, recipe
def worker(args, rank):
    torch.manual_seed(0)
    model = main.build_model(args)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    model = distributed.data_parallel(model, rank)
    model.eval()
    losses = []
    for images, target in main.make_train_batches(args, rank).of_epoch(0):
        loss = recipe.SmoothedCrossEntropy(0.1)(model(images), target)
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        losses.append(distributed.sum_over_ranks([loss.item() / rank.world_size], rank)[0])
    if rank.is_main:
        print("losses", losses)
def run():
    args = main.settled(main.parser().parse_args(sys.argv[2:]))
    where = distributed.layout("cpu", list(range(int(sys.argv[1]))))
    main.divide(args, where)
    distributed.launch(worker, args, where)
if __name__ == "__main__":
    cli.run(run)
""".format(root=ROOT)
    script = out / "losses.py"
    script.write_text(code)
    done = subprocess.run([sys.executable, str(script), str(ranks), str(tiny_imagenet), "-a", "resnet18", "-b", "16", "--image-size=32",
                           "--seed=3", "-j", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, env=environment())
    assert done.returncode == 0, done.stderr
    return eval([line for line in done.stdout.splitlines() if line.startswith("losses")][0].split(" ", 1)[1])


def test_ranks_train_like_one(tiny_imagenet, tmp_path):
    """DistributedDataParallel on 4 ranks with batch B has the losses of 1 rank with batch B, to 1e-5."""
    one, four = losses_of(tiny_imagenet, tmp_path, 1), losses_of(tiny_imagenet, tmp_path, 4)
    assert len(one) == 4 and np.allclose(one, four, rtol=1e-5) and len(set(one)) == 4


@pytest.mark.parametrize("batch, accumulated, updates", [(8, 16, 4), (8, 24, 3), (64, 16, 1)])
def test_accumulation_leaves_no_batch_out(tiny_imagenet, tmp_path, batch, accumulated, updates):
    """Any ratio of batches works, and what is left at the end of an epoch makes an update of its own (defect 10)."""
    main = load_script("ResNet50/main.py")
    args = main.settled(main.parser().parse_args([str(tiny_imagenet), "-a", "resnet18", "-b", str(batch), "--image-size=32", "-j0", "--device=cpu",
                                                  "--epochs=1", "--optimizer-batch-size=%d" % accumulated, "--save-ckpt-path=%s" % tmp_path,
                                                  "--workspace=%s" % tmp_path]))
    counted = []
    step = main.precision.NativeAmp.step
    try:
        main.precision.NativeAmp.step = lambda self: (counted.append(1), step(self))
        main.divide(args, main.layout(args))
        main.distributed.launch(main.train_or_evaluate, args, main.layout(args))
    finally:
        main.precision.NativeAmp.step = step
    assert len(counted) == updates
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_fine_tuning_trains_fc_alone(trained, tiny_imagenet, tmp_path):
    """--fine-tuning freezes everything but fc, statistics included, and takes weights of another number of classes (defect 9)."""
    source = trained[0] / "checkpoint.pth.tar"
    done = subprocess.run([sys.executable, os.path.join(ROOT, "ResNet50", "main.py"), str(tiny_imagenet), "--device=cpu", "-aresnet18", "-b8",
                           "--image-size=32", "-j0", "--epochs=1", "--fine-tuning", "--num-classes=4", "--pth-path=%s" % source,
                           "--save-ckpt-path=%s" % tmp_path, "--workspace=%s" % tmp_path, "--seed=1"], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True, env=environment())
    assert done.returncode == 0, done.stderr
    before, after = weights_of(trained[0]), weights_of(tmp_path)
    changed = [key for key in before if before[key].shape != after[key].shape or not torch.equal(before[key], after[key])]
    assert changed == ["fc.weight", "fc.bias"]


def test_mixup_and_the_other_switches_do_something(tiny_imagenet, tmp_path):
    """--mixup, --amp, --dynamic-loss-scale, --model-config and --print-freq are not for show (defect 9)."""
    main = load_script("ResNet50/main.py")
    base = [str(tiny_imagenet), "-a", "resnet18", "-b", "16", "--image-size=32", "-j0", "--device=cpu", "--epochs=1", "--seed=1",
            "--save-ckpt-path=%s" % tmp_path, "--raport-file=m.jsonl", "--workspace=%s" % tmp_path]
    losses = {}
    for name, extra in (("plain", []), ("mixup", ["--mixup=0.4"]), ("fanin", ["--model-config=fanin"]), ("often", ["--print-freq=1"]),
                        ("amp", ["--amp", "--dynamic-loss-scale"])):
        args = main.settled(main.parser().parse_args(base + extra))
        main.divide(args, main.layout(args))
        main.distributed.launch(main.train_or_evaluate, args, main.layout(args))
        records_ = [r["data"] for r in records.read(str(tmp_path / "m.jsonl")) if r.get("type") == "LOG" and len(r["step"]) == 2]
        losses[name] = [data["train.loss"] for data in records_]
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert len(losses["plain"]) == 1 and len(losses["often"]) == 4
    assert len({losses[name][0] for name in ("plain", "mixup", "fanin")}) == 3 and losses["often"][0] == losses["plain"][0]
    assert np.isclose(losses["amp"][0], losses["plain"][0], rtol=0.02)
