"""FixRes' own rooms: freezing, weights, flags, layout, schedule. No processes."""
import os

import numpy as np
import pytest
import torch
from torch import nn

from common.cli import UserError
from conftest import load_script
from fill import fill_state_dict
from imnet_common import flags, networks, weights
from imnet_common.batches import SequenceBatches
from imnet_common.schedule import Schedule, sgd
from imnet_finetune.adaptation import ADAPTATIONS, freeze, set_finetune_mode
from imnet_finetune.samplers import FixedOrderSampler
from imnet_resnet50_scratch.samplers import RASampler

CPU = torch.device("cpu")


# --- what fine-tuning trains ------------------------------------------------------------------------------------------

def test_only_the_classifier_moves_and_only_one_batchnorm_collects():
    """After a step of fine-tuning exactly fc and the buffers of layer4.2.bn3 differ; frozen parameters do not even decay."""
    model = networks.build("ResNet50", num_classes=5)
    freeze(model, "ResNet50")
    optimizer = sgd(model, 0.1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    set_finetune_mode(model, "ResNet50")
    model(torch.randn(4, 3, 64, 64)).sum().backward()
    optimizer.step()
    changed = [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])]
    bn = ["layer4.2.bn3." + name for name in ("running_mean", "running_var", "num_batches_tracked")]
    assert changed == bn + ["fc.weight", "fc.bias"]
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["fc.weight", "fc.bias"]
    assert len(optimizer.state_dict()["param_groups"][0]["params"]) == 161 and len(optimizer.state_dict()["state"]) == 2


def test_pnasnet_trains_its_last_cells():
    """PNASNet's last three cells and classifier are trained, BatchNorm included; the modes are upstream's (see the golden file)."""
    model = networks.build("PNASNet", num_classes=3)
    freeze(model, "PNASNet")
    set_finetune_mode(model, "PNASNet")
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 165 and {name.split(".")[0] for name in trained} == set(ADAPTATIONS["PNASNet"].trained)
    assert {name for name, child in model.named_children() if child.training} == {"cell_9", "cell_10", "cell_11", "dropout"}


def test_mode_survives_an_evaluation():
    """The mode is set anew in every epoch, after an evaluation has put the whole network in eval mode."""
    model = networks.build("ResNet50", num_classes=5)
    set_finetune_mode(model.eval(), "ResNet50")
    assert model.layer4[2].bn3.training and not model.layer4[2].bn2.training and not model.training


# --- weights ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("use_ema, key", [("auto", "state_dict"), ("true", "state_dict_ema")])
def test_weights_of_a_folder(use_ema, key, tmp_path):
    """Of a folder its checkpoint is loaded. Where that holds a moving average too, --use_ema chooses, and the line for the log says
    what was taken."""
    state = fill_state_dict(networks.build("ResNet50", num_classes=5).state_dict())
    average = {name: value.double().mul(0.5).to(value.dtype) for name, value in state.items()}
    torch.save({"state_dict": state, "state_dict_ema": average}, str(tmp_path / "checkpoint.pth"))
    model = networks.build("ResNet50", num_classes=5)
    assert "key %s of" % key in weights.load(model, str(tmp_path), use_ema)
    taken = average if key == "state_dict_ema" else state
    assert all(torch.equal(value, taken[name]) for name, value in model.state_dict().items())


def test_folder_of_an_earlier_phase(tmp_path):
    """In a folder the end of the run comes before its best epoch; a folder without weights is bad input."""
    with pytest.raises(UserError, match="holds no weights"):
        weights.file_of(str(tmp_path))
    for name in reversed(weights.NAMES):
        (tmp_path / name).write_bytes(b"")
        assert weights.file_of(str(tmp_path)) == str(tmp_path / name)


def test_pnasnets_original_weights_lose_their_background(tmp_path):
    """A file with 1001 classes is taken for PNASNet's original weights."""
    class Head(nn.Module):
        def __init__(self, classes):
            super().__init__()
            self.last_linear = nn.Linear(3, classes)

    original, model = Head(1001), Head(1000)
    torch.save(original.state_dict(), str(tmp_path / "pnasnet.pth"))
    weights.load(model, str(tmp_path / "pnasnet.pth"))
    assert torch.equal(model.last_linear.weight, original.last_linear.weight[1:])
    assert torch.equal(model.last_linear.bias, original.last_linear.bias[1:])


def test_resnet_has_no_published_start():
    """Fine-tuning a ResNet without weights is bad input, not a download of something else."""
    with pytest.raises(UserError, match="--resnet_weight_path"):
        networks.first_weights("ResNet50")


