// The boxed fallback that runs every operator of the simulated NPU.
//
// NPU tensors are replaced by CPU tensors that alias their memory, the CPU kernel runs, and its results become NPU
// tensors. Because memory is aliased, never copied, a write that the operator's schema does not declare (the running
// statistics of batch norm) still reaches the NPU tensor, and a view of an input is a view of the NPU tensor; both go
// wrong with at::native::cpu_fallback, which also does not check that all arguments are on one device.
#include "npu_sim.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/autocast_mode.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/StorageImpl.h>
#include <torch/library.h>

#include <mutex>
#include <optional>
#include <unordered_map>
#include <unordered_set>

namespace npu_sim {
namespace {

bool on_npu(const at::Tensor& t) {
  return t.device().type() == kNPU;
}

const c10::DispatchKeySet kHostKeys(c10::DispatchKey::CPU);
const c10::DispatchKeySet kNpuKeys(c10::DispatchKey::PrivateUse1);

void copy_geometry(const at::Tensor& from, const at::Tensor& to) {
  auto* impl = to.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(from.sizes(), from.strides(), from.storage_offset());
  if (from.is_conj()) impl->_set_conj(true);
  if (from.is_neg()) impl->_set_neg(true);
}

// ---- what is special about an operator ---------------------------------------------------------------------------

struct OpTraits {
  std::string name;
  std::array<int64_t, kPhases> calls{};
  bool cpu_index = false;        // its second argument may be index tensors on the CPU
  bool crosses_devices = false;  // moving data between devices is its purpose
  bool matrix = false;           // runs on the matrix unit, which has no float64
  bool random = false;           // draws random numbers
  bool generator = false;        // takes a generator argument
  bool slow_in_half = false;     // the CPU's kernels for fp16 and bf16 are slow
  int labels = -1;               // its argument that is class numbers, which the device also takes as int32
  bool view = false;             // makes a view: nothing for the device to do
  bool reads_values = false;     // what it returns to the host depends on values: the host waits
  int product = -1;              // a matrix product: the number of its first factor among the arguments
  double named_us = -1;          // what the clock's table says about it by name
};

std::mutex& traits_mutex() {
  static auto* m = new std::mutex;
  return *m;
}

std::unordered_map<const void*, OpTraits>& traits_by_schema() {
  static auto* all = new std::unordered_map<const void*, OpTraits>;
  return *all;
}

OpTraits make_traits(const c10::OperatorHandle& op) {
  static const std::unordered_set<std::string> index{"aten::index", "aten::index_put", "aten::index_put_",
      "aten::_index_put_impl_", "aten::_unsafe_index", "aten::_unsafe_index_put"};
  static const std::unordered_set<std::string> copy{"aten::copy_", "aten::_copy_from", "aten::_copy_from_and_resize",
      "aten::_to_copy"};
  static const std::unordered_set<std::string> matrix{"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm",
      "aten::addmv", "aten::dot", "aten::linear", "aten::convolution", "aten::convolution_backward",
      "aten::native_batch_norm", "aten::native_layer_norm"};
  static const std::unordered_map<std::string, int> labels{{"aten::nll_loss_forward", 1}, {"aten::nll_loss_backward", 2},
      {"aten::nll_loss2d_forward", 1}, {"aten::nll_loss2d_backward", 2}, {"aten::gather", 2}};
  const auto& schema = op.schema();
  OpTraits t;
  t.name = c10::toString(op.operator_name());
  t.cpu_index = index.count(schema.name()) > 0;
  t.crosses_devices = copy.count(schema.name()) > 0;
  t.matrix = matrix.count(schema.name()) > 0;
  t.random = op.hasTag(at::Tag::nondeterministic_seeded);
  t.slow_in_half = slow_in_half(schema.name());
  if (labels.count(schema.name())) t.labels = labels.at(schema.name());
  t.reads_values = op.hasTag(at::Tag::data_dependent_output) || op.hasTag(at::Tag::dynamic_output_shape);
  static const std::unordered_map<std::string, int> product{{"aten::mm", 0}, {"aten::bmm", 0}, {"aten::mv", 0},
      {"aten::addmm", 1}, {"aten::baddbmm", 1}, {"aten::addbmm", 1}, {"aten::addmv", 1}};
  const auto factor = product.find(schema.name());
  if (factor != product.end()) t.product = factor->second;
  t.named_us = named_duration(schema.name());
  for (const auto& result : schema.returns()) t.view |= result.alias_info() && !result.alias_info()->isWrite();
  for (const auto& argument : schema.arguments())
    t.generator |= argument.type()->str().find("Generator") != std::string::npos;
  return t;
}

const OpTraits& traits_of(const c10::OperatorHandle& op) {
  std::lock_guard<std::mutex> lock(traits_mutex());
  auto& all = traits_by_schema();
  auto found = all.find(&op.schema());
  if (found == all.end()) found = all.emplace(&op.schema(), make_traits(op)).first;
  ++found->second.calls[current_phase()];
  ++counters().operators;
  return found->second;
}

// ---- one call: checks --------------------------------------------------------------------------------------------

// The arguments of a call, at the end of the stack.
struct Call {
  const c10::OperatorHandle& op;
  const OpTraits& traits;
  torch::jit::Stack* stack;
  size_t begin;

