"""What goes on between the programs and a real device: choosing one, its modes, what is written on it. Devices are stand-ins here;
ci/test_npu_models.py has the simulated NPU."""
import argparse
import contextlib
import enum
import os
import subprocess
import sys
import types
from collections import OrderedDict, namedtuple

import pytest
import torch
from torch import nn

from common import checkpoint, cli, device as devices, distributed, precision
from conftest import ROOT, environment, load_script, run_script

Device = namedtuple("Device", "type index")  # this PyTorch may not know the word npu
NPU, GPU, CPU = Device("npu", 0), Device("cuda", 0), torch.device("cpu")


class FakeNpu(object):
    """torch.npu of the plug-in, as far as choosing and setting up a device goes; `calls` has what was asked, in order."""

    def __init__(self, name="Ascend910B2", count=8):
        self.calls, self.name, self.count = [], name, count
        self.conv, self.matmul = types.SimpleNamespace(allow_hf32=True), types.SimpleNamespace(allow_hf32=False)
        self.config = types.SimpleNamespace()
        self.amp = types.SimpleNamespace(GradScaler=lambda: "the plug-in's")

    def is_available(self):
        return self.count > 0

    def device_count(self):
        return self.count

    def set_device(self, device):
        self.calls.append(("set_device", os.environ.get("TASK_QUEUE_ENABLE")))

    def set_compile_mode(self, jit_compile):
        self.calls.append(("set_compile_mode", jit_compile))

    def get_device_name(self, index):
        return self.name

    def manual_seed_all(self, value):
        self.calls.append(("manual_seed_all", value))


@pytest.fixture
def npu(monkeypatch):
    """A machine with eight NPUs and nothing of theirs in the environment."""
    fake = FakeNpu()
    monkeypatch.setattr(torch, "npu", fake, raising=False)
    monkeypatch.setattr(devices, "_import_errors", [])
    for name in list(devices._NPU_ENVIRONMENT) + ["COMBINED_ENABLE", "ASCEND_RT_VISIBLE_DEVICES"]:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setitem(os.environ, name, "")  # so that what the code sets is taken back after the test
        del os.environ[name]
    return fake


@pytest.fixture
def flags_restored():
    """Take back what a test sets for the whole process."""
    cudnn, matmul = torch.backends.cudnn, getattr(torch.backends.cuda, "matmul", None)
    before = cudnn.deterministic, cudnn.benchmark, getattr(cudnn, "allow_tf32", None), getattr(matmul, "allow_tf32", None)
    environ = dict(os.environ)
    yield
    cudnn.deterministic, cudnn.benchmark = before[:2]
    if matmul is not None:
        cudnn.allow_tf32, matmul.allow_tf32 = before[2:]
        torch.use_deterministic_algorithms(False)
    for name in set(os.environ) - set(environ):
        del os.environ[name]


# --- modes of an NPU --------------------------------------------------------------------------------------------------

def test_npu_environment_is_the_users_or_ours(npu, monkeypatch):
    """What a user has set stays; else ours, before the device starts (the scripts used to set their own over it)."""
    devices.set_current(NPU)
    assert npu.calls[0] == ("set_device", "2") and os.environ["HCCL_CONNECT_TIMEOUT"] == "1800"
    monkeypatch.setenv("TASK_QUEUE_ENABLE", "1")
    monkeypatch.setenv("HCCL_CONNECT_TIMEOUT", "60")
    devices.set_current(NPU)
    assert npu.calls[-2] == ("set_device", "1") and os.environ["HCCL_CONNECT_TIMEOUT"] == "60"


