// Counts of what a training script makes its devices and its host do; _report.py turns them into a report.
#include "npu_sim.h"

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/utils/pybind.h>

#include <unistd.h>
#include <cstdio>
#include <cstdlib>

namespace py = pybind11;

namespace npu_sim {
namespace {

thread_local bool t_in_optimizer = false;
PyObject* g_on_wait = nullptr;  // called with the reason and the nanoseconds of each wait

} // namespace

Counters& counters() {
  static auto* c = new Counters;
  return *c;
}

Phase current_phase() {
  if (t_in_optimizer) return kOptimizer;
  if (torch::autograd::get_current_graph_task_id() != -1) return kBackward;
  return at::GradMode::is_enabled() ? kForward : kOther;
}

void count_wait(const char* reason, Ns sleeps) {
  ++counters().waits;
  if (sleeps < kForever / 2) counters().waited_ns += sleeps;
  if (!g_on_wait || !Py_IsInitialized()) return;
  py::gil_scoped_acquire gil;
  const py::handle on_wait(g_on_wait);
  on_wait(reason, sleeps);
}

// Python ignores what an atexit function raises; a process that would have ended well ends so instead.
static void fail_at_exit(int status, void*) {
  if (status != 0) return;
  fflush(nullptr);
  _exit(1);
}

void bind_report(py::module& m) {
  m.def("_sim_fail_at_exit", [] { on_exit(&fail_at_exit, nullptr); });
  m.def("_sim_enter_optimizer", [](bool inside) { t_in_optimizer = inside; });
  m.def("_sim_on_wait", [](py::object callback) {  // false where there is one already
    if (g_on_wait) return false;
    g_on_wait = callback.release().ptr();
    return true;
  });
  m.def("_sim_counters", [] {
    const Counters& c = counters();
    py::dict all;
    all["operators"] = c.operators.load();
    all["host_waits"] = c.waits.load();
    all["host_waited_ns"] = c.waited_ns.load();
    all["pageable_copies"] = c.pageable_copies.load();
    all["to_device_bytes"] = c.to_device_bytes.load();
    all["to_host_bytes"] = c.to_host_bytes.load();
    return all;
  });
}

} // namespace npu_sim
