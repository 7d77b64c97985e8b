"""The device's private formats, by name only: a tensor here is always in the one that its PyTorch layout has there."""

import enum


class Format(enum.IntEnum):
    UNDEFINED = -1
    NCHW = 0
    NHWC = 1
    ND = 2
    NC1HWC0 = 3
    FRACTAL_Z = 4
    NC1HWC0_C04 = 12
    HWCN = 16
    NDHWC = 27
    FRACTAL_NZ = 29
    NCDHW = 30
    NDC1HWC0 = 32
    FRACTAL_Z_3D = 33
    NC = 35
    NCL = 47
    FRACTAL_NZ_C0_16 = 50
    FRACTAL_NZ_C0_32 = 51
    FRACTAL_NZ_C0_2 = 52
    FRACTAL_NZ_C0_4 = 53
    FRACTAL_NZ_C0_8 = 54

    def __str__(self):
        return self.name


def get_npu_format(tensor):
    _check(tensor)
    return {4: Format.NCHW, 5: Format.NCDHW}.get(tensor.dim(), Format.ND)


def npu_format_cast(tensor, acl_format):
    """The tensor itself. `acl_format`: a Format, its number, or a tensor whose format is meant."""
    _check(tensor)
    if not hasattr(acl_format, "is_npu"):
        Format(acl_format)  # raises where there is no such format
    return tensor


def npu_format_cast_(tensor, acl_format):
    return npu_format_cast(tensor, acl_format)


def _check(tensor):
    if not tensor.is_npu:
        raise RuntimeError(f"Expected all tensors to be on the same device. Expected NPU tensor, but found {tensor.device}")