@pytest.mark.parametrize("device", ["npu", "auto", "cpu"])
def test_the_scripts_leave_the_environment_to_the_user(tmp_path, device):
    """A script changes nothing of what the user has set for the Ascend software, and sets nothing of it that belongs to the programs."""
    python = tmp_path / "python3"
    python.write_text("#!/bin/bash\n[[ $1 != */launch.py ]] || { echo 1 1 0 0 nobody; exit; }\nenv >\"$SEEN\"\n")
    python.chmod(0o755)
    env = environment(SEEN=str(tmp_path / "seen"), ASCEND_GLOBAL_LOG_LEVEL="1", COMBINED_ENABLE="0", HCCL_CONNECT_TIMEOUT="77")
    env["PATH"] = "%s:%s" % (tmp_path, env["PATH"])
    done = run_script("ResNet50/test/train_full_1p.sh", "--data_path=/x", "--device=" + device, env=env)
    seen = dict(line.split("=", 1) for line in (tmp_path / "seen").read_text().splitlines() if "=" in line)
    assert done.returncode == 0 and "TASK_QUEUE_ENABLE" not in seen
    assert (seen["ASCEND_GLOBAL_LOG_LEVEL"], seen["COMBINED_ENABLE"], seen["HCCL_CONNECT_TIMEOUT"]) == ("1", "0", "77")
    assert seen["TORCH_DEVICE_BACKEND_AUTOLOAD"] == "0"  # a broken plug-in may not end `import torch`


def test_precompiled_operators_before_there_is_a_tensor(npu):
    """Compiling on line is off as soon as the device is current: it can be set before the first tensor only."""
    devices.set_current(NPU)
    assert [call[0] for call in npu.calls] == ["set_device", "set_compile_mode"] and npu.calls[1][1] is False


@pytest.mark.parametrize("name, combined", [
    ("Ascend910A", "1"), ("Ascend910ProB", "1"), ("Ascend910B", "1"), ("Ascend910PremiumA", "1"),
    ("Ascend910B1", None), ("Ascend910B4-1", None), ("Ascend910_9391", None), ("Ascend950", None)])
def test_combined_copies_on_the_first_910_alone(npu, name, combined):
    """COMBINED_ENABLE is for the first generation; its names and the later ones' look alike."""
    npu.name = name
    devices.set_current(NPU)
    assert os.environ.get("COMBINED_ENABLE") == combined


def test_private_formats_are_the_plug_ins_choice_unless_asked(npu):
    """allow_internal_format was forced to True, which is wrong on A2 and A3."""
    devices.set_current(NPU)
    devices.npu_modes(NPU)
    assert not vars(npu.config)
    for wanted in (True, False):
        devices.npu_modes(NPU, private_formats=wanted)
        assert npu.config.allow_internal_format is wanted


@pytest.mark.parametrize("words, wanted", [([], None), (["--ND"], False), (["--ND=false"], True)])
def test_nd_and_its_opposite(npu, monkeypatch, words, wanted):
    """ResNet50's --ND says that there are no private formats, --ND=false that there are, and without it nothing is said."""
    program = load_script("ResNet50/main.py")
    monkeypatch.setattr(program, "make_learner", lambda args, rank: (_ for _ in ()).throw(KeyboardInterrupt))
    args = program.parser().parse_args(["--seed=1"] + words)
    with pytest.raises(KeyboardInterrupt):
        program.train_or_evaluate(args, distributed.Rank(0, 1, 0, NPU))
    assert getattr(npu.config, "allow_internal_format", None) is wanted


# --- choosing a device ------------------------------------------------------------------------------------------------

