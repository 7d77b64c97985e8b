"""SGD, and its learning rate."""
import inspect

import torch

# What a parameter group says of how the update is computed, where PyTorch knows it.
_HOW = ("foreach", "fused")


class SGD(torch.optim.SGD):
    """torch.optim.SGD that computes as suits this process, whatever a checkpoint says of the one that wrote it. A GPU or an NPU gets
    one operator for many tensors, by PyTorch's own choice (foreach)."""

    def fuse(self):
        """Do the whole update in one operator, where PyTorch has it. It looks at a dynamic loss scale's flag of overflow by itself, so
        that the host need not wait for it; its last bits are its own."""
        if "fused" in inspect.signature(torch.optim.SGD.__init__).parameters:
            self._step_supports_amp_scaling = True  # tells GradScaler
            for group in self.param_groups:
                group["fused"] = True
            self._begin_momentum()

    def _begin_momentum(self):
        # The operator leaves out a step whose gradients overflow, and a dynamic scale's first ones do. PyTorch would by then have given
        # it memory of any content for the momentum, and have it go on from that.
        for group in self.param_groups:
            for parameter in group["params"] if group.get("fused") and group["momentum"] else ():
                if self.state[parameter].get("momentum_buffer") is None:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    def load_state_dict(self, state_dict):
        """Restore what `state_dict` returned, but for how it computes."""
        own = [{key: group[key] for key in _HOW if key in group} for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, choice in zip(self.param_groups, own):
            for key in _HOW:
                group.pop(key, None)
            group.update(choice)
        self._begin_momentum()


def set_rate(optimizer, rate):
    """Give every parameter group the learning rate `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate
