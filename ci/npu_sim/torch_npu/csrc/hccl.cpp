// The 'hccl' backend of torch.distributed: gloo on zero-copy host views of the NPU tensors.
#include "npu_sim.h"

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <torch/csrc/distributed/c10d/Work.hpp>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <chrono>
#include <iostream>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace npu_sim {
namespace {

using c10d::OpType;
using Tensors = std::vector<at::Tensor>;
using TensorLists = std::vector<Tensors>;
using WorkPtr = c10::intrusive_ptr<c10d::Work>;
using FuturePtr = c10::intrusive_ptr<c10::ivalue::Future>;

// ---- tensors -----------------------------------------------------------------------------------------------------

at::Tensor checked_view(const at::Tensor& t) {
  TORCH_CHECK(t.device().type() == kNPU, "hccl: tensors must be on an NPU, but found one on ", t.device());
  TORCH_CHECK(t.is_contiguous(t.suggest_memory_format()), "hccl: tensors must be contiguous");
  TORCH_CHECK(!t.is_complex(), "hccl: complex tensors are not supported");
  return host_view(t.detach());
}

Tensors flat(const TensorLists& lists) {
  Tensors all;
  for (const auto& list : lists) all.insert(all.end(), list.begin(), list.end());
  return all;
}

void check_reducible(const Tensors& tensors) {
  for (const auto& t : tensors)
    TORCH_CHECK(t.scalar_type() != at::kDouble, "hccl: reductions of float64 (double) tensors are not supported");
}

// ---- time-outs ---------------------------------------------------------------------------------------------------

struct GroupFacts {
  GroupFacts(int rank, std::chrono::milliseconds timeout) : rank(rank), timeout(timeout) {}
  const int rank;
  const std::chrono::milliseconds timeout;
  std::atomic<int64_t> sequence{0};  // of the last collective of this rank
};

bool is_set(const char* variable) {
  const char* value = std::getenv(variable);
  return value && std::string(value) == "1";
}

// What torch_npu does when a collective has not ended in time: its watchdog logs that and takes the process down; where
// the host waits for collectives (HCCL_BLOCKING_WAIT), it raises. The words are those of its watchdog.
[[noreturn]] void time_out(const GroupFacts& group, int64_t sequence, OpType op, std::chrono::milliseconds ran) {
  const std::string rank = c10::str("[Rank ", group.rank, "] ");
  const std::string work = c10::str("WorkHCCL(SeqNum=", sequence, ", OpType=", c10d::opTypeToString(op), ", Timeout(ms)=",
                                    group.timeout.count(), ")");
  TORCH_CHECK_WITH(DistBackendError, !is_set("TORCH_HCCL_BLOCKING_WAIT") && !is_set("HCCL_BLOCKING_WAIT"), work,
                   " timed out in blocking wait (TORCH_HCCL_BLOCKING_WAIT=1 or HCCL_BLOCKING_WAIT=1).");
  const std::string caught = c10::str(rank, "Watchdog caught collective operation timeout: ", work, " ran for ", ran.count(),
                                      " milliseconds before timing out.");
  std::cerr << caught << "\n" << rank << "HCCL watchdog thread terminated with exception: " << caught << std::endl;
  std::abort();
}

// A collective that was given to gloo.
struct Running {
  std::shared_ptr<GroupFacts> group;
  OpType op;
  int64_t sequence = ++group->sequence;
  std::chrono::steady_clock::time_point began = std::chrono::steady_clock::now();

  // An error of gloo; its time-out becomes torch_npu's.
  std::exception_ptr translated(std::exception_ptr error) const {
    try {
      std::rethrow_exception(error);
    } catch (const std::exception& gloo) {
      if (std::string(gloo.what()).find("imed out") == std::string::npos) return error;
    }
    try {
      const auto ran = std::chrono::steady_clock::now() - began;
      time_out(*group, sequence, op, std::chrono::duration_cast<std::chrono::milliseconds>(ran));
    } catch (...) {
      return std::current_exception();
    }
  }

  bool wait(c10d::Work& gloo, std::chrono::milliseconds timeout = kNoTimeout) const {
    try {
      return gloo.wait(timeout);
    } catch (...) {
      std::rethrow_exception(translated(std::current_exception()));
    }
  }
};

// Every call to gloo goes through here. A rank whose device hangs, or that is told to stay away (_faults.py), does not get
// to the other ranks: all of them time out.
class Gloo {
 public:
  Gloo(c10::intrusive_ptr<c10d::Backend> backend, std::shared_ptr<GroupFacts> facts)
      : backend_(std::move(backend)), facts_(std::move(facts)) {}
  c10d::Backend* operator->() const {
    if (faults().absent || is_hung(current_device())) stay_away();
    return backend_.get();
  }
  c10d::Backend& backend() const { return *backend_; }
  void reset() { backend_.reset(); }

 private:
  [[noreturn]] void stay_away() const {
    std::this_thread::sleep_for(facts_->timeout);
    time_out(*facts_, facts_->sequence + 1, OpType::UNKNOWN, facts_->timeout);
  }

  c10::intrusive_ptr<c10d::Backend> backend_;
  std::shared_ptr<GroupFacts> facts_;
};

// ---- work --------------------------------------------------------------------------------------------------------

// With the clock on, the future belongs to a device: who waits for it makes its current stream wait, not the host.
FuturePtr tensor_list_future(c10::DeviceIndex device) {
  std::vector<c10::Device> devices;
  if (clock_is_on()) devices.emplace_back(kNPU, device);
  return c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()), std::move(devices));
}

// When a collective ends on its group's stream. Each rank has a time axis of its own; on those of one group, zero is when
// the group was made. The ranks tell each other when they come, and all wait for the last.
class CollectiveTime {
 public:
  CollectiveTime(std::shared_ptr<CollectiveTime> before, c10::StreamId stream, Ns origin, int64_t bytes)
      : device(current_device()), stream(stream), before_(std::move(before)), origin_(origin), bytes_(bytes),
        latest_(at::full({1}, stream_time(device, current_stream(device)) - origin, at::kLong)) {}

  void exchange(c10d::Backend& gloo) {
    Tensors tensors{latest_};
    c10d::AllreduceOptions options;
    options.reduceOp = c10d::ReduceOp::MAX;
    exchange_ = gloo.allreduce(tensors, options);
  }

  // Called when the collective is done on the host. Those before it are settled first: they come first on the stream.
  void settle() {
    std::lock_guard<std::mutex> lock(mutex_);
    if (settled_) return;
    if (before_) before_->settle();
    before_.reset();
    exchange_->wait();
    stream_waits(device, stream, origin_ + latest_.item<int64_t>());
    launch(device, stream, collective_duration(bytes_));
    settled_ = true;
  }

  const c10::DeviceIndex device;
  const c10::StreamId stream;

 private:
  std::mutex mutex_;
  std::shared_ptr<CollectiveTime> before_;
  Ns origin_;
  int64_t bytes_;
  at::Tensor latest_;
  WorkPtr exchange_;
  bool settled_ = false;
};
using TimePtr = std::shared_ptr<CollectiveTime>;

// A gloo work whose result and future hold the NPU tensors: DDP builds views of its buckets from the future's value.
class HcclWork final : public c10d::Work {
 public:
  HcclWork(WorkPtr gloo, Tensors outputs, Running running, TimePtr time)
      : c10d::Work(running.group->rank, running.op), gloo_(std::move(gloo)), outputs_(std::move(outputs)),
        running_(std::move(running)), time_(std::move(time)), device_(current_device()) {
    const OpType op = running_.op;
    if (op == OpType::SEND || op == OpType::RECV || op == OpType::RECVANYSOURCE || op == OpType::BARRIER) return;
    try {
      auto future = tensor_list_future(device_);
      auto gloo_future = gloo_->getFuture();
      if (time_) stop_clock();  // gloo's time does not count
      gloo_future->addCallback([future, outputs = outputs_, time = time_, running = running_](c10::ivalue::Future& done) {
        if (time) settle_on_stream(*time, done.hasError());
        if (done.hasError())
          future->setError(running.translated(done.exception_ptr()));
        else
          complete(*future, outputs, time.get());
      });
      future_ = future;
    } catch (const c10::Error&) {  // gloo has no futures for some collectives: getFuture() below waits instead
    }
  }
  bool isCompleted() override { return gloo_->isCompleted(); }
  bool isSuccess() const override { return true; }
  int sourceRank() const override { return gloo_->sourceRank(); }
  Tensors result() override { return outputs_; }
  void synchronize() override { wait(); }
  bool wait(std::chrono::milliseconds timeout = kNoTimeout) override {
    const bool done = wait_for_gloo(timeout);
    if (future_) future_->wait();
    if (!time_) return done;
    stream_waits(device_, current_stream(device_), stream_time(device_, time_->stream));
    if (retrieveOpType() == OpType::BARRIER) wait_for_stream("barrier", device_, time_->stream);
    return done;
  }
  FuturePtr getFuture() override {
    if (!future_) {
      wait_for_gloo(kNoTimeout);
      future_ = tensor_list_future(device_);
      complete(*future_, outputs_, time_.get());
    }
    return future_;
  }

 private:
  static void settle_on_stream(CollectiveTime& time, bool failed) {
    if (!failed) time.settle();
    start_clock();
  }

  static void complete(c10::ivalue::Future& future, const Tensors& outputs, const CollectiveTime* time) {
    if (!time) return future.markCompleted(c10::IValue(outputs));
    const c10::StreamId before = exchange_current_stream(time->device, time->stream);  // on which the result comes
    future.markCompleted(c10::IValue(outputs));
    exchange_current_stream(time->device, before);
  }

  bool wait_for_gloo(std::chrono::milliseconds timeout) {
    const ClockStopped stopped;
    const bool done = running_.wait(*gloo_, timeout);
    if (time_) time_->settle();
    return done;
  }

  WorkPtr gloo_;
  Tensors outputs_;
  FuturePtr future_;
  Running running_;
  TimePtr time_;
  c10::DeviceIndex device_;
};

} // namespace

// ---- which rank is on which NPU ----------------------------------------------------------------------------------

constexpr int kAllRanks = -1;

// The real hccl makes a communicator with the first collective, and refuses two ranks on one NPU. Here each rank says in
// the group's store where it is, and reads where the others are.
class Places {
 public:
  // `npus` are the NPUs that this process sees, by names that are theirs alone on all hosts.
  Places(c10::intrusive_ptr<c10d::Store> store, std::vector<std::string> npus, int rank, int size)
      : store_(std::move(store)), npus_(std::move(npus)), rank_(rank), size_(size) {}

  // Before an operation on `device` with rank `peer`, or with all.
  void meet(c10::DeviceIndex device, int peer) {
    check_index(device);
    std::lock_guard<std::mutex> lock(mutex_);
    const std::string& place = npus_[device];
    if (place != place_) {
      store_->set(key(rank_), place);
      place_ = place;
      met_.clear();
    }
    if (met_.count(kAllRanks) || met_.count(peer)) return;
    for (int other = 0; other < size_; ++other) {
      if (other == rank_ || (peer != kAllRanks && peer != other)) continue;
      TORCH_CHECK(store_->get_to_str(key(other)) != place, "hccl: ranks ", std::min(rank_, other), " and ", std::max(rank_, other),
                  " are both on NPU ", place, "; each rank needs one of its own: torch.npu.set_device() before the "
                  "first collective");
    }
    met_.insert(peer);
  }

 private:
  static std::string key(int rank) { return "npu_sim/place/" + std::to_string(rank); }

  c10::intrusive_ptr<c10d::Store> store_;
  const std::vector<std::string> npus_;
  const int rank_, size_;
  std::mutex mutex_;
  std::string place_;     // of this rank, as the others read it
  std::set<int> met_;     // whose places were compared with it
};

// ---- the backend -------------------------------------------------------------------------------------------------

class ProcessGroupHCCL final : public c10d::Backend {
 public:
  ProcessGroupHCCL(c10::intrusive_ptr<c10d::Backend> gloo, c10::intrusive_ptr<c10d::Store> store, std::vector<std::string> npus,
                   std::chrono::milliseconds timeout)
      : c10d::Backend(gloo->getRank(), gloo->getSize()), facts_(std::make_shared<GroupFacts>(gloo->getRank(), timeout)),
        gloo_(std::move(gloo), facts_), places_(std::move(store), std::move(npus), rank_, size_) {}
  // gloo's destructor waits for its thread, which may be about to release Python objects and then waits for the GIL.
  ~ProcessGroupHCCL() override {
    if (!Py_IsInitialized() || !PyGILState_Check()) return;
    pybind11::gil_scoped_release no_gil;
    gloo_.reset();
  }

  const std::string getBackendName() const override { return "hccl"; }
  void setSequenceNumberForGroup() override { gloo_->setSequenceNumberForGroup(); }
  uint64_t getSequenceNumberForGroup() override { return gloo_->getSequenceNumberForGroup(); }

