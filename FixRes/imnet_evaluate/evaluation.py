"""Accuracy of given weights over the whole validation set."""
import torch.nn.functional as functional

from common import evaluation, network, precision, records
from common.progress import Learner
from imnet_common import batches, networks, transforms, weights


def evaluate_weights(args, rank):
    """What each rank does. Raises UserError for weights or images that do not fit the network."""
    model = networks.build(args.architecture, args.num_classes, args.EfficientNet_models)
    rank.print(weights.load(model, args.pth_path, args.use_ema))
    network.place(model, rank.device)
    model, _, amp = precision.initialize(model, None, args.opt_level, None, rank.device, args.amp_dtype)
    rank.print(amp.note)
    transform = transforms.eval_pipeline(args.input_size, args.resize == "short-side")
    val_batches = batches.validation(args, rank, transform, networks.RECIPES[args.architecture])
    recorder = records.start(args.metrics_file, rank, args, amp)
    rank.print("%s: test size %d, global batch %d" % (args.architecture, args.input_size, args.batch * rank.world_size))
    result = evaluation.evaluate(val_batches, Learner(model, functional.cross_entropy, None, amp), rank)
    recorder.evaluation(result, val_batches.count_bad(rank))
    rank.print(str({"val_top1": result.top1, "val_top5": result.top5}),
               "Validation accuracy: (%.5f, %.5f)" % (result.top1, result.top5))
