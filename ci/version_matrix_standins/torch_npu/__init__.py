"""The plug-in of PyTorch 1.8 and later: importing it brings torch.npu."""
import npu_stand_in

npu_stand_in.note("import torch_npu")
npu_stand_in.install_npu()