# --- flags and layout -------------------------------------------------------------------------------------------------

def parsed(script, *words):
    return load_script("FixRes/%s.py" % script).parser().parse_args(list(words))


def test_upstreams_flags_exist_in_both_spellings():
    """Every flag of the three upstream command lines is there, with underscores and with hyphens."""
    common = ["input-size=64", "batch=4", "workers=2", "imnet-path=/d", "shared-folder-path=/s", "local-rank=1", "global-rank=0",
              "num-tasks=2", "addr=127.0.0.1", "job-id=j", "pth-path=p"]
    training = ["learning-rate=0.5", "epochs=2", "node=1"]
    network = ["architecture=PNASNet", "EfficientNet-models=x"]
    wanted = {"main_resnet50_scratch": common + training, "main_finetune": common + training + network + ["resnet-weight-path=p"],
              "main_evaluate_imnet": common + network + ["weight-path=p"]}
    for script, words in wanted.items():
        hyphens = vars(parsed(script, *["--" + word for word in words]))
        underscores = vars(parsed(script, *["--" + word.split("=")[0].replace("-", "_") + "=" + word.split("=")[1] for word in words]))
        assert hyphens == underscores and hyphens["pth_path"] == "p" and hyphens["num_tasks"] == 2
    assert parsed("main_resnet50_scratch").learning_rate == 0.02 and parsed("main_finetune").learning_rate == 0.001


