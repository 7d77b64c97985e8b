"""transformers' Trainer with a tiny ViT or ResNet of random weights: training with evaluation, saving, and a resumed training.

usage: transformers_trainer.py vit|resnet FOLDER [ARGUMENT OF TrainingArguments=VALUE ...]
"""
import json
import sys

import numpy as np
import torch
import transformers

CLASSES = 4


def network(kind):
    """A network of a few thousand parameters, from its configuration: nothing is downloaded."""
    labels = dict(num_labels=CLASSES)
    if kind == "vit":
        config = transformers.ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
                                        image_size=32, patch_size=8, **labels)
        return transformers.ViTForImageClassification(config)
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **labels)
    return transformers.ResNetForImageClassification(config)


class Pictures(torch.utils.data.Dataset):
    """Noisy pictures whose colour is their class."""

    def __init__(self, length, seed):
        draw = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(length) % CLASSES
        self.pixels = torch.randn(length, 3, 32, 32, generator=draw) + 2 * torch.eye(CLASSES, 3)[self.labels, :, None, None]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"pixel_values": self.pixels[index], "labels": self.labels[index]}


def accuracy(prediction):
    """Trainer's measure after an evaluation."""
    return {"accuracy": float((np.argmax(prediction.predictions, axis=-1) == prediction.label_ids).mean())}


def main(kind, folder, *extra):
    """Train 2 epochs, then to 4 from the checkpoint; return Trainer's logs and figures."""
    transformers.set_seed(0)
    found = {}
    for epochs in (2, 4):
        more = {name: json.loads(value) for name, value in (argument.split("=", 1) for argument in extra)}
        arguments = transformers.TrainingArguments(
            output_dir=folder, num_train_epochs=epochs, per_device_train_batch_size=8, learning_rate=3e-3, eval_strategy="epoch",
            save_strategy="epoch", logging_steps=1, report_to=[], disable_tqdm=True, dataloader_num_workers=2, **more)
        trainer = transformers.Trainer(network(kind), arguments, train_dataset=Pictures(64, 0), eval_dataset=Pictures(32, 1),
                                       compute_metrics=accuracy)
        trainer.train(resume_from_checkpoint=epochs == 4)
        found = {"device": str(trainer.args.device), "steps": trainer.state.global_step,
                 "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
                 "accuracy": trainer.evaluate()["eval_accuracy"],
                 "weights": sorted({str(weight.device) for weight in trainer.model.parameters()})}
    return found, trainer.is_world_process_zero()


if __name__ == "__main__":
    result, first = main(*sys.argv[1:])
    if first:
        print("result", json.dumps(result))
