// torch_npu._C: what the Python side of the simulated NPU calls.
#include "npu_sim.h"

#include <ATen/ATen.h>
#include <torch/csrc/Generator.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/utils/pybind.h>

#include <numeric>

namespace py = pybind11;

void bind_hccl(py::module& m);
namespace npu_sim {
void bind_report(py::module& m);
}

// After backward() returns, the autograd thread of a device still releases the finished graph, for which it takes the
// GIL; if the interpreter finalises meanwhile, the process aborts ("terminate called without an active exception").
// Each such thread serves a queue, so one more task that has come through it, of C++ objects only, says it is done.
// The first backward() starts a thread for every device, and does not wait until each has had the GIL: all are asked.
static void drain_autograd_threads() {
  using namespace npu_sim;
  if (!driver_entered_by_this_process()) return;
  bool used = false;
  for (int i = 0; i < settings().device_count; ++i) used = used || memory_use(i).allocations > 0;
  if (!used) return;
  py::gil_scoped_release no_gil;
  at::AutoGradMode grad(true);
  for (int i = 0; i < settings().device_count; ++i) {
    const c10::Device device(kNPU, i);
    const at::Tensor x = at::ones({1}, at::TensorOptions().device(device)).requires_grad_(true);
    torch::autograd::backward({x * 2}, {at::ones({1}, at::TensorOptions().device(device))});
  }
}

static void bind_clock_and_faults(py::module& m) {
  using namespace npu_sim;
  const auto no_gil = py::call_guard<py::gil_scoped_release>();
  m.def("_sim_configure_clock", &configure_clock);
  m.def("_sim_host_time", &host_time);
  m.def("_sim_frozen_time", &frozen_time);
  m.def("_sim_device_time", &device_time);
  m.def("_sim_busy_time", &busy_time);
  m.def("_sim_stream_time", &stream_time);
  m.def("_sim_stream_waits", &stream_waits);
  m.def("_sim_hang", &hang);
  m.def("_sim_run_out_of_memory", [] { faults().out_of_memory = true; });
  m.def("_sim_stay_away", [] { faults().absent = true; });
  m.def("_sim_overflow_once", [] { faults().overflow = true; });
  m.def("_sim_saturate", [] { faults().saturate = true; });
  m.def("_sim_exchange_overflow_flag", [](int device, bool flag) { return faults().overflowed[device].exchange(flag); });
  m.def("_sim_wait_until", &wait_until, no_gil);
  m.def("_sim_wait_for_device", &wait_for_device, no_gil);
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using namespace npu_sim;
  m.def("_sim_configure", [](int device_count, int64_t memory_bytes, const std::string& strict) {
    TORCH_CHECK(device_count >= 0 && device_count <= kMaxDevices, "npu_sim: 0 to ", kMaxDevices, " devices, not ", device_count);
    settings() = {device_count, memory_bytes, strict};
  });
  m.def("_sim_op_counts", [] {  // without phases
    std::map<std::string, int64_t> all;
    for (const auto& [name, calls] : op_counts()) all[name] = std::accumulate(calls.begin(), calls.end(), int64_t(0));
    return all;
  });
  m.def("_sim_op_counts_by_phase", &op_counts);
  m.def("_sim_drain_autograd_threads", &drain_autograd_threads);
  m.def("_sim_memory", [](int device) {
    const MemoryUse use = memory_use(device);
    return py::make_tuple(use.allocated, use.peak, settings().memory_bytes);
  });
  m.def("_sim_reset_peak_memory", &reset_peak_memory);
  m.def("_sim_reset_accumulated_memory", &reset_accumulated_memory);
  m.def("_sim_memory_stats", [](int device) {
    const MemoryStats stats = memory_stats(device);
    const auto by_pool = [](const MemoryFigure* figures) {
      py::dict pools;
      for (int i = 0; i < 3; ++i) {
        using namespace pybind11::literals;
        pools[i == 0 ? "all" : i == 1 ? "large_pool" : "small_pool"] = py::dict("current"_a = figures[i].current,
            "peak"_a = figures[i].peak, "allocated"_a = figures[i].allocated, "freed"_a = figures[i].freed);
      }
      return pools;
    };
    return py::make_tuple(by_pool(stats.blocks), by_pool(stats.bytes), stats.ooms);
  });
  m.def("_sim_take_step_peak", &take_step_peak);
  m.def("_npu_init", &enter_driver);
  m.def("_npu_getDeviceCount", [] { return settings().device_count; });
  m.def("_npu_getDevice", [] { return int(current_device()); });
  m.def("_npu_setDevice", [](int64_t device) {
    enter_driver();
    set_current_device(device);
  });
  m.def("_npu_getDefaultGenerator", [](int device) {
    return py::reinterpret_steal<py::object>(THPGenerator_initDefaultGenerator(default_generator(device)));
  });
  bind_clock_and_faults(m);
  bind_report(m);
  bind_hccl(m);
}
