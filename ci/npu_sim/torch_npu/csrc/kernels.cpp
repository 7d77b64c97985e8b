// The few operators that cannot go through the fallback: they make memory, move it between devices, or change what
// memory a tensor has; and the cells of LSTM and GRU, which PyTorch always takes fused on this kind of device.
#include "npu_sim.h"

#include <ATen/ATen.h>
#include <ATen/ops/_to_copy_native.h>
#include <ATen/ops/empty_like_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <c10/core/StorageImpl.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

namespace npu_sim {
namespace {

using Dtype = std::optional<at::ScalarType>;
using Layout = std::optional<at::Layout>;
using Device = std::optional<c10::Device>;
using Flag = std::optional<bool>;
using Format = std::optional<at::MemoryFormat>;

// The device has no channels_last; its own formats are not PyTorch's memory formats.
bool other_than_contiguous(const Format& format) {
  return format && *format != at::MemoryFormat::Contiguous && *format != at::MemoryFormat::Preserve;
}

// ---- allocation --------------------------------------------------------------------------------------------------

c10::DeviceIndex target(const Device& device, const Flag& pin_memory) {
  TORCH_CHECK(!pin_memory.value_or(false), "Only dense CPU tensors can be pinned");
  const c10::DeviceIndex index = device && device->has_index() ? device->index() : current_device();
  check_index(index);
  return index;
}

at::Tensor new_tensor(int64_t elements, const Dtype& dtype, c10::DeviceIndex device) {
  const auto type = c10::scalarTypeToTypeMeta(c10::dtype_or_default(dtype));
  return at::detail::make_tensor<c10::TensorImpl>(new_storage(elements * type.itemsize(), device),
                                                  c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), type);
}

at::Tensor empty(at::IntArrayRef size, Dtype dtype, Layout, Device device, Flag pin_memory, Format format) {
  int64_t elements = 1;
  for (const int64_t s : size) {
    TORCH_CHECK(s >= 0, "Trying to create tensor with negative dimension ", s, ": ", size);
    elements *= s;
  }
  TORCH_CHECK(format.value_or(at::MemoryFormat::Contiguous) == at::MemoryFormat::Contiguous,
              "Only c10::MemoryFormat::Contiguous is supported for creating a npu tensor");  // torch_npu's own words, as below
  at::Tensor t = new_tensor(elements, dtype, target(device, pin_memory));
  t.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  return t;
}

// The real one takes any format, and makes a contiguous tensor.
at::Tensor empty_like(const at::Tensor& self, Dtype dtype, Layout layout, Device device, Flag pin_memory, Format format) {
  const bool here = !device || device->type() == kNPU;
  if (here && format && *format != at::MemoryFormat::Preserve) format = at::MemoryFormat::Contiguous;
  return at::native::empty_like(self, dtype, layout, device, pin_memory, format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, Dtype dtype, Layout, Device device, Flag pin_memory) {
  int64_t elements = 1;
  for (size_t i = 0; i < size.size(); ++i) {
    if (size[i] == 0) elements = 0;
    if (elements) elements += (size[i] - 1) * stride[i];
  }
  at::Tensor t = new_tensor(elements, dtype, target(device, pin_memory));
  t.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride);
  return t;
}

// ---- copies ------------------------------------------------------------------------------------------------------

Ns copy_on_host(at::Tensor& self, const at::Tensor& source, const char* rate) {
  const ClockStopped stopped;
  host_view(self).copy_(host_view(source));
  if (overflow_matters() && self.device().type() == kNPU && source.scalar_type() != self.scalar_type()) check_overflow(self);
  return clock_is_on() ? copy_duration(source.numel() * source.itemsize(), rate) : 0;
}

void copy_between_npus(at::Tensor& self, const at::Tensor& source) {
  const c10::DeviceIndex to = self.device().index(), from = source.device().index();
  const Ns duration = copy_on_host(self, source, to == from ? "vector_gbs" : "between_gbs");
  launch(from, current_stream(from), duration);
  if (to != from) stream_waits(to, current_stream(to), stream_time(from, current_stream(from)));
}

// The host waits unless its side of the copy is pinned and the copy non_blocking; a copy from pageable memory always
// waits. So the clock's asynchronous copies are those that need pinned memory on a device.
void copy_across(at::Tensor& self, const at::Tensor& source, bool non_blocking) {
  const bool to_host = self.is_cpu();
  const at::Tensor& host = to_host ? self : source;
  const c10::DeviceIndex device = (to_host ? source : self).device().index();
  const bool pinned = is_pinned(host);
  (to_host ? counters().to_host_bytes : counters().to_device_bytes) += source.numel() * source.itemsize();
  if (!pinned) ++counters().pageable_copies;
  launch(device, current_stream(device), copy_on_host(self, source, to_host ? "to_host_gbs" : "to_device_gbs"));
  if (pinned && non_blocking) return;
  wait_for_stream(to_host ? "copy to the host" : pinned ? "blocking copy to the device" : "copy from pageable memory", device,
                  current_stream(device));
}

// One kernel for all directions: PrivateUse1 outranks CPU in the dispatcher.
at::Tensor& copy_(at::Tensor& self, const at::Tensor& source, bool non_blocking) {
  enter_driver();
  if (self.is_cpu() || source.is_cpu())
    copy_across(self, source, non_blocking);
  else if (self.device().type() == kNPU && source.device().type() == kNPU)
    copy_between_npus(self, source);
  else
    host_view(self).copy_(host_view(source));
  return self;
}

at::Tensor copy_from(const at::Tensor& self, const at::Tensor& destination, bool non_blocking) {
  at::Tensor to = destination;
  return copy_(to, self, non_blocking);
}

at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& destination) {
  at::Tensor to = destination;
  to.resize_(self.sizes());
  return copy_(to, self, false);
}

