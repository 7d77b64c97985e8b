"""hccl between two ranks: each runs these checks in the same order (RANK, WORLD_SIZE and INIT_METHOD from outside)."""

import datetime
import os
import sys

import pytest
import torch
import torch.distributed as dist
from nets import Net
from torch import nn
from torch.nn.parallel import DistributedDataParallel

RANK, RANKS = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


@pytest.fixture(scope="module")
def device():
    import torch_npu  # noqa: F401  (registers torch.npu)

    torch.npu.set_device(RANK)
    dist.init_process_group("hccl", init_method=os.environ["INIT_METHOD"], rank=RANK, world_size=RANKS,
                            timeout=datetime.timedelta(seconds=60))
    yield torch.device("npu", RANK)
    dist.destroy_process_group()


def full(value, device, size=2, **options):
    return torch.full((size,), value, device=device, **options)


def test_backend(device):
    """The group runs on hccl, which PyTorch knows by that name."""
    assert dist.get_backend() == "hccl" and dist.is_hccl_available()


def test_all_reduce(device):
    """Sum, mean and maximum over the ranks, also asynchronously and in half precision."""
    for op, expected in ((dist.ReduceOp.SUM, 3.0), (dist.ReduceOp.AVG, 1.5), (dist.ReduceOp.MAX, 2.0)):
        t = full(RANK + 1.0, device)
        dist.all_reduce(t, op=op, async_op=True).wait()
        assert t.tolist() == [expected] * 2 and t.device == device
    for half in (torch.float16, torch.bfloat16):
        t = full(1.0, device, dtype=half)
        dist.all_reduce(t)
        assert t.tolist() == [2, 2]


def test_one_to_all_and_back(device):
    """broadcast, reduce, gather, scatter and barriers."""
    t = full(float(RANK), device)
    dist.broadcast(t, 1)
    assert t.tolist() == [1, 1]
    t = full(RANK + 1.0, device)
    dist.reduce(t, 0)
    assert RANK == 1 or t.tolist() == [3, 3]
    parts = [full(0.0, device) for _ in range(RANKS)]
    dist.gather(full(float(RANK), device), parts if RANK == 0 else None, 0)
    assert RANK == 1 or [p[0].item() for p in parts] == [0, 1]
    t = full(0.0, device)
    dist.scatter(t, [full(float(r), device) for r in range(RANKS)] if RANK == 0 else None, 0)
    assert t.tolist() == [RANK, RANK]
    dist.barrier()
    dist.barrier(device_ids=[RANK])


def test_all_gather(device):
    """All forms of all_gather, and of reduce_scatter."""
    parts = [full(-1.0, device) for _ in range(RANKS)]
    dist.all_gather(parts, full(float(RANK), device))
    assert [p.tolist() for p in parts] == [[0, 0], [1, 1]]
    joined = full(-1.0, device, 4)
    dist.all_gather_into_tensor(joined, full(float(RANK), device))
    assert joined.tolist() == [0, 0, 1, 1]
    one = full(0.0, device, 1)
    dist.reduce_scatter_tensor(one, torch.tensor([1.0, 2.0], device=device))
    assert one.item() == 2 * (RANK + 1)


def test_between_two_ranks(device):
    """send, recv and all_to_all_single."""
    t = full(5.0, device)
    if RANK == 0:
        dist.send(t, 1)
    else:
        dist.recv(t.zero_(), 0)
        assert t.tolist() == [5, 5]
    received = full(-1.0, device)
    dist.all_to_all_single(received, full(float(RANK), device))
    assert received.tolist() == [0, 1]


def test_objects(device):
    """Python objects, which travel as tensors of the device."""
    gathered, sent = [None] * RANKS, [RANK]
    dist.all_gather_object(gathered, {"rank": RANK})
    dist.broadcast_object_list(sent, 0)
    assert gathered == [{"rank": 0}, {"rank": 1}] and sent == [0]


def test_groups(device):
    """Further groups on hccl, with its options, and on gloo for host tensors."""
    t, host = full(1.0, device), torch.ones(1)
    options = sys.modules["torch_npu"]._C._distributed_c10d.ProcessGroupHCCL.Options()
    dist.all_reduce(t, group=dist.new_group([0, 1], pg_options=options))
    dist.all_reduce(host, group=dist.new_group(backend="gloo"))
    assert t.tolist() == [2, 2] and host.item() == 2


