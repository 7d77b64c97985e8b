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
#include <torch/version.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <string>

// Whether PyTorch is 2.MINOR or newer.
#define NPU_SIM_TORCH(MINOR) (TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= MINOR)

namespace npu_sim {

constexpr c10::DeviceType kNPU = c10::DeviceType::PrivateUse1;
constexpr int kMaxDevices = 16;

// ---- runtime.cpp: devices, memory, generators --------------------------------------------------------------------

struct Settings {
  int device_count = 0;      // devices that the process sees; 0 until configure()
  int64_t memory_bytes = 0;  // per device
  std::string strict = "allow";  // "error", "warn": what happens to what a real device would let pass in silence
};
Settings& settings();

c10::DeviceIndex current_device();
c10::StreamId current_stream(c10::DeviceIndex device);  // of this thread
c10::StreamId exchange_current_stream(c10::DeviceIndex device, c10::StreamId stream);
c10::StreamId new_stream();
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
int64_t take_step_peak(c10::DeviceIndex device);  // the peak since it was last taken

// One number of the allocator: now, at most, and all that was ever added and taken away.
struct MemoryFigure {
  int64_t current = 0, peak = 0, allocated = 0, freed = 0;
  void add(int64_t amount) {
    current += amount;
    (amount > 0 ? allocated : freed) += amount > 0 ? amount : -amount;
    if (current > peak) peak = current;
  }
};
// By pool: all blocks, those of 1 MiB and more, smaller ones.
struct MemoryStats {
  MemoryFigure blocks[3], bytes[3];
  int64_t ooms = 0;
};
MemoryStats memory_stats(c10::DeviceIndex device);
void reset_accumulated_memory(c10::DeviceIndex device);

// NPU storage of `bytes` uninitialised bytes. Raises OutOfMemoryError beyond the device's memory.
c10::Storage new_storage(size_t bytes, c10::DeviceIndex device);
// NPU storage that takes over the memory of a host storage; the host storage keeps a non-owning pointer.
c10::DataPtr take_over(c10::StorageImpl* host, c10::DeviceIndex device);
c10::Allocator* allocator();
bool is_pinned(const at::Tensor& host);

at::Generator& default_generator(c10::DeviceIndex device);
// The CPU generator that an NPU generator draws from.
at::Generator host_generator(const at::Generator& npu);

enum Phase { kForward, kBackward, kOptimizer, kOther, kPhases };  // of training

// ---- fallback.cpp: every operator --------------------------------------------------------------------------------

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack);
// Calls so far by operator name ("aten::add_.Tensor") and phase; copies and allocations are not operators here.
std::map<std::string, std::array<int64_t, kPhases>> op_counts();

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

// ---- clock.cpp: time ---------------------------------------------------------------------------------------------

using Ns = int64_t;  // nanoseconds since the process began; the time in which the host computes for the device is left out
constexpr Ns kForever = Ns(1) << 62;

void configure_clock(bool on, std::map<std::string, double> table);
bool clock_is_on();
Ns host_time();
Ns frozen_time();  // how long the clock has stood still

void stop_clock();
void start_clock();
struct ClockStopped {  // while the host computes in the device's stead
  ClockStopped() { if (clock_is_on()) stop_clock(); }
  ~ClockStopped() { if (clock_is_on()) start_clock(); }
  ClockStopped(const ClockStopped&) = delete;
};

Ns stream_time(c10::DeviceIndex device, c10::StreamId stream);  // when its work will be done; now, where it is
Ns device_time(c10::DeviceIndex device);                        // when all work that was launched will be done
Ns busy_time(c10::DeviceIndex device);                          // sum of the durations of what was launched
void stream_waits(c10::DeviceIndex device, c10::StreamId stream, Ns until);
void launch(c10::DeviceIndex device, c10::StreamId stream, Ns duration);
bool is_hung(c10::DeviceIndex device);
void hang(c10::DeviceIndex device);  // nothing that is on the device or comes to it will ever be done

// The host waits: counts it, and sleeps until the time has come.
void wait_until(const char* reason, Ns end);
void wait_for_stream(const char* reason, c10::DeviceIndex device, c10::StreamId stream);
void wait_for_device(const char* reason, c10::DeviceIndex device);

Ns copy_duration(int64_t bytes, const char* rate);  // rate: the entry of the table for this direction
Ns collective_duration(int64_t bytes);
double named_duration(const std::string& operator_name);  // microseconds that the table gives this operator, or -1
Ns operator_duration(double named_us, double flops, double bytes);

// ---- faults.cpp --------------------------------------------------------------------------------------------------

struct Faults {
  std::atomic<bool> out_of_memory{false};  // of the next allocation
  std::atomic<bool> overflow{false};       // of the next result in half precision of a backward pass
  std::atomic<bool> absent{false};         // this rank does not come to the next collective
  bool saturate = false;                   // the mode of fp16, see faults.cpp
  std::atomic<bool> overflowed[kMaxDevices] = {};
};
Faults& faults();
// For each result of an operator in which it may have made infinity or NaN.
void check_overflow(const at::Tensor& result);
inline bool overflow_matters() {
  return faults().saturate || faults().overflow;
}

// ---- report.cpp: counts ------------------------------------------------------------------------------------------

Phase current_phase();

struct Counters {
  std::atomic<int64_t> operators{0}, waits{0}, waited_ns{0}, pageable_copies{0}, to_device_bytes{0}, to_host_bytes{0};
};
Counters& counters();
void count_wait(const char* reason, Ns sleeps);

} // namespace npu_sim
