// The virtual clock: when each stream of each device will have done its work, and how the host waits for that.
//
// All times are nanoseconds on the host's virtual axis, which begins with the process. The kernels run on the host, in
// the device's stead, and that must not count: the axis stands still while one runs, in whatever thread. An operator
// that takes d on a stream ends at max(now, end of the stream's work) + d, and its launch returns at once; a wait
// sleeps until the end. Without NPU_SIM_CLOCK operators take no time, so that every wait is over when it begins.
#include "npu_sim.h"

#include <Python.h>

#include <algorithm>
#include <chrono>
#include <mutex>
#include <thread>
#include <unordered_map>

namespace npu_sim {
namespace {

struct Clock {
  std::mutex mutex;
  bool on = false;
  std::map<std::string, double> table;
  Ns origin = 0, frozen = 0, since = 0;  // frozen: time that did not count; since: when it last stopped counting
  int workers = 0;                       // threads, and collectives, that stop it
  std::unordered_map<c10::StreamId, Ns> ends[kMaxDevices];
  Ns busy[kMaxDevices] = {0};
  bool hung[kMaxDevices] = {false};
};

Ns wall() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

Clock& clock() {
  static auto* c = [] {
    auto* made = new Clock;  // never destroyed: threads may outlive static objects
    made->origin = wall();
    return made;
  }();
  return *c;
}

Ns now(const Clock& c) {
  return (c.workers ? c.since : wall()) - c.origin - c.frozen;
}

double entry(const char* name) {
  return clock().table.at(name);
}

// Sleeps in the host's real time; where that did not count, because another thread computes, the clock is put on.
void sleep_until(Ns end) {
  const Ns left = end - host_time();
  if (left <= 0) return;
  const bool has_gil = Py_IsInitialized() && PyGILState_Check();
  PyThreadState* python = has_gil ? PyEval_SaveThread() : nullptr;
  for (Ns to_go = left; to_go > 0; to_go -= 1000000000)
    std::this_thread::sleep_for(std::chrono::nanoseconds(std::min<Ns>(to_go, 1000000000)));
  if (python) PyEval_RestoreThread(python);
  Clock& c = clock();
  std::lock_guard<std::mutex> lock(c.mutex);
  c.frozen -= std::max<Ns>(end - now(c), 0);
}

} // namespace

void configure_clock(bool on, std::map<std::string, double> table) {
  clock().on = on;
  clock().table = std::move(table);
}

bool clock_is_on() {
  return clock().on;
}

Ns host_time() {
  Clock& c = clock();
  std::lock_guard<std::mutex> lock(c.mutex);
  return now(c);
}

Ns frozen_time() {
  Clock& c = clock();
  std::lock_guard<std::mutex> lock(c.mutex);
  return c.frozen + (c.workers ? wall() - c.since : 0);
}

void stop_clock() {
  Clock& c = clock();
  std::lock_guard<std::mutex> lock(c.mutex);
  if (c.workers++ == 0) c.since = wall();
}

void start_clock() {
  Clock& c = clock();
  std::lock_guard<std::mutex> lock(c.mutex);
  if (--c.workers == 0) c.frozen += wall() - c.since;
}

// ---- streams -----------------------------------------------------------------------------------------------------

Ns stream_time(c10::DeviceIndex device, c10::StreamId stream) {
  Clock& c = clock();
  std::lock_guard<std::mutex> lock(c.mutex);
  if (c.hung[device]) return kForever;
  const auto found = c.ends[device].find(stream);
  return std::max(now(c), found == c.ends[device].end() ? 0 : found->second);
}

Ns device_time(c10::DeviceIndex device) {
  Clock& c = clock();
  std::lock_guard<std::mutex> lock(c.mutex);
  if (c.hung[device]) return kForever;
  Ns end = 0;
  for (const auto& [stream, its_end] : c.ends[device]) end = std::max(end, its_end);
  return end;
}

Ns busy_time(c10::DeviceIndex device) {
  Clock& c = clock();
  std::lock_guard<std::mutex> lock(c.mutex);
  return c.busy[device];
}

void stream_waits(c10::DeviceIndex device, c10::StreamId stream, Ns until) {
  Clock& c = clock();
  std::lock_guard<std::mutex> lock(c.mutex);
  Ns& end = c.ends[device][stream];
  end = std::max(end, until);
}

void launch(c10::DeviceIndex device, c10::StreamId stream, Ns duration) {
  if (!clock_is_on()) return;
  stream_waits(device, stream, stream_time(device, stream) + duration);
  Clock& c = clock();
  std::lock_guard<std::mutex> lock(c.mutex);
  c.busy[device] += duration;
}

bool is_hung(c10::DeviceIndex device) {
  Clock& c = clock();
  std::lock_guard<std::mutex> lock(c.mutex);
  return c.hung[device];
}

void hang(c10::DeviceIndex device) {
  Clock& c = clock();
  std::lock_guard<std::mutex> lock(c.mutex);
  c.hung[device] = true;
}

// ---- the host waits ----------------------------------------------------------------------------------------------

void wait_until(const char* reason, Ns end) {
  const Ns left = std::max<Ns>(end - host_time(), 0);
  count_wait(reason, left);
  sleep_until(end);
}

void wait_for_stream(const char* reason, c10::DeviceIndex device, c10::StreamId stream) {
  wait_until(reason, stream_time(device, stream));
}

void wait_for_device(const char* reason, c10::DeviceIndex device) {
  wait_until(reason, device_time(device));
}

// ---- the table ---------------------------------------------------------------------------------------------------

namespace {

// Of floating-point operations, or bytes, at a rate in units of 1e9 per second: nanoseconds.
Ns at_rate(double amount, const char* rate) {
  return static_cast<Ns>(amount / entry(rate));
}

Ns microseconds(double us) {
  return static_cast<Ns>(us * 1e3);
}

} // namespace

Ns copy_duration(int64_t bytes, const char* rate) {
  return microseconds(entry("copy_us")) + at_rate(bytes, rate);
}

Ns collective_duration(int64_t bytes) {
  return microseconds(entry("collective_us")) + at_rate(bytes, "collective_gbs");
}

double named_duration(const std::string& operator_name) {
  const auto found = clock().table.find(operator_name);
  return found == clock().table.end() ? -1 : found->second;
}

Ns operator_duration(double named_us, double flops, double bytes) {
  if (named_us >= 0) return microseconds(named_us);
  const Ns matrix = flops > 0 ? at_rate(flops, "matrix_gflops") : 0;
  return microseconds(entry("operator_us")) + std::max(matrix, at_rate(bytes, "vector_gbs"));
}

} // namespace npu_sim
