"""What a training step costs the host and the device: operators, waits, layouts, half precision, synthetic data, profiles."""
import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from common import device as devices, distributed, flags, meters, network, optimizer, precision, profiling, synthetic, tensors
from conftest import ROOT, assert_bad_input, environment, free_port, run_script
from test_genet_data import write_cifar

CPU = torch.device("cpu")
ALONE = distributed.Rank(0, 1, 0, CPU)
needs_torch_2 = pytest.mark.skipif(not hasattr(torch, "compile"), reason="PyTorch before 2 does not show its operators, and compiles nothing")

# Of a training step: operators at O0 and O2, and waits of the host, with a line every ten steps.
LIMITS = {"ResNet50": (390, 400, 0.1), "HRNet": (2320, 2330, 0.1), "GENet": (180, 190, 0.1), "EfficientNet-B3": (880, 890, 0.3),
          "FixRes": (370, 380, 0.1)}
OUTSIDE = 30  # operators outside of forward and backward
O2_ADDS = {"FixRes": 12}  # its loss scale is dynamic; the others': 10
RESNET50_PARAMETERS = 161


@pytest.fixture(scope="module")
def tiny_cifar(tmp_path_factory):
    """CIFAR-10's layout with 200 images of noise."""
    root = tmp_path_factory.mktemp("cifar")
    write_cifar(root / "cifar-10-batches-py", per_batch=40)
    return root


def program(model, level, images, cifar, out):
    """Return the command line of a model's training program for 22 steps with small pictures."""
    common = ["--device=cpu", "--opt-level=" + level]
    return {
        "ResNet50": ["ResNet50/main.py", images, "--batch-size=2", "--image-size=32", "--epochs=1", "--max-steps=22", "--workers=1",
                     "--save-ckpt-path=" + out, "--workspace=" + out, "--num-classes=4", "--lr=0.000001"] + common,
        "HRNet": ["HRNet/tools/train.py", images, "--cfg=HRNet/experiments/cls_hrnet_w18_sgd_lr5e-2_wd1e-4_bs32_x100.yaml",
                  "--max-steps=22", "--train-epochs=1", "--output-path=" + out, "--workers=1", "--bs=2",
                  "--lr=0.000001"] + common + [
                      "MODEL.IMAGE_SIZE", "[64,64]", "MODEL.NUM_CLASSES", "4", "PRINT_FREQ", "10", "LOG_DIR", ""],
        "GENet": ["GENet/train.py", "--DataPath=" + cifar, "--epochs=1", "--max-steps=22", "--batch-size=8", "--output-path=" + out,
                  "--amp", "--workers=1", "--width=1"] + common,
        "EfficientNet-B3": ["EfficientNet-B3/tools/train_net.py", "--data-path=" + images, "--device=cpu",
                            "--cfg=EfficientNet-B3/configs/dds_baselines/effnet/EN-B3_dds_1npu_full.yaml", "OUT_DIR", out,
                            "TRAIN.BATCH_SIZE", "2", "TRAIN.OPT_LEVEL", level, "DATA_LOADER.NUM_WORKERS", "1", "TRAIN.IM_SIZE", "64",
                            "TEST.IM_SIZE", "73", "OPTIM.MAX_EPOCH", "1", "TRAIN.MAX_STEPS", "22", "PREC_TIME.NUM_ITER", "0",
                            "MODEL.NUM_CLASSES", "4", "BN.USE_PRECISE_STATS", "False", "TEST.BATCH_SIZE", "4", "LOG_PERIOD", "10",
                            "OPTIM.BASE_LR", "0.001"],
        "FixRes": ["FixRes/main_resnet50_scratch.py", "--imnet-path=" + images, "--max-steps=22", "--epochs=1", "--batch=2",
                   "--workers=2", "--input-size=32", "--num-classes=4", "--num-tasks=1", "--checkpoint-file=%s/c.pth.tar" % out,
                   "--print-freq=10", "--learning-rate=0.001"] + common}[model]