@pytest.fixture
def plug_in(tmp_path, monkeypatch):
    """Return a function that installs a torch_npu with the given source, for this process and its children."""
    monkeypatch.setattr(devices, "_import_errors", [])
    monkeypatch.delattr(torch, "npu", raising=False)

    def install(source):
        (tmp_path / "torch_npu").mkdir()
        (tmp_path / "torch_npu" / "__init__.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path))
        return str(tmp_path)
    yield install
    sys.modules.pop("torch_npu", None)


BROKEN = "raise RuntimeError('two accelerators cannot be used at the same time: npu and cuda\\nsecond line')"


def test_a_broken_plug_in_is_one_line(plug_in, capsys):
    """`import torch_npu` may raise anything: auto takes another device and says why, npu is refused with the cause."""
    plug_in(BROKEN)
    assert devices.resolve("auto") in ("cpu", "cuda") and devices.resolve("cpu") == "cpu"
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "torch_npu cannot be imported: two accelerators" in said
    for _ in range(2):
        with pytest.raises(cli.UserError, match="^--device npu: torch_npu cannot be imported: two accelerators .* npu and cuda;"):
            devices.resolve("npu")


def test_a_plug_in_that_breaks_import_torch(plug_in, tmp_path, tiny_imagenet):
    """Where PyTorch loads its plug-ins by itself and one is broken, nothing that imports torch would run: the scripts do."""
    folder = plug_in(BROKEN)
    (tmp_path / "torch_npu-2.13.0.dist-info").mkdir()
    (tmp_path / "torch_npu-2.13.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torch_npu\nVersion: 2.13.0\n")
    (tmp_path / "torch_npu-2.13.0.dist-info" / "entry_points.txt").write_text("[torch.backends]\ntorch_npu = torch_npu:_autoload\n")
    env = environment(PYTHONPATH=folder)
    if subprocess.call([sys.executable, "-c", "import torch"], env=env, stderr=subprocess.DEVNULL) == 0:
        pytest.skip("this PyTorch loads no plug-ins by itself")
    words = ["--data_path=%s" % tiny_imagenet, "--output_path=%s" % (tmp_path / "o"), "--workers=0", "--arch=resnet18", "--batch_size=4",
             "--image_size=32", "--max_steps=1", "--train_epochs=1", "--opt_level=O0"]
    done = run_script("ResNet50/test/train_full_1p.sh", "--device=auto", *words, env=env)
    assert done.returncode == 0 and "torch_npu cannot be imported: two accelerators" in done.stderr, done.stderr
    done = run_script("ResNet50/test/train_full_1p.sh", "--device=npu", *words, env=env)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "torch_npu cannot be imported" in done.stderr


def test_auto_says_why_it_takes_no_npu(monkeypatch, capsys, npu):
    """/dev/davinci* without a usable NPU is a fault of the set-up, not a machine without NPUs."""
    npu.count = 0
    devices.resolve("auto")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(devices.glob, "glob", lambda pattern: ["/dev/davinci0"])
    devices.resolve("auto")
    assert "torch_npu finds none of this machine's NPUs" in capsys.readouterr().err
    monkeypatch.setattr(devices, "_import_errors", [ModuleNotFoundError("No module named 'torch_npu'", name="torch_npu")])
    monkeypatch.setitem(sys.modules, "torch_npu", None)
    devices.resolve("auto")
    assert "this Python has no torch_npu" in capsys.readouterr().err


@pytest.mark.parametrize("visible, count", [("", 0), ("3,1", 1), ("1,1", 1), ("none", 0)])
def test_visible_devices_that_the_plug_in_does_not_read(monkeypatch, capsys, npu, visible, count):
    """ASCEND_RT_VISIBLE_DEVICES has to be in ascending order: the devices that it hides are not missing without a word."""
    npu.count = count
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", visible)
    wanted = "ASCEND_RT_VISIBLE_DEVICES=%s: name the devices in ascending order" % visible
    if count == 0:
        devices.resolve("auto")
        assert wanted in capsys.readouterr().err
    with pytest.raises(cli.UserError, match=wanted):
        devices.pick("npu", 1)


def test_visible_devices_in_order_are_no_problem(monkeypatch, npu):
    """Device 10 comes after device 9."""
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "2,9,10")
    assert devices.npu_problem() == ""


# --- exact or fast ----------------------------------------------------------------------------------------------------

def algorithms(args, rank):
    """A worker that prints what is forbidden."""
    are_forbidden = getattr(torch, "are_deterministic_algorithms_enabled", lambda: None)()
    print(are_forbidden, torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark, os.environ.get("HCCL_DETERMINISTIC"))


