"""The plug-in of PyTorch 1.8 and later: importing it brings torch.npu."""
import sitecustomize

sitecustomize.note("import torch_npu")
sitecustomize.install_npu()