  Call(const c10::OperatorHandle& op, torch::jit::Stack* stack)
      : op(op), traits(traits_of(op)), stack(stack), begin(stack->size() - op.schema().arguments().size()) {}

  // Calls visit(tensor, argument number) for each defined tensor.
  template <class Visit>
  void each_tensor(const Visit& visit) const {
    for (size_t i = begin; i < stack->size(); ++i) {
      const c10::IValue& value = (*stack)[i];
      if (value.isTensor()) {
        if (value.toTensor().defined()) visit(value.toTensor(), i - begin);
      } else if (value.isTensorList()) {
        for (const at::Tensor& t : value.toTensorList())
          if (t.defined()) visit(t, i - begin);
      } else if (value.isOptionalTensorList()) {
        for (std::optional<at::Tensor> t : value.toOptionalTensorList())
          if (t && t->defined()) visit(*t, i - begin);
      }
    }
  }
};

[[noreturn]] void refuse_mixed(c10::DeviceIndex device, const at::Tensor& other, const Call& call) {
  // The wording of PyTorch's own check, which structured operators meet before they get here.
  TORCH_CHECK(false, "Expected all tensors to be on the same device, but found at least two devices, npu:", int(device),
              " and ", other.device().str(), "! (when checking arguments of ", call.traits.name, ")");
}

// The one device of the call: that of its NPU tensors, else its device argument, else the current one.
c10::DeviceIndex device_of(const Call& call) {
  c10::DeviceIndex device = -1;
  call.each_tensor([&](const at::Tensor& t, size_t) {
    if (!on_npu(t)) return;
    if (device >= 0 && device != t.device().index()) refuse_mixed(device, t, call);
    device = t.device().index();
  });
  if (device >= 0) return device;
  for (size_t i = call.begin; i < call.stack->size(); ++i) {
    const c10::IValue& value = (*call.stack)[i];
    if (value.isDevice() && value.toDevice().has_index()) device = value.toDevice().index();
  }
  return device >= 0 ? device : current_device();
}

void check_devices(const Call& call, c10::DeviceIndex device) {
  check_index(device);
  if (call.traits.crosses_devices) return;
  bool any_npu = false;
  call.each_tensor([&](const at::Tensor& t, size_t) { any_npu |= on_npu(t); });
  if (!any_npu) return;
  call.each_tensor([&](const at::Tensor& t, size_t argument) {
    if (on_npu(t) || t.dim() == 0) return;  // PyTorch lets a CPU scalar tensor pass for a number
    if (call.traits.cpu_index && argument == 1 && !t.is_floating_point()) return;
    refuse_mixed(device, t, call);
  });
}

void check_matrix_unit(const Call& call) {
  if (!call.traits.matrix) return;
  call.each_tensor([&](const at::Tensor& t, size_t) {
    TORCH_CHECK(!on_npu(t) || t.scalar_type() != at::kDouble, call.traits.name,
                ": float64 (double) is not supported by the matrix unit of the NPU; use float32");
  });
  if (settings().strict == "allow" || !at::autocast::is_autocast_enabled(at::kCPU)) return;
  if (at::autocast::is_autocast_enabled(kNPU)) return;
  const std::string message = call.traits.name + ": autocast is enabled for 'cpu' around an NPU operator, which leaves it in "
      "float32; use torch.autocast('npu') (npu_sim, strict; NPU_SIM_STRICT=warn or allow lets it pass)";
  TORCH_CHECK(settings().strict == "warn", message);
  TORCH_WARN_ONCE(message);
}

// ---- one call: what it costs the device --------------------------------------------------------------------------

struct Cost {
  double bytes = 0;             // of all arguments and results
  double flops = 0;             // of the matrix unit
  double flops_per_result = 0;  // and for each element of the result
};

double nbytes(const at::Tensor& t) {
  return static_cast<double>(t.numel()) * t.itemsize();
}

double weights_per_output(const at::Tensor& kernel) {
  return kernel.numel() ? static_cast<double>(kernel.numel()) / kernel.size(0) : 0;
}

Cost cost_of_arguments(const Call& call) {
  Cost cost;
  const std::string& name = call.op.schema().name();
  const bool forward = name == "aten::convolution", backward = name == "aten::convolution_backward";
  double elements = 0;  // of the first factor, or the gradient
  call.each_tensor([&](const at::Tensor& t, size_t number) {
    cost.bytes += nbytes(t);
    const int argument = static_cast<int>(number);
    if (argument == (backward ? 0 : call.traits.product)) elements = t.numel();
    if (call.traits.product >= 0 && argument == call.traits.product + 1)
      cost.flops = 2 * elements * (t.dim() > 1 ? t.size(-1) : 1);
    if (forward && argument == 1) cost.flops_per_result = 2 * weights_per_output(t);
    if (backward && argument == 2) cost.flops = 4 * elements * weights_per_output(t);
  });
  return cost;
}

Ns duration(const Call& call, Cost cost) {
  for (size_t i = call.stack->size() - call.op.schema().returns().size(); i < call.stack->size(); ++i) {
    const c10::IValue& value = (*call.stack)[i];
    if (!value.isTensor() || !value.toTensor().defined()) continue;
    cost.bytes += nbytes(value.toTensor());
    cost.flops += cost.flops_per_result * value.toTensor().numel();
  }
  return operator_duration(call.traits.named_us, cost.flops, cost.bytes);
}

// An index of booleans is as long as there are true ones among them, which the host must know.
bool host_must_wait(const Call& call) {
  if (!call.traits.reads_values || !call.traits.cpu_index) return call.traits.reads_values;
  bool mask = false;
  call.each_tensor([&](const at::Tensor& t, size_t argument) {
    mask |= argument == 1 && (t.scalar_type() == at::kBool || t.scalar_type() == at::kByte);
  });
  return mask;
}

// ---- one call: running on the host -------------------------------------------------------------------------------

// The host aliases of one call's NPU tensors.
class HostAliases {
 public:
  explicit HostAliases(c10::DeviceIndex device) : device_(device) {}