def test_deterministic_forbids_algorithms_that_vary(capsys, flags_restored):
    """--deterministic does all of it in every rank before the first operator, and says what it costs; without it nothing changes."""
    layout = distributed.layout("cpu", [0])
    known = hasattr(torch, "use_deterministic_algorithms") or None
    distributed.launch(algorithms, argparse.Namespace(deterministic=False), layout)
    assert capsys.readouterr().out == "%s False False None\n" % (known and False)
    distributed.launch(algorithms, argparse.Namespace(deterministic=True), layout)
    said, seen = capsys.readouterr().out.splitlines()
    assert said.startswith("deterministic: ") and "slower" in said
    assert seen == "%s True False true" % known


def test_the_configurations_do_not_undo_it(monkeypatch, flags_restored):
    """HRNet's and EfficientNet-B3's configurations choose cuDNN's algorithms, but not over --deterministic."""
    from pycls.core import config, trainer
    cudnn = torch.backends.cudnn
    stop = (_ for _ in ()).throw
    train = load_script("HRNet/tools/train.py")
    monkeypatch.setattr(train, "make_learner", lambda args, rank: stop(KeyboardInterrupt))
    settings = argparse.Namespace(CUDNN=argparse.Namespace(ENABLED=False, BENCHMARK=True, DETERMINISTIC=False),
                                  TRAIN=argparse.Namespace(BATCH_SIZE_PER_GPU=2))
    told = {"resume": None, "continues": False, "checkpoint": None, "accumulate": 1, "seed": 1, "config": settings}
    monkeypatch.setattr(cudnn, "enabled", True)
    rank = distributed.Rank(0, 1, 0, CPU)
    for deterministic in (True, False):
        cudnn.enabled, cudnn.benchmark, cudnn.deterministic = True, False, True
        with pytest.raises(KeyboardInterrupt):
            train.fit(argparse.Namespace(deterministic=deterministic, **told), rank)
        assert (cudnn.enabled, cudnn.benchmark, cudnn.deterministic) == (False, not deterministic, deterministic)
        trainer.setup_env(argparse.Namespace(cfg_text=config.cfg.dump(), deterministic=deterministic), rank)
        assert cudnn.benchmark is not deterministic


def test_fp32_is_fp32_unless_asked(npu, flags_restored):
    """TF32 and HF32 are off for convolutions too, which have them on by default, and on with --allow-tf32."""
    for allowed in (False, True):
        devices.set_arithmetic(NPU, allow_tf32=allowed)
        assert (npu.conv.allow_hf32, npu.matmul.allow_hf32) == (allowed, allowed)
        devices.set_arithmetic(GPU, allow_tf32=allowed)
        if hasattr(torch.backends.cuda, "matmul"):
            assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (allowed, allowed)


def test_a_rank_is_bound_to_its_device(monkeypatch):
    """The process group knows each rank's device, so that nothing of it takes device 0; where PyTorch cannot, it is not told."""
    with_device = types.SimpleNamespace(init_process_group=lambda backend, device_id=None: None)
    without = types.SimpleNamespace(init_process_group=lambda backend: None)
    old = "PyTorch without torch.accelerator"
    for accelerator, module, bound in ((NPU, with_device, (NPU,)), (GPU, with_device, (GPU,)), (None, with_device, ()),
                                       (old, with_device, (GPU,)), (old, without, ())):
        monkeypatch.setattr(distributed, "dist", module)
        monkeypatch.delattr(torch, "accelerator", raising=False)
        if accelerator is not old:
            registered = types.SimpleNamespace(current_accelerator=lambda accelerator=accelerator: accelerator)
            monkeypatch.setattr(torch, "accelerator", registered, raising=False)
        for device in (GPU, NPU, CPU):
            assert distributed._bound_to(device) == ({"device_id": device} if device in bound else {})


# --- precision --------------------------------------------------------------------------------------------------------

def test_the_plug_ins_loss_scale_comes_first(npu, monkeypatch):
    """On the first 910 only the plug-in's GradScaler sees an overflow."""
    assert precision._scaler("dynamic", NPU) == "the plug-in's"


