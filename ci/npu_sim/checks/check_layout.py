"""Memory layouts: the device has no channels_last, and its operators write contiguous results."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torch_npu  # noqa: F401  (registers torch.npu)
from nets import Net
from torch import nn

NPU, LAST = "npu:0", torch.channels_last
CREATING = "Only c10::MemoryFormat::Contiguous is supported for creating a npu tensor"
CASTING = "Only contiguous_format or preserve_format is supported."
GATHERING = "NPU contiguous operator only supported contiguous memory format."
RESIZING = "NPU only support format is contiguous_format or preserve_format."


def image(device=NPU):
    return torch.randn(2, 3, 4, 5, device=device)


REFUSED = {
    "x.to(format)": (lambda: image().to(memory_format=LAST), CASTING),
    "x.to(dtype, format)": (lambda: image().to(torch.half, memory_format=LAST), CASTING),
    "x.to(cpu, format)": (lambda: image().to("cpu", memory_format=LAST), CASTING),
    "x.half(format)": (lambda: image().half(memory_format=LAST), CASTING),
    "x.contiguous(format)": (lambda: image().contiguous(memory_format=LAST), GATHERING),
    "x.contiguous(format), with gradients": (lambda: image().requires_grad_().contiguous(memory_format=LAST), GATHERING),
    "x.contiguous(format) in inference mode": (torch.inference_mode()(lambda: image().contiguous(memory_format=LAST)), GATHERING),
    "3d": (lambda: torch.ones(1, 2, 3, 3, 3, device=NPU).contiguous(memory_format=torch.channels_last_3d), GATHERING),
    "torch.empty": (lambda: torch.empty(2, 3, 4, 4, device=NPU, memory_format=LAST), CREATING),
    "cpu.to(npu, format)": (lambda: image("cpu").to(NPU, memory_format=LAST), CASTING),
    "model.to(format)": (lambda: Net().to(NPU).to(memory_format=LAST), CASTING),
    "model.to(device, format)": (lambda: Net().to(NPU, memory_format=LAST), CASTING),
    "resize_as_": (lambda: image().resize_as_(image(), memory_format=LAST), RESIZING),
}


@pytest.mark.parametrize("name", REFUSED)
def test_channels_last_is_refused(name):
    """channels_last is refused with the device's words, wherever it would have to make a tensor of it."""
    use, message = REFUSED[name]
    with pytest.raises(RuntimeError) as error:
        use()
    assert str(error.value).startswith(message)


def test_channels_last_from_the_host():
    """A tensor that has the layout on the CPU keeps its strides on the way, as PyTorch's own copy does, and results drop them."""
    x = image("cpu").contiguous(memory_format=LAST)
    moved = x.to(NPU)
    assert moved.stride() == x.stride() and torch.equal(moved.cpu(), x)
    assert moved.contiguous(memory_format=LAST) is moved and moved.to(memory_format=LAST) is moved
    for result in (moved + 1, moved.clone(), moved.half(), moved.cpu(), F.max_pool2d(moved, 2), moved.relu(),
                   F.conv2d(moved, torch.ones(4, 3, 1, 1, device=NPU)), moved.clone(memory_format=LAST)):
        assert result.is_contiguous()
    assert torch.empty_like(moved).stride() == x.stride()
    assert torch.empty_like(image(), memory_format=LAST).is_contiguous()  # made contiguous without a word, as on the device


def test_training_in_channels_last_from_the_host():
    """A model that was channels_last on the CPU trains, and its gradients have the strides of its weights."""
    torch.manual_seed(0)
    model = Net().to(memory_format=LAST).to(NPU)
    reference = copy.deepcopy(model).cpu()
    x = image("cpu").repeat(1, 1, 4, 4)
    for net, images in ((model, x.to(NPU)), (reference, x)):
        net(images).square().sum().backward()
    for mine, other in zip(model.parameters(), reference.parameters()):
        torch.testing.assert_close(mine.grad.cpu(), other.grad, rtol=1e-4, atol=1e-4)
        assert mine.grad.stride() == mine.stride()


def test_results_are_contiguous():
    """Operators on transposed tensors give contiguous results: view() works on a comparison, as in upstream's accuracy()."""
    output, target = torch.randn(8, 10, device=NPU), torch.arange(8, device=NPU)
    _, pred = output.topk(5, 1, True, True)
    correct = pred.t().eq(target.view(1, -1).expand_as(pred.t()))
    assert correct[:5].view(-1).float().sum(0).item() == (pred == target[:, None]).sum().item()
    x = torch.randn(3, 4, device=NPU)
    for result in (x.t() + 1, x.t().exp(), x.t() > 0, torch.where(x.t() > 0, x.t(), 0.0), x.t().clone(), x.t().to(torch.half),
                   torch.zeros(4, 3, device=NPU).add(x.t()), x.t().contiguous()):
        assert result.is_contiguous() and result.shape == (4, 3)
    assert torch.equal((x.t() * 2).cpu(), x.cpu().t() * 2) and not x.t().is_contiguous()
    y = x.clone().requires_grad_()
    nn.functional.silu(y.t()).pow(2).contiguous().view(-1).sum().backward()
    host = x.cpu().requires_grad_()
    nn.functional.silu(host.t()).pow(2).sum().backward()
    assert torch.allclose(y.grad.cpu(), host.grad)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"ignore_index": 2}, {"reduction": "none"},
                                     {"label_smoothing": 0.1, "reduction": "sum"}, {"weight": True},
                                     {"weight": True, "label_smoothing": 0.1, "ignore_index": 1}], ids=str)
@pytest.mark.parametrize("spatial", [(), (3, 3)], ids=["classes", "pixels"])
def test_int32_labels(options, spatial):
    """Class numbers may be int32, as many scripts for the device make them: the loss and its gradients are those of int64."""
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 4, *spatial), torch.arange(6).view(6, *[1 for _ in spatial]).expand(6, *spatial) % 4
    results = []
    for dtype, device in ((torch.long, "cpu"), (torch.int32, NPU)):
        chosen = dict(options, **({"weight": torch.arange(1.0, 5, device=device)} if "weight" in options else {}))
        x = logits.to(device).detach().clone().requires_grad_()
        loss = nn.CrossEntropyLoss(**chosen)(x, labels.to(device, dtype))
        loss.sum().backward()
        plain = {key: value for key, value in chosen.items() if key != "label_smoothing"}
        results.append([t.cpu() for t in (loss.detach(), x.grad, F.nll_loss(x.detach(), labels.to(device, dtype), **plain))])
    torch.testing.assert_close(results[0], results[1])