def counted(arguments, launcher=()):
    """Return what `tools/benchmark.py operators` says of a training program: as much as with a wide network."""
    done = subprocess.run([sys.executable] + list(launcher) + ["tools/benchmark.py", "operators", "--json"] + arguments, cwd=ROOT,
                          env=environment(NARROW="1"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@needs_torch_2
@pytest.mark.parametrize("model", sorted(LIMITS))
def test_operators_and_waits_of_a_step(model, tiny_imagenet, tiny_cifar, tmp_path):
    """As few as they are known to need: of the whole step, of what is around forward and backward, and of O2 over O0."""
    at_o0, at_o2, waits = LIMITS[model]
    counts = [counted(program(model, level, str(tiny_imagenet), str(tiny_cifar), str(tmp_path / level))) for level in ("O0", "O2")]
    for count, limit in zip(counts, (at_o0, at_o2)):
        assert 0 < count["operators"]["forward"] < count["operators"]["total"] <= limit
        assert count["operators"]["update"] + count["operators"]["rest"] <= OUTSIDE
        assert 0 < sum(count["waits"].values()) <= waits
    assert counts[1]["operators"]["total"] <= counts[0]["operators"]["total"] + O2_ADDS.get(model, 10)


@needs_torch_2
def test_what_two_ranks_add(tmp_path):
    """An operator for each parameter that is sent, and ten; one more wait, over whether SIGTERM has come, every few seconds, which is
    at most once in a step (ci/test_reliability_signals.py counts them)."""
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=%d" % free_port()]
    arguments = program("ResNet50", "O2", "no-data", "", str(tmp_path / "one")) + ["--dummy"]
    alone = counted(arguments)
    two = counted([word.replace("size=2", "size=4").replace("/one", "/two") for word in arguments], launcher)
    assert two["operators"]["total"] <= alone["operators"]["total"] + RESNET50_PARAMETERS + 10
    others = [times for line, times in two["waits"].items() if not line.startswith("common/distributed.py:")]
    assert 0 < sum(others) <= 0.1 and sum(two["waits"].values()) <= 1.1


# --- pieces -----------------------------------------------------------------------------------------------------------

def normed(momentum=0.1):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, momentum=momentum),
                         nn.Flatten(), nn.Linear(16, 2))


def test_batches_are_counted_as_ever():
    """`num_batches_tracked` grows where BatchNorm would let it grow, after the pass, in what a checkpoint holds; in evaluation not."""
    torch.manual_seed(0)
    ours, theirs, images = normed(None), normed(None), torch.randn(2, 3, 4, 4)
    theirs.load_state_dict(ours.state_dict())
    network.count_batches_at_once(ours)
    for training in (True, False, True):
        assert torch.equal(ours.train(training)(images), theirs.train(training)(images))
    ours[1].eval(), theirs[1].eval()
    ours(images), theirs(images)
    for (key, one), other in zip(ours.state_dict().items(), theirs.state_dict().values()):
        assert torch.equal(one, other) and one.dtype == other.dtype, key
    assert int(ours[1].num_batches_tracked) == 2 and int(ours[3].num_batches_tracked) == 3


def test_global_average():
    """AdaptiveAvgPool2d's mean in either layout, to the bit but for PyTorch 1.5."""
    images = torch.randn(3, 5, 7, 6)
    for layout in (torch.contiguous_format, torch.channels_last):
        images = images.contiguous(memory_format=layout)
        means = network.GlobalAverage()(images), nn.AdaptiveAvgPool2d(1)(images)
        assert torch.equal(*means) if hasattr(torch, "compile") else torch.allclose(*means, atol=1e-6)


@pytest.mark.parametrize("together", [True, False])
def test_operators_on_many_tensors(monkeypatch, together):
    """One call for all or one each: the same results, across dtypes too."""
    if not together:
        for name in [name for name in dir(torch) if name.startswith("_foreach_")]:
            monkeypatch.delattr(torch, name)
    targets, sources = [torch.zeros(2), torch.zeros(3)], [torch.ones(2).half(), torch.full((3,), 2.0)]
    tensors.each("copy_", targets, sources)
    tensors.each("add_", targets, sources)
    tensors.each("add_", targets, 1)
    tensors.each("mul_", targets, 0.5)
    tensors.each("copy_", [], [])
    assert [target.tolist() for target in targets] == [[1.5] * 2, [2.5] * 3]
    tensors.each("lerp_", targets, [torch.full((2,), 3.5), torch.zeros(3)], 0.25)
    assert [target.tolist() for target in targets] == [[2.0] * 2, [1.875] * 3]


def test_sgd_keeps_its_own_way_of_computing():
    """A checkpoint of a GPU that fused its update does not make another device fuse; what it learned with it takes over."""
    parameter = nn.Parameter(torch.ones(3))
    ours = optimizer.SGD([parameter], 0.1, momentum=0.9)
    parameter.grad = torch.ones(3)
    ours.step()
    state = ours.state_dict()
    state["param_groups"][0].update(lr=0.7, fused=True, foreach=True)
    other = optimizer.SGD([nn.Parameter(torch.ones(3))], 0.1, momentum=0.9)
    other.load_state_dict(state)
    assert other.param_groups[0]["lr"] == 0.7 and not other.param_groups[0].get("fused") and not other.param_groups[0].get("foreach")
    assert other.state[other.param_groups[0]["params"][0]]["momentum_buffer"].tolist() == [1.0] * 3


