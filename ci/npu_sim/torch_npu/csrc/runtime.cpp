// Devices, streams, events, memory and generators of the simulated NPU, as PyTorch's core asks for them.
#include "npu_sim.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/GeneratorForPrivateuseone.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/Allocator.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/StorageImpl.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <unistd.h>
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

namespace npu_sim {

// ---- devices ----------------------------------------------------------------------------------------------------

// As on the device, the current device and streams belong to a thread.
static thread_local c10::DeviceIndex t_device = 0;
static thread_local c10::StreamId t_stream[kMaxDevices] = {0};
static std::atomic<c10::StreamId> g_next_stream{1};
static std::atomic<pid_t> g_driver_pid{0};

Settings& settings() {
  static Settings s;
  return s;
}

c10::DeviceIndex current_device() {
  return t_device;
}

c10::StreamId current_stream(c10::DeviceIndex device) {
  return t_stream[device];
}

c10::StreamId exchange_current_stream(c10::DeviceIndex device, c10::StreamId stream) {
  return std::exchange(t_stream[device], stream);
}

c10::StreamId new_stream() {
  return g_next_stream++;
}

void check_index(int64_t index) {
  const int count = settings().device_count;
  TORCH_CHECK(count > 0, "npu:", index, " was asked for, but this process sees no NPU");
  TORCH_CHECK(index >= 0 && index < count, "NPU device index ", index, " is out of range: this process sees ", count,
              " NPU(s), npu:0 to npu:", count - 1);
}

void set_current_device(int64_t index) {
  check_index(index);
  t_device = static_cast<c10::DeviceIndex>(index);
}

void enter_driver() {
  const pid_t me = getpid(), owner = g_driver_pid.load(std::memory_order_relaxed);
  if (owner == me) return;
  TORCH_CHECK(owner == 0, "Cannot re-initialize NPU in forked subprocess. To use NPU with multiprocessing, "
              "you must use the 'spawn' start method");
  g_driver_pid.store(me);
}

bool driver_entered_by_this_process() {
  return g_driver_pid.load() == getpid();
}

// ---- memory -----------------------------------------------------------------------------------------------------

struct Account {
  std::mutex mutex;
  MemoryStats stats;
  int64_t allocations = 0;  // ever
  int64_t step_peak = 0;    // of bytes, since it was last taken