  WorkPtr broadcast(Tensors& tensors, const c10d::BroadcastOptions& options) override {
    auto views = host(tensors);
    return work(gloo_->broadcast(views, options), tensors, OpType::BROADCAST);
  }
  WorkPtr allreduce(Tensors& tensors, const c10d::AllreduceOptions& options) override {
    auto views = host(tensors);
    return reduction(tensors, views, options, OpType::ALLREDUCE,
                     [&](const c10d::AllreduceOptions& o) { return gloo_->allreduce(views, o); });
  }
  WorkPtr allreduce_coalesced(Tensors& tensors, const c10d::AllreduceCoalescedOptions& options) override {
    auto views = host(tensors);
    return reduction(tensors, views, options, OpType::ALLREDUCE_COALESCED,
                     [&](const c10d::AllreduceCoalescedOptions& o) { return gloo_->allreduce_coalesced(views, o); });
  }
  WorkPtr reduce(Tensors& tensors, const c10d::ReduceOptions& options) override {
    auto views = host(tensors);
    return reduction(tensors, views, options, OpType::REDUCE,
                     [&](const c10d::ReduceOptions& o) { return gloo_->reduce(views, o); });
  }

  WorkPtr allgather(TensorLists& outputs, Tensors& inputs, const c10d::AllgatherOptions& options) override {
    auto to = host(outputs);
    auto from = host(inputs);
    return work(gloo_->allgather(to, from, options), flat(outputs), OpType::ALLGATHER);
  }
  WorkPtr _allgather_base(at::Tensor& output, at::Tensor& input, const c10d::AllgatherOptions& options) override {
    auto to = host(output).view(-1), from = host(input).view(-1);  // gloo splits along dimension 0
    return work(gloo_->_allgather_base(to, from, options), {output}, OpType::_ALLGATHER_BASE);
  }
  WorkPtr allgather_coalesced(TensorLists& outputs, Tensors& inputs, const c10d::AllgatherOptions& options) override {
    auto to = host(outputs);
    auto from = host(inputs);
    return work(gloo_->allgather_coalesced(to, from, options), flat(outputs), OpType::ALLGATHER_COALESCED);
  }
  WorkPtr allgather_into_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                          const c10d::AllgatherOptions& options) override {
    auto to = host(outputs);
    auto from = host(inputs);
    return work(gloo_->allgather_into_tensor_coalesced(to, from, options), outputs, OpType::ALLGATHER_COALESCED);
  }

  WorkPtr reduce_scatter(Tensors& outputs, TensorLists& inputs, const c10d::ReduceScatterOptions& options) override {
    auto to = host(outputs);
    auto from = host(inputs);
    return reduction(outputs, to, options, OpType::REDUCE_SCATTER,
                     [&](const c10d::ReduceScatterOptions& o) { return gloo_->reduce_scatter(to, from, o); });
  }
  WorkPtr _reduce_scatter_base(at::Tensor& output, at::Tensor& input, const c10d::ReduceScatterOptions& options) override {
    auto to = host(output).view(-1), from = host(input).view(-1);
    return reduction({output}, {to}, options, OpType::_REDUCE_SCATTER_BASE,
                     [&](const c10d::ReduceScatterOptions& o) { return gloo_->_reduce_scatter_base(to, from, o); });
  }
  WorkPtr reduce_scatter_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                          const c10d::ReduceScatterOptions& options) override {
    auto to = host(outputs);
    auto from = host(inputs);
    return reduction(outputs, to, options, OpType::REDUCE_SCATTER, [&](const c10d::ReduceScatterOptions& o) {
      return gloo_->reduce_scatter_tensor_coalesced(to, from, o);
    });
  }

  WorkPtr gather(TensorLists& outputs, Tensors& inputs, const c10d::GatherOptions& options) override {
    auto to = host(outputs);
    auto from = host(inputs);
    return work(gloo_->gather(to, from, options), flat(outputs), OpType::GATHER);
  }
  WorkPtr scatter(Tensors& outputs, TensorLists& inputs, const c10d::ScatterOptions& options) override {
    auto to = host(outputs);
    auto from = host(inputs);
    return work(gloo_->scatter(to, from, options), outputs, OpType::SCATTER);
  }
  WorkPtr alltoall_base(at::Tensor& output, at::Tensor& input, std::vector<int64_t>& output_splits,
                        std::vector<int64_t>& input_splits, const c10d::AllToAllOptions& options) override {
    auto to = host(output), from = host(input);
    return work(gloo_->alltoall_base(to, from, output_splits, input_splits, options), {output}, OpType::ALLTOALL_BASE);
  }

  WorkPtr send(Tensors& tensors, int destination, int tag) override {
    auto views = host(tensors, destination);
    return work(gloo_->send(views, destination, tag), tensors, OpType::SEND);
  }
  WorkPtr recv(Tensors& tensors, int source, int tag) override {
    auto views = host(tensors, source);
    return work(gloo_->recv(views, source, tag), tensors, OpType::RECV);
  }
  WorkPtr recvAnysource(Tensors& tensors, int tag) override {
    auto views = host(tensors, rank_);  // which of the others will send is not known
    return work(gloo_->recvAnysource(views, tag), tensors, OpType::RECVANYSOURCE);
  }
  WorkPtr barrier(const c10d::BarrierOptions& options) override {
    c10::DeviceIndex device = current_device();
    if (options.device && options.device->has_index()) device = options.device->index();
    if (!options.device_ids.empty()) device = options.device_ids[0];
    places_.meet(device, kAllRanks);
    c10d::BarrierOptions host_options;  // without the device ids, which gloo does not know
    host_options.timeout = options.timeout;
    return work(gloo_->barrier(host_options), {}, OpType::BARRIER);
  }

 private:
  // Host views of NPU tensors, once it is sure that no other rank is on their NPU.
  at::Tensor host(const at::Tensor& t, int peer = kAllRanks) {
    at::Tensor view = checked_view(t);
    places_.meet(t.device().index(), peer);
    return view;
  }
  Tensors host(const Tensors& tensors, int peer = kAllRanks) {
    Tensors views;
    for (const auto& t : tensors) views.push_back(host(t, peer));
    return views;
  }
  TensorLists host(const TensorLists& lists) {
    TensorLists views;
    for (const auto& list : lists) views.push_back(host(list));
    return views;
  }

  WorkPtr work(WorkPtr gloo, Tensors outputs, OpType op) {
    TimePtr time;
    if (clock_is_on() && op != OpType::SEND && op != OpType::RECV && op != OpType::RECVANYSOURCE) {
      int64_t bytes = 0;
      for (const auto& t : outputs) bytes += t.numel() * t.itemsize();
      time = last_ = std::make_shared<CollectiveTime>(last_, stream_, origin_, bytes);
      time->exchange(gloo_.backend());
    }
    return c10::make_intrusive<HcclWork>(std::move(gloo), std::move(outputs), Running{facts_, op}, std::move(time));
  }

  // gloo has no AVG: sum, wait, divide.
  template <class Options, class Run>
  WorkPtr reduction(const Tensors& outputs, const Tensors& views, Options options, OpType op, const Run& run) {
    check_reducible(views);
    const bool average = options.reduceOp == c10d::ReduceOp::AVG;
    if (average) options.reduceOp = c10d::ReduceOp::SUM;
    WorkPtr gloo = run(options);
    if (average) {
      const ClockStopped stopped;
      Running{facts_, op}.wait(*gloo);
      for (at::Tensor view : views) view.div_(size_);
    }
    return work(std::move(gloo), outputs, op);
  }

  std::shared_ptr<GroupFacts> facts_;
  Gloo gloo_;
  Places places_;
  const c10::StreamId stream_ = new_stream();  // collectives of a group are in order on a stream of their own
  const Ns origin_ = host_time();
  TimePtr last_;
};

} // namespace npu_sim

void bind_hccl(pybind11::module& m) {
  namespace py = pybind11;
  using npu_sim::ProcessGroupHCCL;
  const py::object base = py::module::import("torch._C._distributed_c10d").attr("Backend");
  py::class_<ProcessGroupHCCL, c10::intrusive_ptr<ProcessGroupHCCL>>(m, "ProcessGroupHCCL", base)
      .def(py::init([](c10::intrusive_ptr<c10d::Backend> gloo, c10::intrusive_ptr<c10d::Store> store, std::vector<std::string> npus,
                       int64_t timeout_ms) {
             return c10::make_intrusive<ProcessGroupHCCL>(std::move(gloo), std::move(store), std::move(npus),
                                                          std::chrono::milliseconds(timeout_ms));
           }),
           py::arg("gloo"), py::arg("store"), py::arg("npus"), py::arg("timeout_ms") = 1800000, py::call_guard<py::gil_scoped_release>());
}
