"""On the path of a training, this lets it train in evaluation mode: no statistics of a batch, no dropout, so that an update is the
same however its images are divided among ranks."""
import torch

_train = torch.nn.Module.train
torch.nn.Module.train = lambda self, mode=True: _train(self, False)
