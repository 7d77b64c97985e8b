"""What a network says of each validation picture, for the page of a run (tools/runs.py page): --predictions."""
import os

import numpy as np
import torch

from common import cli, distributed, folders, outputs

_TOP = 5


class Predictions(object):
    """The answers of an evaluation. `path`: predictions.npz of this process's run, or None (records.start says it).

    The file holds of each of the n pictures that could be read `index` (its place in the data set), `target`, `loss` (cross-entropy),
    `classes` (n, 5), the likeliest first, and their probabilities `shares`, 0 where there are no five; of a data set in folders also
    the `names` of its classes and its `root`.
    """

    path = None

    def __init__(self):
        self._rows = []

    def add(self, output, target):
        """Note a batch: `output` (N, classes), `target` (N,), both on the device."""
        logs, column = torch.log_softmax(output.float(), 1), target.view(-1, 1)
        shares, classes = torch.nn.functional.pad(logs, (0, _TOP), value=-float("inf")).topk(_TOP, dim=1)
        self._rows.append(torch.cat([column.float() + 1, -logs.gather(1, column), classes.float(), shares.exp()], 1))

    def write(self, batches, rank):
        """Write what all ranks have noted of their parts of the loading.DeviceBatches `batches`; every rank calls."""
        sampler, dataset = batches.source.batch_sampler, getattr(batches.source, "dataset", None)
        read = [index for keys in sampler for _, index in keys  # DeviceBatches says which were not
                if not any(bad.startswith(folders.shown(dataset.path(index)) + " (") for bad in batches.bad_images)]
        table = np.zeros((sampler.images, 2 + 2 * _TOP))
        table[read] = torch.cat(self._rows).cpu().numpy() if read else 0
        table = np.reshape(distributed.sum_over_ranks(table.ravel().tolist(), rank), table.shape)
        if rank.is_main:
            index = np.flatnonzero(table[:, 0])
            target, loss, likely = table[index, 0] - 1, table[index, 1], table[index, 2:]
            with outputs.writing(self.path), cli.new_file(self.path + ".part") as stream:
                np.savez_compressed(stream, index=index.astype(np.int32), target=target.astype(np.int32), loss=loss.astype(np.float32),
                                    classes=likely[:, :_TOP].astype(np.int32), shares=likely[:, _TOP:].astype(np.float32),
                                    names=np.array(getattr(dataset, "classes", []), str), root=getattr(dataset, "root", ""))
            os.replace(self.path + ".part", self.path)