@pytest.mark.skipif(not hasattr(getattr(torch, "amp", None), "GradScaler"), reason="no dynamic loss scale on a CPU before PyTorch 2.3")
def test_a_dynamic_scale_does_not_wait():
    """The fused update looks at the flag of overflow by itself; it skips an update that overflowed, and halves the scale."""
    results = {}
    for scale in ("dynamic", 1.0):
        torch.manual_seed(0)
        model = nn.Linear(4, 2)
        model, sgd, amp = precision.initialize(model, optimizer.SGD(model.parameters(), 0.1, momentum=0.9), "O1", scale, CPU)
        for factor in (1.0, 1.0, float("inf"), 1.0):
            if factor == 1.0 or scale == "dynamic":
                amp.backward((model(torch.ones(3, 4)).float() ** 2).mean() * factor)
                amp.step()
        results[scale] = model.weight.detach().clone(), amp.state_dict().get("scale"), sgd
    assert results["dynamic"][2].param_groups[0]["fused"] and not results[1.0][2].param_groups[0].get("fused")
    assert torch.allclose(results["dynamic"][0], results[1.0][0], rtol=1e-5) and results["dynamic"][1] == 32768.0


@pytest.mark.skipif(not hasattr(getattr(torch, "amp", None), "GradScaler"), reason="no dynamic loss scale on a CPU before PyTorch 2.3")
@pytest.mark.parametrize("level", ["O1", "O2"])
def test_the_first_steps_overflow(level, monkeypatch):
    """A dynamic scale begins with steps that are left out; the first that is taken begins the momentum. Defect: PyTorch's fused operator
    went on from memory that nobody had written, on a GPU to NaN. Here such memory is NaN from the start."""
    model = nn.Linear(3, 1, bias=False)
    nn.init.ones_(model.weight)
    model, sgd, amp = precision.initialize(model, optimizer.SGD(model.parameters(), 0.1, momentum=0.9), level, "dynamic", CPU)
    monkeypatch.setattr(torch, "empty_like", lambda tensor, **how: torch.full_like(tensor, float("nan"), **how))
    for factor in (float("inf"), 1.0):
        amp.backward(model(torch.ones(1, 3)).float().sum() * factor)
        amp.step()
        if factor != 1.0:
            sgd.load_state_dict(sgd.state_dict())  # a checkpoint may come between the two
    assert sgd.param_groups[0]["fused"] and torch.allclose(model.state_dict()["weight"], torch.full((1, 3), 0.9))


@pytest.mark.parametrize("level", ["O1", "O2"])
@needs_torch_2
def test_bf16_needs_no_scale(level):
    """--amp-dtype bf16: no scale, whatever the recipe's; fp16 keeps it. Without, a CPU takes bf16 with the recipe's scale."""
    for dtype, wanted, scale in ((None, torch.bfloat16, 128.0), ("bf16", torch.bfloat16, 1.0), ("fp16", torch.float16, 128.0)):
        model = nn.Linear(4, 2)
        model, _, amp = precision.initialize(model, optimizer.SGD(model.parameters(), 0.1), level, 128.0, CPU, dtype)
        if dtype == "fp16" and amp.note:
            continue  # a CPU's PyTorch before 2.3
        seen = []
        model.register_forward_hook(lambda module, inputs, output: seen.append(module.weight.dtype if level == "O2" else output.dtype))
        with amp.autocast():
            model(torch.ones(3, 4))
        assert seen == [wanted] and amp._scaler._scale == scale


@pytest.mark.parametrize("text", ["3", "3:", ":3", "5:5", "6:5", "a:b", "-1:2"])
def test_bad_step_ranges(text):
    """--profile-steps takes two ascending numbers."""
    with pytest.raises(flags.cli.argparse.ArgumentTypeError, match="A:B"):
        flags.step_range(text)


def test_profiled_steps_do_not_count(tmp_path):
    """A profile slows its steps down, so they are left out of the images per second; its trace and its table are there."""
    clock, lines = meters.Clock(CPU, 20, usual_warmup=1), []
    rank = ALONE._replace()
    profiler = profiling.StepProfiler((3, 5), str(tmp_path / "profile"), rank)
    for step in clock.over(range(8)):
        profiler.before(step, clock)
        torch.ones(3) @ torch.ones(3)
        clock.lap(1)
        profiler.after(step, clock)
        lines.append(clock.steps)
    profiler.close(clock)
    clock.stop()
    assert clock.steps == 8 - 1 - 2
    assert len(os.listdir(str(tmp_path / "profile"))) == 1


def test_a_profile_ends_with_its_epoch(tmp_path):
    """Steps of the epochs that follow count again."""
    clock = meters.Clock(CPU, 20, usual_warmup=1)
    profiler = profiling.StepProfiler((2, 9), str(tmp_path / "profile"), ALONE)
    for _ in range(2):
        for step in clock.over(range(4)):
            profiler.before(step, clock)
            torch.ones(3) @ torch.ones(3)
            clock.lap(1)
            profiler.after(step, clock)
        profiler.close(clock)
        clock.stop()
    assert clock.steps == 1 + 4


