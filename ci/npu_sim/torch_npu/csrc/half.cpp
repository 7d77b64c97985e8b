// Operators whose fp16 and bf16 kernels are slow on a CPU run in float32, and their results are rounded.
//
// Each half tensor of the call is replaced by a float32 tensor of the same geometry; what the operator writes is rounded
// back into the half tensor, which aliases the NPU tensor's memory. So in-place and out= forms and views stay right.
#include "npu_sim.h"

#include <ATen/ATen.h>
#include <ATen/MemoryOverlap.h>
#include <ATen/ops/resize_native.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/StorageImpl.h>

#include <unordered_set>

namespace npu_sim {
namespace {

// Elements from the first to the last, of whatever strides.
int64_t extent(const at::Tensor& t) {
  if (t.numel() == 0) return 0;
  int64_t last = 0;
  for (int64_t i = 0; i < t.dim(); ++i) last += (t.size(i) - 1) * t.stride(i);
  return last + 1;
}

at::Tensor flat(const at::Tensor& t, int64_t elements) {
  auto view = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(t.storage()), c10::DispatchKeySet(c10::DispatchKey::CPU),
                                                       t.dtype());
  view.unsafeGetTensorImpl()->set_sizes_and_strides(c10::IntArrayRef{elements}, c10::IntArrayRef{1}, t.storage_offset());
  return view;
}

// A float32 tensor of the geometry of `half`, without its values.
at::Tensor float_like(const at::Tensor& half) {
  const size_t bytes = extent(half) * sizeof(float);
  c10::Storage storage(c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), bytes,
                                                             c10::GetCPUAllocator(), /*resizable=*/true));
  auto wide = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU),
                                                       caffe2::TypeMeta::Make<float>());
  wide.unsafeGetTensorImpl()->set_sizes_and_strides(half.sizes(), half.strides(), 0);
  return wide;
}

class WideCall {
 public:
  WideCall(const c10::OperatorHandle& op, torch::jit::Stack* stack)
      : op_(op), stack_(stack), begin_(stack->size() - op.schema().arguments().size()) {}

  // False where the call is the native kernel's: no half tensors, several dtypes (which it may refuse), a dtype that the
  // result shall have, or arguments that share memory which is written (which it may refuse, too) and are not the same tensor.
  bool possible() {
    each_argument([&](at::Tensor& t, const c10::Argument& argument) {
      const bool written = argument.alias_info() && argument.alias_info()->isWrite();
      tensors_.push_back({t, at::Tensor(), written, argument.is_out()});
    });
    if (tensors_.empty()) return false;
    half_ = tensors_[0].half.scalar_type();
    if (half_ != at::kHalf && half_ != at::kBFloat16) return false;
    for (size_t i = 0; i < op_.schema().arguments().size(); ++i)
      if (op_.schema().arguments()[i].name() == "dtype" && !(*stack_)[begin_ + i].isNone()) return false;
    for (const Pair& a : tensors_) {
      if (a.half.scalar_type() != half_) return false;
      if (!a.written) continue;
      if (at::has_internal_overlap(a.half) == at::MemOverlap::Yes) return false;
      for (const Pair& b : tensors_)
        if (a.half.is_alias_of(b.half) && !same_geometry(a.half, b.half)) return false;
    }
    return true;
  }

  void run() {
    size_t next = 0;
    each_argument([&](at::Tensor& t, const c10::Argument&) { t = widened(next++); });
    op_.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack_);
    for (const Pair& pair : tensors_)
      if (pair.written) round_into(pair.half, pair.wide);
    each_value(stack_->size() - op_.schema().returns().size(), [&](at::Tensor& t, size_t) { t = rounded(t); });
  }

 private:
  struct Pair {
    at::Tensor half, wide;
    bool written, out;
  };

  // Calls visit(tensor, number) for each defined tensor of the stack from `first`, which visit may replace.
  template <class Visit>
  void each_value(size_t first, const Visit& visit) {
    for (size_t i = first; i < stack_->size(); ++i) {
      c10::IValue& value = (*stack_)[i];
      if (value.isTensor() && value.toTensor().defined()) {
        at::Tensor t = value.toTensor();
        visit(t, i - first);
        value = std::move(t);
      } else if (value.isTensorList()) {
        c10::List<at::Tensor> list;
        for (at::Tensor t : value.toTensorList()) {
          if (t.defined()) visit(t, i - first);
          list.push_back(std::move(t));
        }
        value = std::move(list);
      }
    }
  }

  template <class Visit>
  void each_argument(const Visit& visit) {
    each_value(begin_, [&](at::Tensor& t, size_t number) { visit(t, op_.schema().arguments()[number]); });
  }

  const at::Tensor& widened(size_t number) {
    Pair& pair = tensors_[number];
    for (size_t i = 0; i < number && !pair.wide.defined(); ++i)
      if (tensors_[i].half.is_alias_of(pair.half) && same_geometry(tensors_[i].half, pair.half)) pair.wide = tensors_[i].wide;
    if (!pair.wide.defined()) {
      pair.wide = float_like(pair.half);
      const int64_t elements = extent(pair.half);
      if (!pair.out) flat(pair.wide, elements).copy_(flat(pair.half, elements));
    }
    return pair.wide;
  }

  static void round_into(const at::Tensor& half, const at::Tensor& wide) {
    if (half.sizes() != wide.sizes()) {  // the kernel has resized its output
      at::native::resize_(half, wide.sizes());
      half.unsafeGetTensorImpl()->set_sizes_and_strides(wide.sizes(), wide.strides(), half.storage_offset());
    }
    half.copy_(wide);
  }

  at::Tensor rounded(const at::Tensor& t) {
    for (const Pair& pair : tensors_)
      if (pair.wide.is_same(t)) return pair.half;
    return t.scalar_type() == at::kFloat ? t.to(half_) : t;
  }

  const c10::OperatorHandle& op_;
  torch::jit::Stack* stack_;
  size_t begin_;
  at::ScalarType half_ = at::kHalf;
  c10::SmallVector<Pair, 4> tensors_;  // of the arguments, in their order
};

} // namespace

bool slow_in_half(const std::string& name) {
  // At least three times as slow as in float32, with AVX-512 or without it; the others gain less than the casts cost. Listed
  // are the operators that get here: linear arrives as addmm, foreach operators one tensor at a time.
  static const std::unordered_set<std::string> slow{"aten::convolution", "aten::convolution_backward", "aten::mm", "aten::addmm",
      "aten::bmm", "aten::baddbmm", "aten::addbmm", "aten::addmv", "aten::dot", "aten::_adaptive_avg_pool2d_backward",
      "aten::linalg_vector_norm", "aten::norm", "aten::var", "aten::std", "aten::var_mean", "aten::std_mean", "aten::tanh",
      "aten::pow", "aten::log", "aten::erfc", "aten::erfinv", "aten::logit", "aten::gelu", "aten::gelu_backward",
      "aten::binary_cross_entropy", "aten::grid_sampler_2d", "aten::grid_sampler_2d_backward"};
  return slow.count(name.back() == '_' ? name.substr(0, name.size() - 1) : name) > 0;
}

void run_in_float(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  WideCall call(op, stack);
  if (call.possible())
    call.run();
  else
    op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
}

} // namespace npu_sim
