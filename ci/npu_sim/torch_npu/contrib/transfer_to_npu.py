"""Not simulated: it rewrites torch.cuda calls at run time and would hide the very mistakes the simulator is there for."""

raise ImportError("torch_npu.contrib.transfer_to_npu is not simulated: write the NPU code out (see ci/npu_sim/README.md)")
