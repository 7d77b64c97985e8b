"""torch.npu.FloatTensor and kin: makers of tensors on the current NPU, and names of types, as torch.FloatTensor is on the CPU."""

import torch


class _TensorType(type):
    """Types whose instances are the NPU tensors of one dtype. Calling one takes sizes, a sequence of numbers, or nothing."""

    def __call__(cls, *arguments):
        if len(arguments) == 1 and not isinstance(arguments[0], (int, torch.Size)):
            return torch.as_tensor(arguments[0], dtype=cls.dtype).npu()
        return torch.empty(*arguments or (0,), dtype=cls.dtype, device="npu")

    def __instancecheck__(cls, value):
        return isinstance(value, torch.Tensor) and value.is_npu and value.dtype == cls.dtype


_DTYPES = {"Bool": torch.bool, "Byte": torch.uint8, "Char": torch.int8, "Double": torch.float64, "Float": torch.float32,
           "Half": torch.float16, "Int": torch.int32, "Long": torch.int64, "Short": torch.int16, "BFloat16": torch.bfloat16}


def install(npu):
    """Gives the module torch.npu the types. Their full name is what tensor.type() returns, and takes."""
    for name, dtype in _DTYPES.items():
        setattr(npu, name + "Tensor", _TensorType(f"torch.npu.{name}Tensor", (), {"dtype": dtype}))