def test_a_dynamic_scale_where_a_cpu_has_none(monkeypatch):
    """PyTorch 2.1 and 2.2 have torch.cpu.amp and no GradScaler for it: bf16 does without."""
    if hasattr(torch, "amp"):
        monkeypatch.delattr(torch.amp, "GradScaler", raising=False)
    if hasattr(torch, "cpu"):
        monkeypatch.setattr(torch.cpu, "amp", types.SimpleNamespace(autocast=None), raising=False)
    assert isinstance(precision._scaler("dynamic", CPU), precision.StaticScaler)


@pytest.mark.parametrize("message, falls_back", [
    ('"batch_norm" not implemented for \'Half\'', True), ("Could not run 'aten::conv2d' with arguments from the 'NPU' backend.", True),
    ("Currently, AutocastCPU only support Bfloat16 as the autocast_cpu_dtype", True),
    ("mixed dtype (CPU): expect input to have scalar type of BFloat16", True), ("NPU out of memory. Tried to allocate 2.00 GiB", False),
    ("CUDA error: an illegal memory access was encountered", False), ("ERR00100 PTA call acl api failed", False)])
def test_only_a_missing_operator_means_o0(monkeypatch, message, falls_back):
    """Out of memory or a broken device was taken for a level that cannot run, in silence."""
    def fail(*_, **__):
        raise RuntimeError(message)
    monkeypatch.setattr(precision.functional, "conv2d", fail)
    if falls_back:
        assert not precision._runs("O2", CPU, torch.bfloat16)
    else:
        with pytest.raises(RuntimeError, match=message.split()[0]):
            precision._runs("O2", CPU, torch.bfloat16)