at::Tensor to_copy(const at::Tensor& self, Dtype dtype, Layout layout, Device device, Flag pin_memory, bool non_blocking,
                   Format format) {
  if (dtype == at::kDouble && !layout && (!device || device->type() == kNPU)) {
    TORCH_WARN_ONCE("Device do not support double dtype now, dtype cast replace with float.");  // torch_npu's own words
    dtype = at::kFloat;
  }
  TORCH_CHECK(!other_than_contiguous(format), "Only contiguous_format or preserve_format is supported.");
  const auto otherwise = self.device().type() == kNPU ? at::MemoryFormat::Contiguous : at::MemoryFormat::Preserve;
  return at::native::_to_copy(self, dtype, layout, device, pin_memory, non_blocking, format.value_or(otherwise));
}

// Whatever the format, the device's clone is contiguous.
at::Tensor clone(const at::Tensor& self, Format) {
  return at::empty(self.sizes(), self.options()).copy_(self);
}

at::Tensor contiguous(const at::Tensor& self, at::MemoryFormat format) {
  if (self.is_contiguous(format)) return self;
  TORCH_CHECK(format == at::MemoryFormat::Contiguous, "NPU contiguous operator only supported contiguous memory format.");
  return self.clone();
}

// ---- storage -----------------------------------------------------------------------------------------------------

const at::Tensor& resize_(const at::Tensor& self, c10::SymIntArrayRef size, Format format) {
  return at::native::resize_(self, C10_AS_INTARRAYREF_SLOW(size), format);
}

const at::Tensor& resize_as_(const at::Tensor& self, const at::Tensor& like, Format format) {
  TORCH_CHECK(!other_than_contiguous(format), "NPU only support format is contiguous_format or preserve_format.");
  return self.resize_(like.sizes());
}

at::Tensor& set_storage_offset(at::Tensor& self, at::Storage storage, int64_t offset, at::IntArrayRef size,
                               at::IntArrayRef stride) {
  return at::native::set_storage_cpu_(self, std::move(storage), offset, size, stride);
}

at::Tensor& set_storage(at::Tensor& self, at::Storage storage) {
  const int64_t elements = storage.nbytes() / self.dtype().itemsize();
  return at::native::set_storage_cpu_(self, std::move(storage), 0, {elements}, {});
}

at::Tensor& set_tensor(at::Tensor& self, const at::Tensor& source) {
  return at::native::set_storage_cpu_(self, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}

at::Tensor& set_empty(at::Tensor& self) {
  return at::native::set_storage_cpu_(self, new_storage(0, self.device().index()), 0, {0}, {});
}

// True keeps the identity of parameters in module.to("npu"): optimizers built before it and tied weights stay valid.
bool has_compatible_shallow_copy_type(const at::Tensor& self, const at::Tensor& from) {
  const auto dense = [](const at::Tensor& t) {
    return t.layout() == c10::kStrided && (t.device().type() == kNPU || t.is_cpu());
  };
  return self.key_set() == from.key_set() || (dense(self) && dense(from));
}

void record_stream(at::Tensor&, c10::Stream) {}

// ---- recurrent cells, as differentiable formulas -----------------------------------------------------------------

at::Tensor with_bias(const at::Tensor& gates, const std::optional<at::Tensor>& bias) {
  return bias && bias->defined() ? gates + *bias : gates;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> lstm_cell(const at::Tensor& input_gates, const at::Tensor& hidden_gates,
    const at::Tensor& cx, const std::optional<at::Tensor>& input_bias, const std::optional<at::Tensor>& hidden_bias) {
  const at::Tensor gates = with_bias(with_bias(input_gates + hidden_gates, input_bias), hidden_bias);
  const auto g = gates.chunk(4, 1);  // input, forget, cell, output
  const at::Tensor cy = g[1].sigmoid() * cx + g[0].sigmoid() * g[2].tanh();
  return {g[3].sigmoid() * cy.tanh(), cy, gates};
}

std::tuple<at::Tensor, at::Tensor> gru_cell(const at::Tensor& input_gates, const at::Tensor& hidden_gates,
    const at::Tensor& hx, const std::optional<at::Tensor>& input_bias, const std::optional<at::Tensor>& hidden_bias) {
  const at::Tensor all = with_bias(input_gates, input_bias);
  const auto i = all.chunk(3, 1), h = with_bias(hidden_gates, hidden_bias).chunk(3, 1);  // reset, update, new
  const at::Tensor reset = (i[0] + h[0]).sigmoid(), update = (i[1] + h[1]).sigmoid();
  const at::Tensor candidate = (i[2] + reset * h[2]).tanh();
  return {candidate + update * (hx - candidate), all};
}

} // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("empty_like", &empty_like);
  m.impl("clone", &clone);
  m.impl("contiguous", &contiguous);
  m.impl("copy_", &copy_);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_to_copy", &to_copy);
  m.impl("resize_", &resize_);
  m.impl("resize_as_", &resize_as_);
  m.impl("set_", &set_empty);
  m.impl("set_.source_Tensor", &set_tensor);
  m.impl("set_.source_Storage", &set_storage);
  m.impl("set_.source_Storage_storage_offset", &set_storage_offset);
  m.impl("_has_compatible_shallow_copy_type", &has_compatible_shallow_copy_type);
  m.impl("record_stream", &record_stream);
}

TORCH_LIBRARY_IMPL(aten, AutogradPrivateUse1, m) {
  m.impl("contiguous", &contiguous);
  m.impl("_thnn_fused_lstm_cell", &lstm_cell);
  m.impl("_thnn_fused_gru_cell", &gru_cell);
}

} // namespace npu_sim