@pytest.fixture
def no_launcher(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_device_of_one_card_is_not_its_rank(no_launcher):
    """A run on one card drives the device that --local_rank names, and is rank 0 of one (the port's was rank 3 of one)."""
    layout = flags.layout(parsed("main_resnet50_scratch", "--device", "cpu", "--local-rank", "3"))
    assert layout.indices == (3,) and layout.world_size == 1 and layout.rank(0) == 0


def test_tasks_and_devices_have_to_agree(no_launcher):
    """--num_tasks starts that many ranks, on --device_list where it is given; --node divides them among machines."""
    assert flags.layout(parsed("main_finetune", "--device", "cpu", "--num-tasks", "4")).indices == (0, 1, 2, 3)
    assert flags.layout(parsed("main_finetune", "--device", "cpu", "--num-tasks", "2", "--device-list", "5,7")).indices == (5, 7)
    with pytest.raises(UserError, match="needs 4 here"):
        flags.layout(parsed("main_finetune", "--device", "cpu", "--num-tasks", "4", "--device-list", "5,7"))
    two = flags.layout(parsed("main_finetune", "--device", "cpu", "--num-tasks", "4", "--node", "2", "--node-rank", "1",
                              "--addr", "127.0.0.1"))
    assert two.world_size == 4 and two.rank(1) == 3 and (two.place.address, two.place.port) == ("127.0.0.1", 29688)
    with pytest.raises(UserError, match="cannot be divided"):
        flags.layout(parsed("main_finetune", "--device", "cpu", "--num-tasks", "3", "--node", "2"))


def test_two_runs_on_a_machine_do_not_meet(no_launcher):
    """Without --master_port every run listens on a free port of its own (the port's was always 29688)."""
    words = ("--device", "cpu", "--num-tasks", "2")
    assert flags.layout(parsed("main_finetune", *words)).place.port != 29688


def test_tasks_started_by_hand(no_launcher):
    """With --global_rank a process is one rank, as upstream's are, and the others meet it at --addr and --master_port."""
    words = ["--device", "cpu", "--num-tasks", "4", "--global-rank", "3", "--local-rank", "1", "--addr", "10.0.0.1", "--master-port", "77"]
    layout = flags.layout(parsed("main_finetune", *words))
    assert layout.indices == (0, 1, 2, 3) and layout.place.local_ranks == (1,)
    assert (layout.place.rank, layout.world_size, layout.place.address, layout.place.port) == (3, 4, "10.0.0.1", 77)


def test_rank_beyond_the_tasks(no_launcher):
    """--global_rank counts from 0."""
    with pytest.raises(UserError, match="it is 0 to 3"):
        flags.layout(parsed("main_finetune", "--device", "cpu", "--num-tasks", "4", "--global-rank", "4"))


def test_launcher_and_num_tasks_have_to_agree(no_launcher, monkeypatch):
    """The learning rate follows the ranks that there are, so a --num_tasks that says otherwise is bad input."""
    for name, value in (("RANK", "1"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    assert flags.layout(parsed("main_finetune", "--device", "cpu")).indices == (0, 1)
    with pytest.raises(UserError, match="the launcher has started 2"):
        flags.layout(parsed("main_finetune", "--device", "cpu", "--num-tasks", "8"))


def test_where_a_job_writes(tmp_path):
    """Checkpoints go to <shared folder>/<job id>/, and a job with a name goes on; without a job id every run has its own folder."""
    words = ("--shared-folder-path", str(tmp_path))
    args = parsed("main_resnet50_scratch", "--job-id", "j", *words)
    flags.resolve_files(args, "")
    assert (args.checkpoint_file, args.resume) == (str(tmp_path / "j" / "checkpoint.pth"), "auto")
    assert args.metrics_file == str(tmp_path / "j" / "metrics.jsonl")
    assert flags.beside_checkpoint(args, "model_best") == str(tmp_path / "j" / "model_best.pth")
    anew = parsed("main_finetune", *words)
    flags.resolve_files(anew, "finetune")
    assert anew.resume is None and os.path.dirname(os.path.dirname(anew.checkpoint_file)) == str(tmp_path / "finetune")
    with pytest.raises(UserError, match="neither --checkpoint-file nor --job-id"):
        flags.resolve_files(parsed("main_finetune", "--resume=auto", *words), "finetune")


def test_a_resumed_checkpoint_is_written_again_where_it_was(tmp_path):
    """--resume alone is enough to go on with a run."""
    args = parsed("main_finetune", "--resume", str(tmp_path / "checkpoint.pth.tar"))
    flags.resolve_files(args, "finetune")
    assert args.checkpoint_file == args.resume
    assert flags.beside_checkpoint(args, "checkpoint_9") == str(tmp_path / "checkpoint_9.pth.tar")


# --- epochs -----------------------------------------------------------------------------------------------------------

def test_schedule_has_upstreams_state():
    """The rate is set before an epoch's first step; the checkpoint's entry has the values that upstream's scheduler would have."""
    optimizer = sgd(nn.Linear(2, 2), 0.16)
    schedule = Schedule(optimizer, 0.16)
    assert [schedule.start_epoch(epoch) for epoch in (0, 29, 30)] == pytest.approx([0.16, 0.16, 0.016])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.016)
    state = torch.optim.lr_scheduler.StepLR(sgd(nn.Linear(2, 2), 0.16), 30).state_dict()
    own = schedule.state_dict()
    assert own["last_epoch"] == 30 and all(own[key] == state[key] for key in ("step_size", "gamma", "base_lrs"))


def test_an_order_of_shards_takes_the_permutations_place():
    """--shuffle_shards: both samplers take what it gives, of another seed each time where upstream draws anew, on every rank alike,
    and a resumed run without what was before; the copies of an image stay side by side."""
    asked = []

    def order(seed):
        asked.append(seed)
        return np.roll(np.arange(6), seed)

    def of_epoch(epoch):
        parts = [RASampler(6, 2, rank, seed=1, order=order).keys(epoch)[:, 1] for rank in range(2)]
        return np.stack(parts, 1).ravel().tolist()

    assert of_epoch(0)[:12] == np.repeat(order(1)[:4], 3).tolist() and of_epoch(2)[:12] == np.repeat(order(3)[:4], 3).tolist()
    assert FixedOrderSampler(6, 2, 1, seed=4, order=order).indices().tolist() == order(4)[1::2].tolist()
    assert set(asked) == {1, 3, 4}


def test_max_steps_ends_an_epoch():
    """--max_steps shortens an epoch and never lengthens it."""
    sampler = FixedOrderSampler(20, 1, 0)
    assert len(SequenceBatches(sampler, 8)) == len(SequenceBatches(sampler, 8, max_steps=9)) == 3
    assert [len(batch) for batch in SequenceBatches(sampler, 8, max_steps=2)] == [8, 8]


def test_accumulated_batches_are_those_of_one_update():
    """--accumulate cuts a card's --batch into batches: the same images in the same updates, and the same --batch for the rate."""
    args = parsed("main_finetune", "--batch", "8", "--accumulate", "2")
    flags.divide(args)
    assert (args.batch, args.batch_per_rank) == (8, 4)
    sampler = FixedOrderSampler(20, 2, 0)
    whole, parts = SequenceBatches(sampler, 8), SequenceBatches(sampler, args.batch_per_rank, accumulate=2)
    assert (parts.images, parts.global_batch) == (whole.images, whole.global_batch) == (20, 16)
    assert sum(parts, []) == sum(whole, []) and [len(batch) for batch in parts] == [4, 4, 2]
    with pytest.raises(UserError, match="--batch 8 cannot be divided into --accumulate 3 batches"):
        flags.divide(parsed("main_finetune", "--batch", "8", "--accumulate", "3"))
