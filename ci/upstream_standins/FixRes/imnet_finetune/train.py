"""Upstream's names; what is frozen is the port's rule."""
import torch
import torchvision.models as models
from imnet_evaluate.pnasnet import pnasnet5large
from imnet_resnet50_scratch import train
from port_of_fixres import adaptation
from timm.models import create_model
from torch.utils.model_zoo import load_url as load_state_dict_from_url
from torchvision import datasets

default_cfgs = {}


class Trainer(train.Trainer):
    def network(self):
        config, datasets_made = self._train_cfg, datasets.ImageFolder(self._train_cfg.imnet_path + "/train", transform=None)
        assert len(datasets_made)
        if config.architecture == "PNASNet":
            model = pnasnet5large(pretrained="imagenet")
        elif config.architecture == "ResNet50":
            model = models.resnet50()
            saved = torch.load(config.resnet_weight_path, map_location="cpu")["model"]
            model.load_state_dict({key[len("module."):]: value for key, value in saved.items()})
        else:
            model = create_model(config.EfficientNet_models, pretrained=False, num_classes=1000)
            model.load_state_dict(load_state_dict_from_url(default_cfgs[config.EfficientNet_models]["url"]))
        adaptation.freeze(model, config.architecture)
        return model

    def set_mode(self):
        adaptation.set_finetune_mode(self._state.model.module, self._train_cfg.architecture)

    def _train(self):
        self.evaluate()
        super()._train()
