// A device that is none: its memory is the host's, but torch takes it for another one. A tensor of the host among its
// own is an error, as on a GPU, and what a GPU would have to be waited for is noted, or refused.

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/Resize.h>
#include <c10/core/impl/alloc_cpu.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <set>

namespace {

constexpr auto SIMULATED = c10::DeviceType::PrivateUse1;
const c10::Device DEVICE(SIMULATED, 0);
std::vector<std::string> waits;
bool refuses = false;

// Operations whose result the host has to know.
const std::set<std::string> WAITING = {
    "aten::nonzero", "aten::masked_select", "aten::equal", "aten::_unique2", "aten::unique_consecutive",
    "aten::unique_dim", "aten::repeat_interleave", "aten::bincount", "aten::is_set_to"};

void wait_for(const std::string& what) {
  TORCH_CHECK(!refuses, "the host waits for the device: ", what);
  waits.push_back(what);
}

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return SIMULATED; }
  c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
  c10::Device getDevice() const override { return DEVICE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
  c10::Stream getDefaultStream(c10::Device) const override { return getStream(DEVICE); }
  c10::Stream getNewStream(c10::Device, int) const override { return getStream(DEVICE); }
  c10::Stream exchangeStream(c10::Stream) const override { return getStream(DEVICE); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
};

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    void* data = size ? c10::alloc_cpu(size) : nullptr;
    return {data, data, &c10::free_cpu, DEVICE};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &c10::free_cpu; }
  void copy_data(void* to, const void* from, std::size_t size) const override { memcpy(to, from, size); }
};

Allocator allocator;

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &allocator,
                                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(dtype));
}

bool is_here(const at::Tensor& t) { return t.defined() && t.device().type() == SIMULATED; }

// The same memory, as a tensor of the host.
at::Tensor on_host(const at::Tensor& t) {
  if (!t.storage().nbytes()) return at::empty(t.sizes(), at::TensorOptions().dtype(t.dtype()).device(c10::kCPU));
  c10::Storage storage(c10::Storage::use_byte_size_t(), t.storage().nbytes(),
                       c10::DataPtr(t.storage().mutable_data(), c10::Device(c10::kCPU)), nullptr, false);
  auto result = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU),
                                                         t.dtype());
  result.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
  return result;
}

at::Tensor view_of(const at::Tensor& t, const at::Tensor& like) {
  auto result = at::detail::make_tensor<c10::TensorImpl>(c10::TensorImpl::VIEW, c10::Storage(t.storage()), t.key_set(),
                                                         like.dtype());
  result.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  return result;
}

at::Tensor& copy_(at::Tensor& self, const at::Tensor& src, bool non_blocking) {
  if (!self.numel()) return self;
  if (!is_here(self)) wait_for("a copy to the host");
  if (!is_here(src) && !non_blocking) wait_for("a copy from the host");
  at::Tensor to = is_here(self) ? on_host(self) : self;
  to.copy_(is_here(src) ? on_host(src) : src);
  return self;
}

at::Scalar number(const at::Tensor& self) {
  wait_for("a number is read");
  return on_host(self).item();
}

const at::Tensor& resize_(const at::Tensor& self, at::IntArrayRef size, std::optional<at::MemoryFormat>) {
  auto bytes = at::detail::computeStorageNbytesContiguous(size, self.dtype().itemsize(), self.storage_offset());
  if (bytes > self.storage().nbytes()) {
    auto more = allocator.allocate(bytes);
    if (self.storage().nbytes()) memcpy(more.get(), self.storage().data(), self.storage().nbytes());
    self.storage().set_data_ptr_noswap(std::move(more));
    self.storage().set_nbytes(bytes);
  }
  self.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  return self;
}

at::Tensor& set_strided(at::Tensor& self, at::Storage source, int64_t offset, at::IntArrayRef size,
                        at::IntArrayRef stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(source));
  self.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  return self;
}

at::Tensor& set_whole(at::Tensor& self, at::Storage source) {
  const int64_t size = source.nbytes() / self.dtype().itemsize();
  return set_strided(self, std::move(source), 0, {size}, {1});
}

