// Faults that a test asks for (_faults.py), and what fp16 does beyond 65504.
#include "npu_sim.h"

#include <ATen/ATen.h>

#include <limits>

namespace npu_sim {

Faults& faults() {
  static auto* f = new Faults;
  return *f;
}

// INF_NAN mode lets infinity and NaN stand. The saturating mode of the first 910 has neither: a result is the largest
// number instead (NaN is 0), and a flag of the device says that something overflowed since it was cleared.
static void saturate(const at::Tensor& host, c10::DeviceIndex device) {
  if (at::isfinite(host).all().item<bool>()) return;
  at::nan_to_num_(const_cast<at::Tensor&>(host), 0.0, 65504.0, -65504.0);
  faults().overflowed[device] = true;
}

static void overflow_once(const at::Tensor& host) {
  if (host.numel() == 0 || !faults().overflow.exchange(false)) return;
  host.as_strided({1}, {1}, host.storage_offset()).fill_(std::numeric_limits<double>::infinity());
}

void check_overflow(const at::Tensor& result) {
  const bool fp16 = result.scalar_type() == at::kHalf;
  if (!fp16 && result.scalar_type() != at::kBFloat16) return;
  const at::Tensor host = host_view(result);
  if (faults().overflow && current_phase() == kBackward) overflow_once(host);
  if (fp16 && faults().saturate) saturate(host, result.device().index());
}

} // namespace npu_sim