  at::Tensor to_host(const at::Tensor& npu) {
    at::Tensor host = tensor_over(host_storage(npu.storage()), npu, kHostKeys);
    if (npu.unsafeGetTensorImpl()->is_wrapped_number()) host.unsafeGetTensorImpl()->set_wrapped_number(true);
    tensors_.emplace_back(npu, host);
    return host;
  }

  // The kernel may have resized an output: hand its new memory and geometry to the NPU tensor.
  void write_back() {
    for (auto& [npu, alias] : storages_) {
      auto* host = alias.unsafeGetStorageImpl();
      if (host->data() != npu->data()) npu->set_data_ptr_noswap(take_over(host, device_));
      if (host->nbytes() != npu->nbytes()) npu->set_nbytes(host->nbytes());
    }
    for (auto& [npu, host] : tensors_)
      if (!same_geometry(npu, host))
        npu.unsafeGetTensorImpl()->set_sizes_and_strides(host.sizes(), host.strides(), host.storage_offset());
  }

  // What the kernel returned: an argument, a view of an argument, or a new tensor.
  at::Tensor to_npu(const at::Tensor& host) {
    if (!host.defined()) return host;
    for (auto& [npu, alias] : tensors_)
      if (alias.is_same(host)) return npu;
    TORCH_CHECK_NOT_IMPLEMENTED(host.layout() == c10::kStrided, "npu_sim: only strided tensors are simulated");
    for (auto& [npu, alias] : storages_)
      if (alias.unsafeGetStorageImpl() == host.storage().unsafeGetStorageImpl()) return view_of(npu, host);
    return new_tensor(host);
  }

 private:
  c10::Storage host_storage(const c10::Storage& npu) {
    auto* key = npu.unsafeGetStorageImpl();
    for (auto& [known, alias] : storages_)
      if (known == key) return alias;
    // Resizable, so that a kernel may give an output new memory; write_back() then moves it over.
    c10::DataPtr memory(key->mutable_data(), c10::Device(c10::kCPU));
    storages_.emplace_back(key, c10::Storage(c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(),
        key->nbytes(), std::move(memory), c10::GetCPUAllocator(), /*resizable=*/true)));
    return storages_.back().second;
  }

