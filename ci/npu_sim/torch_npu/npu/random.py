"""Random numbers of torch.npu: one generator per device. Reproducible, but not the real device's numbers."""

import torch

from torch_npu import _C


def _current_generator():
    return torch.npu.default_generators[_C._npu_getDevice()]


def manual_seed(seed):
    if torch.npu.default_generators:  # without an NPU there is nothing to seed, as on the device
        _current_generator().manual_seed(int(seed))


def manual_seed_all(seed):
    for generator in torch.npu.default_generators:
        generator.manual_seed(int(seed))


def seed():
    if torch.npu.default_generators:
        _current_generator().seed()


def seed_all():
    seed()
    manual_seed_all(initial_seed())


def initial_seed():
    torch.npu._lazy_init()
    return _current_generator().initial_seed()


def get_rng_state(device="npu"):
    return torch.npu.default_generators[torch.npu._get_device_index(device)].get_state()


def set_rng_state(new_state, device="npu"):
    torch.npu.default_generators[torch.npu._get_device_index(device)].set_state(new_state)


def get_rng_state_all():
    return [generator.get_state() for generator in torch.npu.default_generators]


def set_rng_state_all(new_states):
    for index, state in enumerate(new_states):
        set_rng_state(state, index)
