"""apex.amp's documented calls, in fp32: https://nvidia.github.io/apex/amp.html, and Ascend's combine_grad."""
import contextlib
from collections import OrderedDict

import torch
from npu_stand_in import note

_scale = []  # of `initialize`


def initialize(models, optimizers=None, enabled=True, opt_level="O1", cast_model_type=None, patch_torch_functions=None,
               keep_batchnorm_fp32=None, master_weights=None, loss_scale=None, cast_model_outputs=None, num_losses=1, verbosity=1,
               min_loss_scale=None, max_loss_scale=2.0 ** 24, combine_grad=None):
    if opt_level not in ("O0", "O1", "O2", "O3"):
        raise RuntimeError("Unexpected optimization level %s" % opt_level)
    if isinstance(models, torch.nn.parallel.DistributedDataParallel):
        raise RuntimeError("Incoming model is an instance of DistributedDataParallel: call initialize before")
    if optimizers is not None and not isinstance(optimizers, torch.optim.Optimizer):
        raise TypeError("optimizers is no torch.optim.Optimizer")
    _scale[:] = [65536.0 if loss_scale in (None, "dynamic") else float(loss_scale)]
    note("amp.initialize", opt_level, loss_scale, "training" if optimizers else "evaluation")
    return models if optimizers is None else (models, optimizers)


@contextlib.contextmanager
def scale_loss(loss, optimizers, loss_id=0, model=None, delay_unscale=False, delay_overflow_check=False):
    if not _scale:
        raise RuntimeError("Invoked 'with amp.scale_loss', but internal Amp state has not been initialized.")
    yield loss.float() * _scale[0]
    note("amp.scale_loss")
    for parameter in master_params(optimizers):
        if parameter.grad is not None:
            parameter.grad.div_(_scale[0])


def master_params(optimizer):
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield parameter


def state_dict(destination=None):
    destination = OrderedDict() if destination is None else destination
    destination["loss_scaler0"] = {"loss_scale": _scale[0], "unskipped": 0}
    return destination


def load_state_dict(state_dict):
    note("amp.load_state_dict", state_dict["loss_scaler0"]["loss_scale"])
    _scale[:] = [state_dict["loss_scaler0"]["loss_scale"]]