def test_made_up_batches():
    """--dummy: as many as a training would have, all the same one, on the device in its layout; each rank has its own."""
    ranks = [distributed.Rank(number, 2, number, CPU) for number in range(2)]
    made = [synthetic.SyntheticBatches(100, 8, 16, 10, rank, max_steps=5) for rank in ranks]
    (images, labels), others = list(made[0])[0], list(made[0].of_epoch(3, first_step=2))
    assert images.shape == (8, 3, 16, 16) and labels.shape == (8,) and 0 <= int(labels.min()) <= int(labels.max()) < 10
    assert images.is_contiguous(memory_format=devices.memory_format(CPU)) and len(made[0]) == 5 and len(others) == 3
    assert others[0][0] is images and not torch.equal(images, next(iter(made[1]))[0])
    assert (made[0].images, made[0].global_batch, made[0].step_images, made[0].count_bad(ALONE)) == (100, 16, 16, 0)


# --- compiled networks ------------------------------------------------------------------------------------------------

@needs_torch_2
def test_compiled_in_training_alone(monkeypatch):
    """Evaluation, hooks and the keys of the state stay eager's; training takes the graph, which is one."""
    asked = []
    real = torch.compile

    def compile(function, **options):
        asked.append(options)
        return real(function, **dict(options, backend="eager"))
    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(torch, "__file__", "/anywhere")
    model = normed()
    keys, images = list(model.state_dict()), torch.randn(2, 3, 4, 4)
    eager = model.eval()(images)
    network.count_batches_at_once(model)
    network.compile_forward(model, CPU, "default")
    assert torch.equal(model.eval()(images), eager) and list(model.state_dict()) == keys and asked[0]["fullgraph"]
    model.train()(images).sum().backward()
    assert int(model[1].num_batches_tracked) == 1 and model[0].weight.grad is not None


@needs_torch_2
def test_no_compiler(monkeypatch):
    """One line where the machine has no compiler, or PyTorch lies where its own does not work."""
    monkeypatch.setattr(torch, "__file__", "/a folder/torch.py")
    with pytest.raises(flags.UserError, match="--compile: .* /a folder"):
        network.compile_forward(normed(), CPU, "default")
    monkeypatch.setattr(network.shutil, "which", lambda name: None)
    with pytest.raises(flags.UserError, match="--compile: a CPU needs"):
        network.compile_forward(normed(), CPU, "default")


@needs_torch_2
@pytest.mark.skipif(sys.version_info >= (3, 12) and not hasattr(torch, "accelerator"), reason="PyTorch before 2.4 compiles up to Python 3.11")
def test_a_compiled_training(tmp_path):
    """The whole way, compiler included: GENet's script with --compile trains, evaluates and reports."""
    done = run_script("GENet/test/train_performance_1p.sh", "--device=cpu", "--depth=10", "--width=1", "--batch_size=8", "--dummy",
                      "--max_steps=12", "--train_epochs=1", "--compile", "--opt_level=O1", "--profile_steps=6:8",
                      "--output_path=%s" % (tmp_path / "o"))
    if set(" $") & set(torch.__file__):
        assert_bad_input(done, "--compile", torch.__file__)
        return
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Final Performance images/sec : " in done.stdout and "Final Train Accuracy : not measured" in done.stdout
    assert "CompiledFunction" in done.stdout


# --- the benchmark of trainings ---------------------------------------------------------------------------------------

@needs_torch_2
def test_trainings_are_compared():
    """Loops take turns, ours is the program's own, and what has no such network is left out with a line."""
    done = subprocess.run([sys.executable, "tools/benchmark.py", "training", "--models=GENet", "--only=ours/O0/nchw,ours/O1,torchvision/O0",
                           "--batch-size=2", "--rounds=2", "--steps=1", "--device=cpu", "--markdown"],
                          cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=300)
    assert done.returncode == 0 and not done.stderr, done.stderr[-2000:]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line.startswith("|")]
    assert "left out: GENet torchvision/O0 (it has no such network)" in done.stdout and len(rows) == 4
    assert rows[2][:1] + rows[2][2:] == ["ours/O0/nchw", "1.00 (1.00 to 1.00)", "", ""]
    assert rows[3][0] == "ours/O1" and float(rows[3][1]) > 0 and float(rows[3][2].split()[0]) > 0


@pytest.mark.parametrize("words, said", [(["--models=Nothing"], "Nothing: choose of"), (["--only=ours/O7"], "ours/O7: choose of")])
def test_no_such_training(words, said):
    """One line for a model or a loop that is not there."""
    done = subprocess.run([sys.executable, "tools/benchmark.py", "training"] + words, cwd=ROOT, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True, timeout=100)
    assert done.returncode == 2 and said in done.stderr