  void add(int64_t bytes, int blocks) {
    const int pool = (bytes < 0 ? -bytes : bytes) >= 1 << 20 ? 1 : 2;
    for (const int i : {0, pool}) {
      stats.bytes[i].add(bytes);
      stats.blocks[i].add(blocks);
    }
    step_peak = std::max(step_peak, stats.bytes[0].current);
  }
};
static Account g_accounts[kMaxDevices];

static std::string size_text(int64_t bytes) {
  const char* units[] = {"bytes", "KiB", "MiB", "GiB"};
  int unit = 0;
  double value = bytes;
  for (; value > 1024 && unit < 3; ++unit) value /= 1024;
  char text[32];
  snprintf(text, sizeof text, unit ? "%.2f %s" : "%.0f %s", value, units[unit]);
  return text;
}

static void refuse_memory(c10::DeviceIndex device, int64_t bytes, int64_t allocated) {
  const int64_t total = settings().memory_bytes;
  const std::string used = size_text(allocated);
  TORCH_CHECK_WITH(OutOfMemoryError, false, "NPU out of memory. Tried to allocate ", size_text(bytes), " (NPU ", int(device), "; ",
                   size_text(total), " total capacity; ", used, " already allocated; ", used, " current active; ",
                   size_text(total - allocated), " free; ", used, " reserved in total by PyTorch). If reserved memory is >> "
                   "allocated memory try setting max_split_size_mb to avoid fragmentation.");
}

// For `run --require-npu`: the file that NPU_SIM_USED names gets the id of a process that has held memory on an NPU.
static bool note_use() {
  const char* path = std::getenv("NPU_SIM_USED");
  if (path && *path) std::ofstream(path, std::ios::app) << getpid() << '\n';
  return true;
}

static void charge(c10::DeviceIndex device, int64_t bytes) {
  static const bool noted = note_use();
  (void)noted;
  Account& a = g_accounts[device];
  std::lock_guard<std::mutex> lock(a.mutex);
  const int64_t before = a.stats.bytes[0].current;
  const bool fault = faults().out_of_memory && bytes && faults().out_of_memory.exchange(false);
  if (fault || before + bytes > settings().memory_bytes) {
    a.stats.ooms += 1;
    refuse_memory(device, bytes, before);
  }
  a.add(bytes, 1);
  a.allocations += 1;
}

static void refund(c10::DeviceIndex device, int64_t bytes) {
  std::lock_guard<std::mutex> lock(g_accounts[device].mutex);
  g_accounts[device].add(-bytes, -1);
}

MemoryStats memory_stats(c10::DeviceIndex device) {
  check_index(device);
  std::lock_guard<std::mutex> lock(g_accounts[device].mutex);
  return g_accounts[device].stats;
}

MemoryUse memory_use(c10::DeviceIndex device) {
  const MemoryStats stats = memory_stats(device);
  return {stats.bytes[0].current, stats.bytes[0].peak, g_accounts[device].allocations};
}

template <class Change>
static void change_figures(c10::DeviceIndex device, const Change& change) {
  check_index(device);
  std::lock_guard<std::mutex> lock(g_accounts[device].mutex);
  for (auto* figures : {g_accounts[device].stats.blocks, g_accounts[device].stats.bytes})
    for (int pool = 0; pool < 3; ++pool) change(figures[pool]);
}

void reset_peak_memory(c10::DeviceIndex device) {
  change_figures(device, [](MemoryFigure& f) { f.peak = f.current; });
}

void reset_accumulated_memory(c10::DeviceIndex device) {
  change_figures(device, [](MemoryFigure& f) { f.allocated = f.freed = 0; });
}

int64_t take_step_peak(c10::DeviceIndex device) {
  check_index(device);
  Account& a = g_accounts[device];
  std::lock_guard<std::mutex> lock(a.mutex);
  return std::exchange(a.step_peak, a.stats.bytes[0].current);
}

static void* host_malloc(size_t bytes) {
  void* memory = nullptr;
  TORCH_CHECK(posix_memalign(&memory, 64, bytes) == 0, "npu_sim: the host is out of memory");
  return memory;
}

// Memory of one NPU storage: either malloc'ed here, or taken over from a CPU storage.
struct Block {
  c10::DeviceIndex device;
  int64_t bytes;
  void* owned = nullptr;
  c10::DataPtr taken;
};

static void free_block(void* context) {
  auto* block = static_cast<Block*>(context);
  refund(block->device, block->bytes);
  free(block->owned);
  delete block;
}

static c10::DataPtr allocate_on(size_t bytes, c10::DeviceIndex index) {
  enter_driver();
  check_index(index);
  const c10::Device device(kNPU, index);
  if (bytes == 0) return {nullptr, device};
  charge(index, bytes);
  auto* block = new Block{index, static_cast<int64_t>(bytes)};
  block->owned = host_malloc(bytes);
  return {block->owned, block, &free_block, device};
}

c10::DataPtr take_over(c10::StorageImpl* host, c10::DeviceIndex index) {
  void* memory = host->mutable_data();
  charge(index, host->nbytes());
  auto* block = new Block{index, static_cast<int64_t>(host->nbytes())};
  block->taken = host->set_data_ptr(c10::DataPtr(memory, c10::Device(c10::kCPU)));
  return {memory, block, &free_block, c10::Device(kNPU, index)};
}

// A DeviceAllocator, because torch.accelerator.memory_*, new in PyTorch 2.9, asserts on anything less.
#if NPU_SIM_TORCH(9)
using BaseAllocator = c10::DeviceAllocator;
#else
using BaseAllocator = c10::Allocator;
#endif
struct NpuAllocator final : BaseAllocator {
  c10::DataPtr allocate(size_t bytes) override { return allocate_on(bytes, t_device); }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }

#if NPU_SIM_TORCH(9)
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t = {0, 0}) override {}
  void recordStream(const c10::DataPtr&, c10::Stream) override {}
  void resetAccumulatedStats(c10::DeviceIndex) override {}
  void resetPeakStats(c10::DeviceIndex device) override { reset_peak_memory(device); }
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex device) override {
    const MemoryUse use = memory_use(device);
    c10::CachingDeviceAllocator::DeviceStats stats;
    for (auto* figure : {&stats.allocated_bytes, &stats.reserved_bytes}) {
      (*figure)[0].current = use.allocated;
      (*figure)[0].peak = use.peak;
    }
    return stats;
  }
