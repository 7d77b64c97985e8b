def get_error(output, target, topk=(1,)):
    right = output.topk(max(topk), 1)[1].t().eq(target.view(1, -1))
    # Of this slice upstream takes a view, which needs Tensor.view as it was before PyTorch 1.7.
    return [100.0 - 100.0 * right[:k].view(-1).float().mean() * k for k in topk]
