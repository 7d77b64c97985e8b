"""The options of the Ascend compiler: checked as the real package checks them, kept, and without effect."""

_ALLOWED = {
    "ACL_PRECISION_MODE": ("allow_fp32_to_fp16", "must_keep_origin_dtype"),
    "ACL_OP_SELECT_IMPL_MODE": ("high_performance", "high_precision"),
    "ACL_OP_DEBUG_LEVEL": ("0", "1", "2", "3", "4"),
    "ACL_OP_COMPILER_CACHE_MODE": ("disable", "enable", "force"),
}
_options = {"jitCompile": "enable"}


def set_option(option):
    """Raises TypeError unless `option` is a dict, and ValueError for a value that the named option does not have."""
    if not isinstance(option, dict):
        raise TypeError("npu option must be a dict.")
    for name, value in option.items():
        if name in _ALLOWED and str(value) not in _ALLOWED[name]:
            raise ValueError(f"value of {name} should be in {list(_ALLOWED[name])} but got {value}")
        _options[name] = str(value)


def set_compile_mode(jit_compile=False):
    _options["jitCompile"] = "enable" if jit_compile else "disable"


def is_jit_compile_false():
    return _options["jitCompile"] == "disable"


class _Config:
    """torch.npu.config: allow_internal_format can be set, and nothing can be read, as on the device."""

    def __setattr__(self, name, value):
        if name == "allow_internal_format":
            _options["ALLOW_INTERNAL_FORMAT"] = "enable" if value else "disable"


class _AllowHf32:
    """torch.npu.matmul and torch.npu.conv: allow_hf32, the device's counterpart of TF32."""

    def __init__(self, allowed):
        self.allow_hf32 = allowed

    def __setattr__(self, name, value):
        if name == "allow_hf32" and not isinstance(value, bool):
            raise TypeError(f"allow_hf32 must be a bool, but got {type(value).__name__}")
        super().__setattr__(name, value)