#endif
#if NPU_SIM_TORCH(10)
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex device) override {
    return {settings().memory_bytes - memory_use(device).allocated, settings().memory_bytes};
  }
#endif
};
static NpuAllocator g_allocator;

c10::Allocator* allocator() {
  return &g_allocator;
}

c10::Storage new_storage(size_t bytes, c10::DeviceIndex device) {
  return c10::Storage(c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), bytes,
                                                            allocate_on(bytes, device), &g_allocator, true));
}

// Pinned host memory is ordinary memory whose base address is remembered.
struct PinnedAllocator final : c10::Allocator {
  static std::mutex& mutex() {
    static auto* m = new std::mutex;  // never destroyed: tensors may outlive static objects
    return *m;
  }
  static std::unordered_map<const void*, size_t>& live() {
    static auto* blocks = new std::unordered_map<const void*, size_t>;
    return *blocks;
  }
  static void release(void* memory) {
    {
      std::lock_guard<std::mutex> lock(mutex());
      live().erase(memory);
    }
    free(memory);
  }
  static bool owns(const void* storage_base) {
    std::lock_guard<std::mutex> lock(mutex());
    return live().count(storage_base) > 0;
  }
  c10::DataPtr allocate(size_t bytes) override {
    enter_driver();
    void* memory = bytes ? host_malloc(bytes) : nullptr;
    if (memory) {
      std::lock_guard<std::mutex> lock(mutex());
      live()[memory] = bytes;
    }
    return {memory, memory, &release, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }
};
static PinnedAllocator g_pinned;

bool is_pinned(const at::Tensor& host) {
  return PinnedAllocator::owns(host.storage().data());
}

// ---- streams and events -----------------------------------------------------------------------------------------

struct NpuGuard final : c10::impl::DeviceGuardImplInterface {
  static c10::DeviceIndex index_of(c10::Device d) { return d.has_index() ? d.index() : t_device; }
  static c10::Stream stream(c10::Device d, c10::StreamId id) {
    return c10::Stream(c10::Stream::UNSAFE, c10::Device(kNPU, index_of(d)), id);
  }

  c10::DeviceType type() const override { return kNPU; }
  c10::DeviceIndex deviceCount() const noexcept override { return settings().device_count; }
  c10::Device getDevice() const override { return c10::Device(kNPU, t_device); }
  void setDevice(c10::Device d) const override {
    if (d.has_index()) set_current_device(d.index());
  }
  void uncheckedSetDevice(c10::Device d) const noexcept override {
    if (d.has_index()) t_device = d.index();
  }
  c10::Device exchangeDevice(c10::Device d) const override {
    const c10::Device before = getDevice();
    setDevice(d);
    return before;
  }

  c10::Stream getStream(c10::Device d) const noexcept override { return stream(d, t_stream[index_of(d)]); }
  c10::Stream getDefaultStream(c10::Device d) const override { return stream(d, 0); }
  c10::Stream getStreamFromGlobalPool(c10::Device d, bool = false) const override { return stream(d, new_stream()); }
  c10::Stream getNewStream(c10::Device d, int = 0) const override { return stream(d, new_stream()); }
  c10::Stream exchangeStream(c10::Stream s) const noexcept override {
    return stream(s.device(), exchange_current_stream(s.device_index(), s.id()));
  }
  bool queryStream(const c10::Stream& s) const override { return stream_time(s.device_index(), s.id()) <= host_time(); }
  void synchronizeStream(const c10::Stream& s) const override {
    wait_for_stream("stream.synchronize", s.device_index(), s.id());
  }
  void synchronizeDevice(const c10::DeviceIndex d) const override { wait_for_device("synchronize", d); }