class RealScaler(object):
    """GradScaler's state, with an entry that the plug-in's has and PyTorch's has not."""

    def __init__(self, **more):
        self.state = dict({"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000, "_growth_tracker": 0},
                          **more)

    def state_dict(self):
        return dict(self.state)

    def load_state_dict(self, state):
        self.state = {key: state[key] for key in self.state}  # KeyError for one that is missing, as the plug-in's


class ApexModule(object):
    """apex.amp's state."""

    def __init__(self):
        self.state = {"loss_scaler0": {"loss_scale": 2.0 ** 16, "unskipped": 0}}

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


def amp_of(kind):
    """Return (amp, a function that gives its scale and the updates since the last change of it)."""
    if kind == "apex":
        module = ApexModule()
        return precision.ApexAmp(module, None, "O2"), lambda: tuple(module.state["loss_scaler0"][key] for key in ("loss_scale", "unskipped"))
    scaler = {"pytorch": RealScaler(), "plug-in": RealScaler(dynamic=True), "static": precision.StaticScaler(128)}[kind]
    amp = precision.NativeAmp(nn.Linear(1, 1), None, "O0", scaler, (CPU, torch.bfloat16))
    return amp, lambda: (scaler.state["scale"], scaler.state["_growth_tracker"]) if kind != "static" else None


@pytest.mark.parametrize("written", ["apex", "pytorch", "plug-in", "static"])
@pytest.mark.parametrize("read", ["apex", "pytorch", "plug-in", "static"])
def test_a_loss_scale_goes_on_under_another(written, read):
    """A checkpoint of apex resumes without it and the other way round, and one of a GPU on an NPU: it used to end in a traceback."""
    source, _ = amp_of(written)
    if written != "static":
        source.load_state_dict({"scale": 512.0, "_growth_tracker": 7})
    target, value = amp_of(read)
    before = value()
    target.load_state_dict(source.state_dict())
    assert value() == (before if "static" in (written, read) else (512.0, 7))


# --- checkpoints ------------------------------------------------------------------------------------------------------

class Format(enum.IntEnum):
    """torch_npu.npu._format.Format, in part."""
    NC1HWC0 = 3


class FormatByName(object):
    """Pickles as a Format does under Python 3.11.2."""

    def __reduce__(self):
        return getattr, (Format, "NC1HWC0")


class NpuTensor(object):
    """Pickles as a tensor on an NPU does under the plug-ins before PyTorch 2.1: its values on the CPU, and its format there."""

    def __init__(self, values, rebuild, npu_format):
        self.values, self.rebuild, self.npu_format = values, rebuild, npu_format

    def __reduce_ex__(self, protocol):
        v = self.values
        return self.rebuild, (v.storage(), v.storage_offset(), tuple(v.size()), v.stride(), False, OrderedDict(), self.npu_format)


@contextlib.contextmanager
def old_plug_in(module_name):
    """A plug-in that has `_rebuild_npu_tensor` in `module_name`, while files are written."""
    def _rebuild_npu_tensor():
        raise AssertionError("nothing of the plug-in is called")
    _rebuild_npu_tensor.__module__, _rebuild_npu_tensor.__qualname__ = module_name, "_rebuild_npu_tensor"
    Format.__module__ = "torch_npu.npu._format"
    names = ["torch_npu", "torch_npu.utils", "torch_npu.npu", "torch_npu.npu._format", module_name]
    stand_ins = {name: types.ModuleType(name) for name in names if name not in sys.modules}
    sys.modules.update(stand_ins)
    sys.modules[module_name]._rebuild_npu_tensor, sys.modules["torch_npu.npu._format"].Format = _rebuild_npu_tensor, Format
    yield _rebuild_npu_tensor
    del sys.modules[module_name]._rebuild_npu_tensor
    for name in stand_ins:
        del sys.modules[name]


@pytest.mark.parametrize("module_name", ["torch_npu.utils.storage", "torch_npu.utils.tensor_methods", "torch._utils"])
@pytest.mark.parametrize("npu_format", [2, True, Format.NC1HWC0, FormatByName()])
@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_of_old_ascend_plug_ins(tmp_path, module_name, npu_format, zipped):
    """Most published Ascend checkpoints pickle a function of the plug-in: they are read as plain tensors, without it."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    options = {} if zipped else {"_use_new_zipfile_serialization": False}
    with old_plug_in(module_name) as rebuild:
        weights = OrderedDict((name, NpuTensor(value, rebuild, npu_format)) for name, value in network.state_dict().items())
        torch.save({"state_dict": weights, "epoch": 3}, str(tmp_path / "w.pth"), **options)
    content = checkpoint.load(str(tmp_path / "w.pth"))
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    checkpoint.load_weights(other, content, "w.pth")
    assert content["epoch"] == 3 and all(torch.equal(value, network.state_dict()[key]) for key, value in other.state_dict().items())
    assert "torch_npu" not in sys.modules


class RunsCode(object):
    def __reduce__(self):
        return os.system, ("touch %s" % os.environ["PROOF"],)


def test_code_beside_an_npu_tensor_is_refused(tmp_path, monkeypatch):
    """The reader of such files runs nothing else than the reader of others."""
    monkeypatch.setenv("PROOF", str(tmp_path / "ran"))
    with old_plug_in("torch_npu.utils.storage") as rebuild:
        torch.save({"w": NpuTensor(torch.ones(2), rebuild, 2), "x": RunsCode()}, str(tmp_path / "w.pth"))
    with pytest.raises(cli.UserError, match="w.pth is not a checkpoint of tensors"):
        checkpoint.load(str(tmp_path / "w.pth"))
    assert not (tmp_path / "ran").exists()


# --- loaders of a rank that is bound to some CPUs ---------------------------------------------------------------------

BOUND = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import torch
from common import data, distributed

class Mask(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, key):
        return self.sample(), len(os.sched_getaffinity(0)), []
    def sample(self):
        return torch.zeros(1, 1, 3, dtype=torch.uint8).numpy()

loader = data.Loader(Mask(), data.EvalBatches(4, 2, distributed.Rank(0, 1, 0, torch.device("cpu"))), 4)
print(loader.num_workers, [targets.tolist() for _, targets, _ in loader])
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU: there is nothing to bind to")
def test_loaders_of_a_bound_rank_stay_on_its_cpus():
    """A rank that is bound to a CPU (taskset, a NUMA node) has no more workers than that, and they run nowhere else."""
    done = subprocess.run([sys.executable, "-c", BOUND], cwd=ROOT, env=environment(), stdout=subprocess.PIPE, universal_newlines=True)
    assert done.stdout == "1 [[1, 1], [1, 1]]\n"