  at::Tensor view_of(c10::StorageImpl* npu, const at::Tensor& host) {
    c10::DispatchKeySet keys = kNpuKeys;
    for (auto& [base, alias] : tensors_)
      if (base.storage().unsafeGetStorageImpl() == npu) {
        keys = base.key_set() - c10::DispatchKeySet({c10::DispatchKey::Conjugate, c10::DispatchKey::Negative});
        break;
      }
    // The VIEW constructor and the base's own keys, as in at::native::as_strided: a view of a normal tensor stays a
    // normal tensor under inference_mode.
    c10::Storage storage(c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(npu));
    auto view = at::detail::make_tensor<c10::TensorImpl>(c10::TensorImpl::VIEW, std::move(storage), keys, host.dtype());
    copy_geometry(host, view);
    return view;
  }

  // The device writes every result into a contiguous tensor, whatever the strides of the arguments.
  at::Tensor new_tensor(const at::Tensor& result) {
    const at::Tensor host = result.storage().use_count() == 1 ? result.contiguous() : result;
    auto* memory = host.storage().unsafeGetStorageImpl();
    c10::Storage storage = host.storage().use_count() == 1
        ? c10::Storage(c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), memory->nbytes(),
              take_over(memory, device_), allocator(), true))
        : copied(memory);  // somebody else holds it too
    storages_.emplace_back(storage.unsafeGetStorageImpl(), host.storage());  // a second result may share it
    return tensor_over(storage, host, kNpuKeys);
  }

  c10::Storage copied(c10::StorageImpl* host) {
    c10::Storage storage = new_storage(host->nbytes(), device_);
    if (host->nbytes()) std::memcpy(storage.mutable_data(), host->data(), host->nbytes());
    return storage;
  }

  c10::DeviceIndex device_;
  c10::SmallVector<std::pair<c10::StorageImpl*, c10::Storage>, 8> storages_;  // NPU storage, host alias
  c10::SmallVector<std::pair<at::Tensor, at::Tensor>, 8> tensors_;            // NPU tensor, host alias
};

// Replaces NPU tensors, devices and generators by their host counterparts. True if a generator was handed over.
bool arguments_to_host(const Call& call, HostAliases& host, c10::DeviceIndex device) {
  bool generator = false;
  for (size_t i = call.begin; i < call.stack->size(); ++i) {
    c10::IValue& value = (*call.stack)[i];
    if (value.isTensor()) {
      const at::Tensor t = value.toTensor();
      if (t.defined() && on_npu(t)) value = host.to_host(t);
      if (call.traits.labels == int(i - call.begin) && t.scalar_type() == at::kInt) value = value.toTensor().to(at::kLong);
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& t : value.toTensorList()) list.push_back(t.defined() && on_npu(t) ? host.to_host(t) : t);
      value = std::move(list);
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (std::optional<at::Tensor> t : value.toOptionalTensorList())
        list.push_back(t && t->defined() && on_npu(*t) ? std::optional<at::Tensor>(host.to_host(*t)) : t);
      value = std::move(list);
    } else if (value.isDevice()) {
      value = c10::Device(c10::kCPU);
    } else if (value.isGenerator()) {
      const at::Generator g = value.toGenerator();
      TORCH_CHECK(g.device().type() == kNPU, "Expected a 'npu' device type for generator but found '", g.device().type(), "'");
      value = host_generator(g);
      generator = true;
    } else if (value.isNone() && call.traits.generator &&
               call.op.schema().arguments()[i - call.begin].name() == "generator") {
      value = host_generator(default_generator(device));
      generator = true;
    }
  }
  return generator;
}

// A random operator without a generator argument (native_dropout) draws from the CPU's default generator: lend that
// the NPU generator's state for the call, so that torch.npu.manual_seed governs it and the CPU's stream stays put.
void run_with_lent_generator(const Call& call, c10::DeviceIndex device) {
  static std::mutex mutex;
  std::lock_guard<std::mutex> lock(mutex);
  at::Generator host = at::detail::getDefaultCPUGenerator(), npu = host_generator(default_generator(device));
  const at::Tensor saved = host.get_state();
  host.set_state(npu.get_state());
  try {
    call.op.redispatchBoxed(kHostKeys, call.stack);
  } catch (...) {
    host.set_state(saved);
    throw;
  }
  npu.set_state(host.get_state());
  host.set_state(saved);
}

void results_to_npu(const Call& call, HostAliases& host) {
  for (size_t i = call.stack->size() - call.op.schema().returns().size(); i < call.stack->size(); ++i) {
    c10::IValue& value = (*call.stack)[i];
    if (value.isTensor()) {
      at::Tensor t = std::move(value).toTensor();
      value = host.to_npu(t);
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& t : value.toTensorList()) list.push_back(host.to_npu(t));
      value = std::move(list);
    }
  }
}

} // namespace

