def accuracy(output, target, topk=(1,)):
    right = output.topk(max(topk), 1)[1].t().eq(target.view(1, -1))
    return [right[:k].view(-1).float().sum(0, keepdim=True) * 100.0 / len(target) for k in topk]