struct Call {
  const c10::OperatorHandle& op;
  std::vector<std::pair<at::Tensor, at::Tensor>> pairs;  // of here, on the host
  std::vector<at::Tensor> others;

  at::Tensor lower(const at::Tensor& t) {
    if (!is_here(t)) {
      if (t.defined()) {
        TORCH_CHECK(t.dim() == 0 && op.hasTag(at::Tag::pointwise), op.schema().name(),
                    ": expected all tensors to be on the same device, but found ", t.device(), " among ", DEVICE);
        others.push_back(t);
      }
      return t;
    }
    pairs.emplace_back(t, on_host(t));
    return pairs.back().second;
  }

  at::Tensor raise(const at::Tensor& t) {
    if (!t.defined()) return t;
    for (auto& [here, host] : pairs) {
      if (t.is_same(host)) {
        if (t.sizes() != here.sizes()) {  // an empty one was given, to be written
          resize_(here, t.sizes(), {});
          on_host(here).copy_(t);
        }
        return here;
      }
      if (t.storage().unsafeGetStorageImpl() == host.storage().unsafeGetStorageImpl()) return view_of(here, t);
    }
    for (auto& other : others)
      TORCH_CHECK(!t.is_same(other), op.schema().name(), ": a tensor of the host is written from ", DEVICE);
    auto made = empty_strided(t.sizes(), t.strides(), c10::typeMetaToScalarType(t.dtype()), {}, {}, {});
    if (t.storage().nbytes())
      memcpy(made.storage().mutable_data(), static_cast<const char*>(t.storage().data()) + t.storage_offset() * t.itemsize(),
             made.storage().nbytes());
    return made;
  }
};

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& name = op.schema().name();
  if (WAITING.count(name)) wait_for(name);
  Call call{op, {}, {}};
  const size_t num = op.schema().arguments().size(), base = stack->size() - num;
  for (size_t i = base; i < stack->size(); ++i) {
    auto& value = (*stack)[i];
    if (value.isTensor()) {
      value = call.lower(value.toTensor());
    } else if (value.isTensorList()) {
      std::vector<at::Tensor> made;
      for (const at::Tensor& t : value.toTensorVector()) made.push_back(call.lower(t));
      value = c10::List<at::Tensor>(made);
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> made;
      for (std::optional<at::Tensor> t : value.toOptionalTensorVector()) {
        if (t && t->defined() && (t->scalar_type() == at::kBool || t->scalar_type() == at::kByte))
          wait_for(name + " by a mask");
        made.push_back(t ? std::optional<at::Tensor>(call.lower(*t)) : std::nullopt);
      }
      value = made;
    } else if (value.isDevice()) {
      value = c10::Device(c10::kCPU);
    }
  }
  op.callBoxed(stack);
  const size_t results = op.schema().returns().size();
  for (size_t i = stack->size() - results; i < stack->size(); ++i) {
    auto& value = (*stack)[i];
    if (value.isTensor()) {
      value = call.raise(value.toTensor());
    } else if (value.isTensorList()) {
      std::vector<at::Tensor> made;
      for (const at::Tensor& t : value.toTensorVector()) made.push_back(call.raise(t));
      value = c10::List<at::Tensor>(made);
    }
  }
}

std::vector<std::string> waited() {
  auto found = waits;
  waits.clear();
  return found;
}

void refuse(bool on) { refuses = on; }

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

int registered = [] {
  c10::SetAllocator(SIMULATED, &allocator);
  at::RegisterPrivateUse1HooksInterface(new Hooks());
  return 0;
}();

}  // namespace

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("copy_", &copy_);
  m.impl("_local_scalar_dense", &number);
  m.impl("resize_", &resize_);
  m.impl("set_.source_Storage", &set_whole);
  m.impl("set_.source_Storage_storage_offset", &set_strided);
}

TORCH_LIBRARY(simulated, m) {
  m.def("waited() -> str[]", &waited);
  m.def("refuse(bool on) -> ()", &refuse);
}
