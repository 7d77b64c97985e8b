"""timm's training loop: its folders, loader with prefetcher, Mixup, optimizer, schedule, scaler, moving average and checkpoints.

usage: timm_train.py FOLDER resnet10t|test_vit [float32|float16|bfloat16]   (FOLDER/train and FOLDER/val hold class folders)
"""
import json
import sys

import timm
import timm.data
import timm.loss
import timm.optim
import timm.scheduler
import timm.utils
import torch

EPOCHS, CLASSES, DEVICE = 4, 4, torch.device("npu")
OPTIMIZERS = {"resnet10t": {"opt": "sgd", "lr": 0.02}, "test_vit": {"opt": "adamw", "lr": 1e-3}}


def loader(folder, split, training, config):
    """A loader of images on the device, with timm's augmentation where it trains."""
    dataset = timm.data.create_dataset("", root=folder + "/" + split, split=split)
    mixup = timm.data.FastCollateMixup(mixup_alpha=0.1, cutmix_alpha=0.1, num_classes=CLASSES) if training else None
    extra = dict(auto_augment="rand-m5-mstd0.5", re_prob=0.2, collate_fn=mixup) if training else {}
    return timm.data.create_loader(dataset, config["input_size"], 8, is_training=training, mean=config["mean"], std=config["std"],
                                   num_workers=2, device=DEVICE, pin_memory=True, **extra)


def train(model, ema, batches, optimizer, scaler, loss_of, autocast):
    """One epoch; return its mean loss."""
    losses = timm.utils.AverageMeter()
    model.train()
    for images, target in batches:
        with autocast():
            loss = loss_of(model(images), target)
        optimizer.zero_grad()
        if scaler:
            scaler(loss, optimizer, clip_grad=1.0, parameters=timm.models.model_parameters(model))
        else:
            loss.backward()
            timm.utils.dispatch_clip_grad(timm.models.model_parameters(model), 1.0)
            optimizer.step()
        torch.npu.synchronize()
        ema.update(model)
        losses.update(loss.item(), images.size(0))
    return losses.avg


@torch.no_grad()
def validate(model, batches, autocast):
    """The top-1 accuracy in percent."""
    top1 = timm.utils.AverageMeter()
    model.eval()
    for images, target in batches:
        with autocast():
            output = model(images)
        top1.update(timm.utils.accuracy(output, target, topk=(1, 2))[0].item(), images.size(0))
    return top1.avg


def main(folder, name, dtype="float32"):
    """Train; return the losses of the epochs and the accuracy of the moving average."""
    timm.utils.random_seed(0, 0)
    model = timm.create_model(name, num_classes=CLASSES, drop_path_rate=0.05).to(DEVICE)
    config = timm.data.resolve_data_config({"input_size": (3, 64, 64)}, model=model)
    ema = timm.utils.ModelEmaV3(model, decay=0.5)
    optimizer = timm.optim.create_optimizer_v2(model, weight_decay=1e-4, **OPTIMIZERS[name])
    schedule, _ = timm.scheduler.create_scheduler_v2(optimizer, sched="cosine", num_epochs=EPOCHS, warmup_epochs=1)
    scaler = timm.utils.NativeScaler(device=DEVICE.type) if dtype == "float16" else None

    def autocast():
        return torch.autocast(DEVICE.type, getattr(torch, dtype), enabled=dtype != "float32")

    batches = {split: loader(folder, split, split == "train", config) for split in ("train", "val")}
    saver = timm.utils.CheckpointSaver(model, optimizer, model_ema=ema, amp_scaler=scaler, checkpoint_dir=folder,
                                       recovery_dir=folder)
    loss_of = timm.loss.SoftTargetCrossEntropy().to(DEVICE)
    losses, accuracy = [], 0
    for epoch in range(EPOCHS):
        losses.append(train(model, ema, batches["train"], optimizer, scaler, loss_of, autocast))
        accuracy = validate(ema.module, batches["val"], autocast)
        schedule.step(epoch + 1, accuracy)
        saver.save_checkpoint(epoch, metric=accuracy)
    timm.models.load_checkpoint(model, folder + "/last.pth.tar", use_ema=True)
    assert validate(model, batches["val"], autocast) == accuracy, "the checkpoint's moving average is another one"
    return losses, accuracy


if __name__ == "__main__":
    losses, accuracy = main(*sys.argv[1:])
    print("result", json.dumps({"losses": losses, "accuracy": accuracy}))