at::Tensor tensor_over(c10::Storage storage, const at::Tensor& like, c10::DispatchKeySet keys) {
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), keys, like.dtype());
  copy_geometry(like, tensor);
  return tensor;
}

at::Tensor host_view(const at::Tensor& tensor) {
  if (!on_npu(tensor)) return tensor;
  auto* keep_alive = new c10::Storage(tensor.storage());
  c10::DataPtr memory(keep_alive->mutable_data(), keep_alive, [](void* s) { delete static_cast<c10::Storage*>(s); },
                      c10::Device(c10::kCPU));
  c10::Storage storage(c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), keep_alive->nbytes(),
                                                             std::move(memory), nullptr, false));
  return tensor_over(std::move(storage), tensor, kHostKeys);
}

std::map<std::string, std::array<int64_t, kPhases>> op_counts() {
  std::lock_guard<std::mutex> lock(traits_mutex());
  std::map<std::string, std::array<int64_t, kPhases>> counts;
  for (const auto& [schema, traits] : traits_by_schema())
    for (int phase = 0; phase < kPhases; ++phase) counts[traits.name][phase] += traits.calls[phase];
  return counts;
}

static void check_results(const Call& call) {
  for (size_t i = call.stack->size() - call.op.schema().returns().size(); i < call.stack->size(); ++i) {
    const c10::IValue& value = (*call.stack)[i];
    if (value.isTensor() && value.toTensor().defined()) check_overflow(value.toTensor());
    if (value.isTensorList())
      for (const at::Tensor& t : value.toTensorList()) check_overflow(t);
  }
}

static c10::SmallVector<at::Tensor, 4> written_arguments(const Call& call) {
  c10::SmallVector<at::Tensor, 4> written;
  call.each_tensor([&](const at::Tensor& t, size_t argument) {
    const auto* alias = call.op.schema().arguments()[argument].alias_info();
    if (alias && alias->isWrite() && on_npu(t)) written.push_back(t);
  });
  return written;
}

static void run_on_host(const Call& call, c10::DeviceIndex device) {
  const ClockStopped stopped;
  HostAliases host(device);
  const bool overflow = overflow_matters() && !call.traits.view;
  const auto written = overflow ? written_arguments(call) : c10::SmallVector<at::Tensor, 4>();
  const Cost cost = clock_is_on() ? cost_of_arguments(call) : Cost();
  const bool has_generator = arguments_to_host(call, host, device);
  if (call.traits.random && !has_generator)
    run_with_lent_generator(call, device);
  else if (call.traits.slow_in_half)
    run_in_float(call.op, call.stack);
  else
    call.op.redispatchBoxed(kHostKeys, call.stack);
  if (clock_is_on() && !call.traits.view) launch(device, current_stream(device), duration(call, cost));
  host.write_back();
  results_to_npu(call, host);
  if (!overflow) return;
  for (const at::Tensor& t : written) check_overflow(t);
  check_results(call);
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  enter_driver();
  const Call call(op, stack);
  const c10::DeviceIndex device = device_of(call);
  check_devices(call, device);
  check_matrix_unit(call);
  const bool waits = host_must_wait(call);
  run_on_host(call, device);
  if (waits) wait_for_stream(call.traits.name.c_str(), device, current_stream(device));
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

#if !NPU_SIM_TORCH(10)
// PyTorch's own since 2.10: what has no formula for derivatives goes on to the operator itself.
TORCH_LIBRARY_IMPL(_, AutogradPrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFallthrough());
}
#endif

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  // Composite kernels win over the fallback, and those of some operators do not do what the CPU's kernels do. Structured
  // operators give their results the strides of the arguments, and check for the dtypes that a CPU takes;
  const auto boxed = [] { return torch::CppFunction::makeFromBoxedFunction<&fallback>(); };
  const auto structured = [](const c10::OperatorHandle& op) {
    return op.hasKernelForDispatchKey(c10::DispatchKey::CompositeExplicitAutogradNonFunctional) &&
           op.hasKernelForDispatchKey(c10::DispatchKey::CPU) && !op.schema().is_mutable();
  };
  for (const c10::OperatorName& name : c10::Dispatcher::singleton().getAllOpNames()) {
    const auto op = c10::Dispatcher::singleton().findSchema(name);
    if (name.getNamespace() == "aten" && op && structured(*op)) m.impl(c10::toString(name).c_str(), boxed());
  }
  // convolutions end in "convolution_overrideable not implemented", and the last one rounds otherwise.
  for (const char* name : {"convolution", "convolution_backward", "mish_backward"}) m.impl(name, boxed());
}

} // namespace npu_sim
