// What the translation units of the simulated NPU share.
//
// The device is PyTorch's PrivateUse1 slot under the name "npu"; its memory is host memory, and every operator
// runs the CPU kernel on host tensors that alias the NPU tensors' memory (fallback.cpp).
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <c10/core/Device.h>
#include <c10/core/Storage.h>

#include <cstdint>
#include <map>
#include <string>

namespace npu_sim {

constexpr c10::DeviceType kNPU = c10::DeviceType::PrivateUse1;
constexpr int kMaxDevices = 16;

// ---- runtime.cpp: devices, memory, generators --------------------------------------------------------------------

struct Settings {
  int device_count = 0;      // devices that the process sees; 0 until configure()
  int64_t memory_bytes = 0;  // per device
  bool strict = false;       // refuse what a real device would let pass in silence
};
Settings& settings();

c10::DeviceIndex current_device();
void set_current_device(int64_t index);  // raises when out of range
void check_index(int64_t index);

// Called before anything that a real driver would do. Raises in a forked child of a process that has used the NPU.
void enter_driver();
bool driver_entered_by_this_process();

struct MemoryUse {
  int64_t allocated, peak, allocations;
};
MemoryUse memory_use(c10::DeviceIndex device);
void reset_peak_memory(c10::DeviceIndex device);

// NPU storage of `bytes` uninitialised bytes. Raises OutOfMemoryError beyond the device's memory.
c10::Storage new_storage(size_t bytes, c10::DeviceIndex device);
// NPU storage that takes over the memory of a host storage; the host storage keeps a non-owning pointer.
c10::DataPtr take_over(c10::StorageImpl* host, c10::DeviceIndex device);
c10::Allocator* allocator();

at::Generator& default_generator(c10::DeviceIndex device);
// The CPU generator that an NPU generator draws from.
at::Generator host_generator(const at::Generator& npu);

// ---- fallback.cpp: every operator --------------------------------------------------------------------------------

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack);
// Calls so far by operator name ("aten::add_.Tensor"); copies and allocations are not operators here.
std::map<std::string, int64_t> op_counts();

// A tensor over `storage` with the sizes, strides, offset, dtype and conjugate/negative bits of `like`.
at::Tensor tensor_over(c10::Storage storage, const at::Tensor& like, c10::DispatchKeySet keys);
// A CPU tensor over the memory of an NPU tensor, which it keeps alive. Other tensors are returned as they are.
at::Tensor host_view(const at::Tensor& tensor);
inline bool same_geometry(const at::Tensor& a, const at::Tensor& b) {
  return a.sizes() == b.sizes() && a.strides() == b.strides() && a.storage_offset() == b.storage_offset();
}

// ---- half.cpp: fp16 and bf16 in float32 --------------------------------------------------------------------------

// Whether the CPU's fp16 and bf16 kernels of an operator ("aten::mm") are so slow that float32 with casts is faster.
bool slow_in_half(const std::string& name);
// Runs a call on host tensors: in float32 with rounded results where all its tensors are of one half dtype.
void run_in_float(const c10::OperatorHandle& op, torch::jit::Stack* stack);

} // namespace npu_sim