def test_refusals(device):
    """Host tensors, nccl, float64 sums and tensors with gaps are refused."""
    with pytest.raises(RuntimeError, match="No backend type associated with device type cpu"):
        dist.all_reduce(torch.ones(2))
    with pytest.raises(RuntimeError, match="NCCL"):
        dist.new_group(backend="nccl")
    with pytest.raises(RuntimeError, match="float64"):
        dist.all_reduce(torch.ones(2, dtype=torch.float64).to(device))
    with pytest.raises((RuntimeError, ValueError), match="contiguous"):
        dist.all_reduce(torch.ones(4, 4, device=device)[:, ::2])


def shard():
    torch.manual_seed(1)
    images, labels = torch.randn(8, 3, 16, 16), torch.randint(0, 10, (8,))
    return images[RANK::RANKS], labels[RANK::RANKS]


def train(device, amp=False, hook=None, steps=3, **options):
    """Trains a model of random, different weights per rank with DDP; returns it."""
    torch.manual_seed(RANK)
    model = DistributedDataParallel(Net().to(device), device_ids=[RANK], **options)
    if hook is not None:
        model.register_comm_hook(None, hook)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("npu", enabled=amp, init_scale=1024.0)
    images, labels = (t.to(device) for t in shard())
    for _ in range(steps):
        with torch.autocast("npu", dtype=torch.float16, enabled=amp):
            loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    return model


def compress(state, bucket):
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

    return fp16_compress_hook(state, bucket)


@pytest.mark.parametrize("options", [{}, {"gradient_as_bucket_view": True}, {"find_unused_parameters": True},
                                     {"amp": True}, {"hook": compress}], ids=str)
def test_ddp(device, options):
    """DDP keeps the ranks' weights equal and on their devices, in each of its modes."""
    model = train(device, **options)
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    others = [torch.empty_like(weights) for _ in range(RANKS)]
    dist.all_gather(others, weights)
    assert torch.equal(others[0], others[1]) and weights.device == device and weights.isfinite().all()


def test_ddp_averages_gradients(device):
    """The gradients are those of the joint batch."""
    x, layers = torch.arange(12.0).view(4, 3), []
    for _ in range(2):
        torch.manual_seed(0)
        layers.append(nn.Linear(3, 2))
    model = DistributedDataParallel(layers[0].to(device), device_ids=[RANK])
    model(x[RANK::RANKS].to(device)).pow(2).mean().backward()
    layers[1](x).pow(2).mean().backward()
    assert torch.allclose(layers[0].weight.grad.cpu(), layers[1].weight.grad, rtol=1e-5)


def test_no_sync(device):
    """Gradients stay the rank's own under no_sync, for accumulation over steps."""
    model = DistributedDataParallel(nn.Linear(2, 2).to(device), device_ids=[RANK])
    with model.no_sync():
        model(full(RANK + 1.0, device).view(1, 2)).sum().backward()
    assert model.module.weight.grad[0].tolist() == [RANK + 1.0] * 2


def test_sync_batch_norm(device):
    """SyncBatchNorm over two ranks is BatchNorm on the joint batch: outputs, gradients and running statistics."""
    torch.manual_seed(0)
    x, grad = torch.randn(8, 3, 4, 4), torch.randn(8, 3, 4, 4)
    reference, mine = nn.BatchNorm2d(3), slice(4 * RANK, 4 * RANK + 4)
    expected = x.clone().requires_grad_()
    reference(expected).backward(grad)
    layer = nn.SyncBatchNorm.convert_sync_batchnorm(nn.BatchNorm2d(3)).to(device)
    got = x[mine].to(device).requires_grad_()
    model = DistributedDataParallel(layer, device_ids=[RANK])
    model(got).backward(grad[mine].to(device))
    pairs = ((got.grad, expected.grad[mine]), (layer.running_mean, reference.running_mean),
             (layer.running_var, reference.running_var), (layer.weight.grad * RANKS, reference.weight.grad))
    for a, b in pairs:
        torch.testing.assert_close(a.cpu(), b, rtol=1e-4, atol=1e-5)


def test_sharded_optimizer(device):
    """ZeroRedundancyOptimizer steps."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = DistributedDataParallel(nn.Linear(3, 3).to(device), device_ids=[RANK])
    before = model.module.weight.detach().clone()
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=0.1)
    model(torch.ones(2, 3, device=device)).sum().backward()
    optimizer.step()
    assert torch.allclose(model.module.weight, before - 0.2)


def test_fsdp(device):
    """FSDP2 shards, gathers and steps."""
    from torch.distributed.fsdp import fully_shard

    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).to(device)
    fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(torch.ones(2, 8, device=device)).sum().backward()
    optimizer.step()
    assert all(p.to_local().is_npu and p.to_local().isfinite().all() for p in model.parameters())