  // An event is the time at which the stream will have done what was on it when the event was recorded.
  static Ns& time_of(void* event) { return *static_cast<Ns*>(event); }
  void record(void** event, const c10::Stream& s, const c10::DeviceIndex, const c10::EventFlag) const override {
    if (!*event) *event = new Ns;
    time_of(*event) = stream_time(s.device_index(), s.id());
  }
  void block(void* event, const c10::Stream& s) const override {
    if (event) stream_waits(s.device_index(), s.id(), time_of(event));
  }
  bool queryEvent(void* event) const override { return !event || time_of(event) <= host_time(); }
  void synchronizeEvent(void* event) const override {
    if (event) wait_until("event.synchronize", time_of(event));
  }
  void destroyEvent(void* event, const c10::DeviceIndex) const noexcept override { delete static_cast<Ns*>(event); }
  double elapsedTime(void* from, void* to, const c10::DeviceIndex) const override {
    TORCH_CHECK(from && to, "Both events must be recorded before calculating elapsed time.");
    wait_until("event.elapsed_time", std::max(time_of(from), time_of(to)));
    return (time_of(to) - time_of(from)) * 1e-6;
  }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, NpuGuard)

// ---- generators -------------------------------------------------------------------------------------------------

// Wraps a CPU generator of its own, so that drawing on the NPU does not move the CPU's stream.
struct NpuGenerator final : c10::GeneratorImpl {
  at::Generator host;

  explicit NpuGenerator(c10::DeviceIndex index)
      : c10::GeneratorImpl(c10::Device(kNPU, index), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)),
        host(at::detail::createCPUGenerator(c10::default_rng_seed_val)) {}

  static c10::DeviceType device_type() { return kNPU; }
  void set_current_seed(uint64_t seed) override { host.set_current_seed(seed); }
  uint64_t current_seed() const override { return host.current_seed(); }
  uint64_t seed() override { return host.seed(); }
  void set_offset(uint64_t) override { TORCH_CHECK_NOT_IMPLEMENTED(false, "npu_sim: generator offsets are not simulated"); }
  uint64_t get_offset() const override { return 0; }
  void set_state(const c10::TensorImpl& state) override { host.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return host.unsafeGetGeneratorImpl()->get_state(); }
  NpuGenerator* clone_impl() const override {
    auto* copy = new NpuGenerator(device().index());
    copy->host = host.clone();
    return copy;
  }
};

at::Generator& default_generator(c10::DeviceIndex device) {
  static auto* generators = [] {
    auto* all = new std::vector<at::Generator>;
    for (int i = 0; i < kMaxDevices; ++i) all->push_back(at::make_generator<NpuGenerator>(i));
    return all;
  }();
  if (device < 0) device = t_device;
  check_index(device);
  return (*generators)[device];
}

at::Generator host_generator(const at::Generator& npu) {
  return static_cast<NpuGenerator*>(npu.unsafeGetGeneratorImpl())->host;
}

// ---- hooks ------------------------------------------------------------------------------------------------------

struct NpuHooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const { return true; }  // not marked "override": PyTorch 2.6 does not ask
  bool isAvailable() const { return settings().device_count > 0; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  void init() const override { enter_driver(); }

  c10::DeviceIndex deviceCount() const override { return settings().device_count; }
  c10::DeviceIndex getCurrentDevice() const override { return t_device; }
  void setCurrentDevice(c10::DeviceIndex d) const override { set_current_device(d); }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex d) const override {
    const auto before = t_device;
    set_current_device(d);
    return before;
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex d) const override { return d < 0 ? t_device : exchangeDevice(d); }

  const at::Generator& getDefaultGenerator(c10::DeviceIndex d) const override { return default_generator(d); }
  at::Generator getNewGenerator(c10::DeviceIndex d = -1) const override {
    return at::make_generator<NpuGenerator>(d < 0 ? t_device : d);
  }

  at::Device getDeviceFromPtr(void*) const override { return at::Device(kNPU, t_device); }
  bool isPinnedPtr(const void* storage_base) const override { return PinnedAllocator::owns(storage_base); }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &g_pinned; }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    auto* impl = storage.unsafeGetStorageImpl();
    c10::DataPtr memory = allocate_on(bytes, impl->device().index());
    if (memory.get() && impl->data()) std::memcpy(memory.get(), impl->data(), std::min(bytes, impl->nbytes()));
    impl->set_data_ptr_noswap(std::move(memory));
    impl->set_nbytes(bytes);
  }
};

struct Registration {
  Registration() {
    c10::SetAllocator(kNPU, &g_allocator, 0);
    at::RegisterPrivateUse1HooksInterface(new NpuHooks());
  }
};
static Registration g_registration;

} // namespace npu_sim
