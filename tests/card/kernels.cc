// Kernels that the stand-in card needs beside Paddle's CPU kernels.
//
// Paddle runs its CPU kernels where a custom device has none, but the CPU has no float16 and bfloat16
// kernels for most operators. Those in TABLE get them here: inputs are widened to float32, the CPU's
// float32 kernel computes, outputs are rounded to half precision. `contiguous` and `strided_copy`
// have no fallback in Paddle, so that a view of a tensor could not be copied; they are written out.
#include <cmath>
#include <cstring>
#include <deque>
#include <type_traits>

#include "card.h"
#include "paddle/phi/backends/cpu/cpu_context.h"
#include "paddle/phi/backends/custom/custom_context.h"
#include "paddle/phi/common/bfloat16.h"
#include "paddle/phi/common/float16.h"
#include "paddle/phi/core/dense_tensor.h"
#include "paddle/phi/core/kernel_context.h"
#include "paddle/phi/core/kernel_factory.h"
#include "paddle/phi/core/kernel_registry.h"
#include "paddle/phi/kernels/activation_grad_kernel.h"
#include "paddle/phi/kernels/activation_kernel.h"
#include "paddle/phi/kernels/adamw_kernel.h"
#include "paddle/phi/kernels/amp_kernel.h"
#include "paddle/phi/kernels/batch_norm_grad_kernel.h"
#include "paddle/phi/kernels/batch_norm_kernel.h"
#include "paddle/phi/kernels/clip_kernel.h"
#include "paddle/phi/kernels/concat_grad_kernel.h"
#include "paddle/phi/kernels/conv_grad_kernel.h"
#include "paddle/phi/kernels/conv_kernel.h"
#include "paddle/phi/kernels/elementwise_add_grad_kernel.h"
#include "paddle/phi/kernels/elementwise_add_kernel.h"
#include "paddle/phi/kernels/elementwise_divide_kernel.h"
#include "paddle/phi/kernels/elementwise_kernel.h"
#include "paddle/phi/kernels/elementwise_multiply_grad_kernel.h"
#include "paddle/phi/kernels/elementwise_multiply_kernel.h"
#include "paddle/phi/kernels/elementwise_subtract_kernel.h"
#include "paddle/phi/kernels/gather_grad_kernel.h"
#include "paddle/phi/kernels/gather_kernel.h"
#include "paddle/phi/kernels/group_norm_grad_kernel.h"
#include "paddle/phi/kernels/group_norm_kernel.h"
#include "paddle/phi/kernels/merged_momentum_kernel.h"
#include "paddle/phi/kernels/momentum_kernel.h"
#include "paddle/phi/kernels/pool_grad_kernel.h"
#include "paddle/phi/kernels/pool_kernel.h"
#include "paddle/phi/kernels/squared_l2_norm_kernel.h"
#include "paddle/phi/kernels/sync_batch_norm_grad_kernel.h"
#include "paddle/phi/kernels/sync_batch_norm_kernel.h"

namespace {

using phi::CPUContext;
using phi::DataType;
using phi::DenseTensor;

#define TABLE(X)                                          \
  X(conv2d, phi::ConvKernel)                              \
  X(conv2d_grad, phi::ConvGradKernel)                     \
  X(batch_norm, phi::BatchNormKernel)                     \
  X(batch_norm_grad, phi::BatchNormGradKernel)            \
  X(group_norm, phi::GroupNormKernel)                     \
  X(group_norm_grad, phi::GroupNormGradKernel)            \
  X(pool2d, phi::Pool2dKernel)                            \
  X(pool2d_grad, phi::Pool2dGradKernel)                   \
  X(relu, phi::ReluKernel)                                \
  X(relu_grad, phi::ReluGradKernel)                       \
  X(concat_grad, phi::ConcatGradKernel)                   \
  X(add, phi::AddKernel)                                  \
  X(add_grad, phi::AddGradKernel)                         \
  X(subtract, phi::SubtractKernel)                        \
  X(multiply, phi::MultiplyKernel)                        \
  X(multiply_grad, phi::MultiplyGradKernel)               \
  X(divide, phi::DivideKernel)                            \
  X(maximum, phi::MaximumKernel)                          \
  X(minimum, phi::MinimumKernel)                          \
  X(clip, phi::ClipKernel)                                \
  X(gather, phi::GatherKernel)                            \
  X(gather_grad, phi::GatherGradKernel)                   \
  X(sync_batch_norm, phi::SyncBatchNormKernel)            \
  X(sync_batch_norm_grad, phi::SyncBatchNormGradKernel)   \
  X(squared_l2_norm, phi::SquaredL2NormKernel)            \
  X(check_finite_and_unscale, phi::CheckFiniteAndUnscaleKernel) \
  X(update_loss_scaling, phi::UpdateLossScalingKernel)

bool is_half(const DenseTensor& t) {
  return t.dtype() == DataType::FLOAT16 || t.dtype() == DataType::BFLOAT16;
}

template <class To, class From>
void cast(const CPUContext& context, const DenseTensor& from, DenseTensor* to) {
  const From* source = from.data<From>();
  To* target = context.Alloc<To>(to);
  for (int64_t i = 0; i < from.numel(); ++i) {
    target[i] = static_cast<To>(static_cast<float>(source[i]));
  }
}

DenseTensor widened(const CPUContext& context, const DenseTensor& half) {
  if (!is_half(half)) return half;
  DenseTensor wide;
  wide.Resize(half.dims());
  if (!half.initialized()) {  // a kernel that needs the shape alone
    wide.set_type(DataType::FLOAT32);
    return wide;
  }
  if (half.dtype() == DataType::FLOAT16) {
    cast<float, phi::dtype::float16>(context, half, &wide);
  } else {
    cast<float, phi::dtype::bfloat16>(context, half, &wide);
  }
  return wide;
}

void narrow(const CPUContext& context, const DenseTensor& wide, DenseTensor* half) {
  if (half->dtype() == DataType::FLOAT16) {
    cast<phi::dtype::float16, float>(context, wide, half);
  } else {
    cast<phi::dtype::bfloat16, float>(context, wide, half);
  }
}

// One argument of a kernel: `pass` is what the float32 kernel gets, `back` returns what it wrote.
template <class A>
struct Argument {
  A value;
  Argument(const CPUContext&, A a) : value(a) {}
  A pass() { return value; }
  void back(const CPUContext&) {}
};

template <>
struct Argument<const DenseTensor&> {
  DenseTensor wide;
  Argument(const CPUContext& c, const DenseTensor& t) : wide(widened(c, t)) {}
  const DenseTensor& pass() { return wide; }
  void back(const CPUContext&) {}
};

template <>
struct Argument<const paddle::optional<DenseTensor>&> {
  paddle::optional<DenseTensor> wide;
  Argument(const CPUContext& c, const paddle::optional<DenseTensor>& t) {
    if (t) wide = widened(c, *t);
  }
  const paddle::optional<DenseTensor>& pass() { return wide; }
  void back(const CPUContext&) {}
};

template <>
struct Argument<const std::vector<const DenseTensor*>&> {
  std::vector<DenseTensor> wide;
  std::vector<const DenseTensor*> pointers;
  Argument(const CPUContext& c, const std::vector<const DenseTensor*>& all) {
    wide.reserve(all.size());
    for (const DenseTensor* t : all) wide.push_back(widened(c, *t));
    for (DenseTensor& t : wide) pointers.push_back(&t);
  }
  const std::vector<const DenseTensor*>& pass() { return pointers; }
  void back(const CPUContext&) {}
};

template <>
struct Argument<DenseTensor*> {
  DenseTensor *real, wide;
  Argument(const CPUContext&, DenseTensor* t) : real(t) {
    if (t && is_half(*t)) wide.Resize(t->dims());
  }
  DenseTensor* pass() { return real && is_half(*real) ? &wide : real; }
  void back(const CPUContext& c) {
    if (real && is_half(*real)) narrow(c, wide, real);
  }
};

template <>
struct Argument<std::vector<DenseTensor*>> {
  std::vector<Argument<DenseTensor*>> all;
  Argument(const CPUContext& c, const std::vector<DenseTensor*>& tensors) {
    for (DenseTensor* t : tensors) all.emplace_back(c, t);
  }
  std::vector<DenseTensor*> pass() {
    std::vector<DenseTensor*> pointers;
    for (auto& one : all) pointers.push_back(one.pass());
    return pointers;
  }
  void back(const CPUContext& c) {
    for (auto& one : all) one.back(c);
  }
};

template <class Signature>
Signature float_kernel(const char* name) {
  phi::KernelKey key(phi::Backend::CPU, phi::DataLayout::ALL_LAYOUT, DataType::FLOAT32);
  return phi::KernelFactory::Instance().kernels()[name].at(key).GetVariadicKernelFn<Signature>();
}

template <class Name, class Signature>
struct Half;

template <class Name, class... Args>
struct Half<Name, void (*)(const CPUContext&, Args...)> {
  static void call(const CPUContext& context, Args... args) {
    run(context, std::tuple<Argument<Args>...>(Argument<Args>(context, args)...));
  }
  static void run(const CPUContext& context, std::tuple<Argument<Args>...> held) {
    static auto* kernel = float_kernel<void (*)(const CPUContext&, Args...)>(Name::text);
    std::apply([&](auto&... one) { (*kernel)(context, one.pass()...); }, held);
    std::apply([&](auto&... one) { (one.back(context), ...); }, held);
  }
};

// The same for Paddle's older calls (GradScaler's), which hand over all arguments in one object.
template <class Name>
void call_by_context(phi::KernelContext* given) {
  const auto& context = given->GetDeviceContext<CPUContext>();
  phi::KernelContext wide(const_cast<CPUContext*>(&context));
  std::deque<DenseTensor> inputs;
  std::deque<Argument<DenseTensor*>> outputs;
  for (int i = 0, end = 0; end < static_cast<int>(given->InputsSize()); ++i) {
    auto range = given->InputRangeAt(i);
    paddle::small_vector<const phi::TensorBase*> all;
    for (int k = range.first; k < range.second; ++k) {
      auto tensor = given->OptionalInputAt<DenseTensor>(k);
      if (tensor) inputs.push_back(widened(context, *tensor));
      all.push_back(tensor ? &inputs.back() : nullptr);
    }
    wide.EmplaceBackInputs(all);
    end = range.second;
  }
  for (int i = 0, end = 0; end < static_cast<int>(given->OutputsSize()); ++i) {
    auto range = given->OutputRangeAt(i);
    paddle::small_vector<phi::TensorBase*> all;
    for (int k = range.first; k < range.second; ++k) {
      outputs.emplace_back(context, given->MutableOutputAt<DenseTensor>(k));
      all.push_back(outputs.back().pass());
    }
    wide.EmplaceBackOutputs(all);
    end = range.second;
  }
  for (size_t i = 0; i < given->AttrsSize(); ++i) wide.EmplaceBackAttr(given->AttrAt(i));
  phi::KernelKey key(phi::Backend::CPU, phi::DataLayout::ALL_LAYOUT, DataType::FLOAT32);
  phi::KernelFactory::Instance().kernels()[Name::text].at(key)(&wide);
  for (auto& one : outputs) one.back(context);
}

// With float32 master weights the step is taken on these, and the half weights are their rounding.
void momentum_of_masters(const CPUContext& c, const DenseTensor& param, const DenseTensor& grad,
                         const DenseTensor& velocity, const DenseTensor& rate,
                         const paddle::optional<DenseTensor>& master, float mu, bool nesterov,
                         const std::string& method, float coefficient, bool multi_precision,
                         float rescale, DenseTensor* param_out, DenseTensor* velocity_out,
                         DenseTensor* master_out) {
  using Signature = decltype(&phi::MomentumDenseKernel<float, CPUContext>);
  static auto* kernel = float_kernel<Signature>("momentum");
  bool masters = multi_precision && master;
  DenseTensor wide;
  wide.Resize(param.dims());
  (*kernel)(c, masters ? *master : widened(c, param), widened(c, grad), widened(c, velocity), rate,
            paddle::none, mu, nesterov, method, coefficient, false, rescale,
            masters ? master_out : &wide, velocity_out, nullptr);
  narrow(c, masters ? *master_out : wide, param_out);
}

void merged_momentum_of_masters(
    const CPUContext& c, const std::vector<const DenseTensor*>& param,
    const std::vector<const DenseTensor*>& grad, const std::vector<const DenseTensor*>& velocity,
    const std::vector<const DenseTensor*>& rate,
    const paddle::optional<std::vector<const DenseTensor*>>& master, float mu, bool nesterov,
    const std::vector<std::string>& method, const std::vector<float>& coefficient,
    bool multi_precision, float rescale, std::vector<DenseTensor*> param_out,
    std::vector<DenseTensor*> velocity_out, std::vector<DenseTensor*> master_out) {
  for (size_t i = 0; i < param.size(); ++i) {
    paddle::optional<DenseTensor> one;
    if (multi_precision && master) one = *(*master)[i];
    momentum_of_masters(c, *param[i], *grad[i], *velocity[i], *rate[rate.size() > 1 ? i : 0], one,
                        mu, nesterov, method.empty() ? "" : method[i],
                        coefficient.empty() ? 0.0f : coefficient[i], multi_precision, rescale,
                        param_out[i], velocity_out[i], one ? master_out[i] : nullptr);
  }
}

void adamw_of_masters(
    const CPUContext& c, const DenseTensor& param, const DenseTensor& grad, const DenseTensor& rate,
    const DenseTensor& moment1, const DenseTensor& moment2,
    const paddle::optional<DenseTensor>& moment2_max, const DenseTensor& beta1_pow,
    const DenseTensor& beta2_pow, const paddle::optional<DenseTensor>& master,
    const paddle::optional<DenseTensor>& skip, const phi::Scalar& beta1, const phi::Scalar& beta2,
    const phi::Scalar& epsilon, float lr_ratio, float coefficient, bool with_decay, bool lazy,
    int64_t min_rows, bool multi_precision, bool global_beta_pow, bool amsgrad,
    DenseTensor* param_out, DenseTensor* moment1_out, DenseTensor* moment2_out,
    DenseTensor* moment2_max_out, DenseTensor* beta1_pow_out, DenseTensor* beta2_pow_out,
    DenseTensor* master_out) {
  using Signature = decltype(&phi::AdamwDenseKernel<float, CPUContext>);
  static auto* kernel = float_kernel<Signature>("adamw");
  bool masters = multi_precision && master;
  DenseTensor wide;
  wide.Resize(param.dims());
  (*kernel)(c, masters ? *master : widened(c, param), widened(c, grad), rate, moment1, moment2,
            moment2_max, beta1_pow, beta2_pow, paddle::none, skip, beta1, beta2, epsilon, lr_ratio,
            coefficient, with_decay, lazy, min_rows, false, global_beta_pow, amsgrad,
            masters ? master_out : &wide, moment1_out, moment2_out, moment2_max_out, beta1_pow_out,
            beta2_pow_out, nullptr);
  narrow(c, masters ? *master_out : wide, param_out);
}

// ---- SyncBatchNorm: the CPU has none at all. NCHW, statistics over the images of all ranks. ------

// Adds `sums` up over all ranks; they are float64 so that their order does not matter to float32.
void over_ranks(std::vector<double>* sums) { card::sum_over_ranks(sums->data(), sums->size()); }

struct Channels {
  int64_t n, c, size;
  explicit Channels(const DenseTensor& x)
      : n(x.dims()[0]), c(x.dims()[1]), size(x.numel() / (n * c)) {}
  template <class F>
  void each(int64_t channel, F f) const {
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t k = 0; k < size; ++k) f((i * c + channel) * size + k);
    }
  }
};

void sync_batch_norm(const CPUContext& context, const DenseTensor& x, const DenseTensor& mean,
                     const DenseTensor& variance, const DenseTensor& scale,
                     const DenseTensor& bias, bool is_test, float momentum, float epsilon,
                     const std::string&, bool use_global_stats, bool, DenseTensor* y,
                     DenseTensor* mean_out, DenseTensor* variance_out, DenseTensor* saved_mean,
                     DenseTensor* saved_variance, DenseTensor*) {
  Channels over(x);
  const float* in = x.data<float>();
  float* out = context.Alloc<float>(y);
  std::vector<double> sums(2 * over.c + 1, 0.0);
  bool train = !is_test && !use_global_stats;
  sums.back() = static_cast<double>(over.n * over.size);
  for (int64_t c = 0; train && c < over.c; ++c) {
    over.each(c, [&](int64_t i) {
      sums[c] += in[i];
      sums[over.c + c] += static_cast<double>(in[i]) * in[i];
    });
  }
  if (train) over_ranks(&sums);
  std::vector<float> means(over.c), variances(over.c);
  for (int64_t c = 0; c < over.c; ++c) {
    double m = train ? sums[c] / sums.back() : mean.data<float>()[c];
    double v = train ? sums[over.c + c] / sums.back() - m * m : variance.data<float>()[c];
    double inverse = 1 / std::sqrt(v + epsilon);
    float factor = static_cast<float>(scale.data<float>()[c] * inverse);
    float shift = static_cast<float>(bias.data<float>()[c] - m * factor);
    over.each(c, [&](int64_t i) { out[i] = in[i] * factor + shift; });
    means[c] = static_cast<float>(m);
    variances[c] = static_cast<float>(v);
  }
  if (!train) return;
  for (int64_t c = 0; c < over.c; ++c) {
    context.Alloc<float>(saved_mean)[c] = means[c];
    context.Alloc<float>(saved_variance)[c] = 1 / std::sqrt(variances[c] + epsilon);
    float before[] = {mean.data<float>()[c], variance.data<float>()[c]};
    context.Alloc<float>(mean_out)[c] = before[0] * momentum + means[c] * (1 - momentum);
    context.Alloc<float>(variance_out)[c] = before[1] * momentum + variances[c] * (1 - momentum);
  }
}

void sync_batch_norm_grad(const CPUContext& context, const DenseTensor& x,
                          const DenseTensor& scale, const DenseTensor&,
                          const DenseTensor& saved_mean, const DenseTensor& saved_inverse,
                          const paddle::optional<DenseTensor>&, const DenseTensor& y_grad, float,
                          float, const std::string&, bool, bool, bool, DenseTensor* x_grad,
                          DenseTensor* scale_grad, DenseTensor* bias_grad) {
  Channels over(x);
  const float *in = x.data<float>(), *dy = y_grad.data<float>();
  const float *mean = saved_mean.data<float>(), *inverse = saved_inverse.data<float>();
  std::vector<double> sums(2 * over.c + 1, 0.0);
  sums.back() = static_cast<double>(over.n * over.size);
  for (int64_t c = 0; c < over.c; ++c) {
    over.each(c, [&](int64_t i) {
      sums[c] += dy[i];
      sums[over.c + c] += static_cast<double>(dy[i]) * (in[i] - mean[c]) * inverse[c];
    });
    if (bias_grad) context.Alloc<float>(bias_grad)[c] = static_cast<float>(sums[c]);
    if (scale_grad) context.Alloc<float>(scale_grad)[c] = static_cast<float>(sums[over.c + c]);
  }
  over_ranks(&sums);
  float* dx = context.Alloc<float>(x_grad);
  for (int64_t c = 0; c < over.c; ++c) {
    double dy_mean = sums[c] / sums.back(), dot = sums[over.c + c] / sums.back();
    double factor = scale.data<float>()[c] * inverse[c];
    over.each(c, [&](int64_t i) {
      double normal = (in[i] - mean[c]) * inverse[c];
      dx[i] = static_cast<float>(factor * (dy[i] - dy_mean - normal * dot));
    });
  }
}

#define NAME(op, function) \
  struct op##_name { static constexpr const char* text = #op; };
TABLE(NAME)

template <class Function>
void add(const char* name, phi::Backend backend, DataType type, Function function,
         phi::KernelFn by_context = nullptr) {
  auto& kernels = phi::KernelFactory::Instance().kernels()[name];
  phi::KernelKey key(backend, phi::DataLayout::ALL_LAYOUT, type);
  if (kernels.count(key)) return;
  phi::KernelKey like(phi::Backend::CPU, phi::DataLayout::ALL_LAYOUT, DataType::FLOAT32);
  phi::Kernel kernel(by_context, reinterpret_cast<void*>(function));
  *kernel.mutable_args_def() = kernels.at(like).args_def();
  for (auto* definitions : {&kernel.mutable_args_def()->input_defs()}) {
    for (auto& one : *definitions) {
      if (one.backend == phi::Backend::CPU) one.backend = backend;
      if (one.dtype == DataType::FLOAT32) one.dtype = type;
    }
  }
  for (auto& one : kernel.mutable_args_def()->output_defs()) {
    if (one.backend == phi::Backend::CPU) one.backend = backend;
    if (one.dtype == DataType::FLOAT32) one.dtype = type;
  }
  kernels[key] = kernel;
}

// A float32 kernel of an operator that the CPU does not have.
template <class Function>
void add_new(const char* name, Function function) {
  phi::KernelKey key(phi::Backend::CPU, phi::DataLayout::ALL_LAYOUT, DataType::FLOAT32);
  phi::Kernel kernel(nullptr, reinterpret_cast<void*>(function));
  phi::KernelArgsParseFunctor<Function>::Parse(key, kernel.mutable_args_def());
  phi::KernelFactory::Instance().kernels()[name][key] = kernel;
}

// ---- views ------------------------------------------------------------------------------------

// Calls f(i, at): i counts the elements of a tensor row by row, `at` is where the strides put it.
template <class F>
void each(const int64_t* dims, const int64_t* strides, int rank, F f) {
  std::vector<int64_t> index(rank, 0);
  int64_t count = 1, at = 0;
  for (int d = 0; d < rank; ++d) count *= dims[d];
  for (int64_t i = 0; i < count; ++i) {
    f(i, at);
    for (int d = rank - 1; d >= 0; --d) {
      at += strides[d];
      if (++index[d] < dims[d]) break;
      at -= strides[d] * dims[d];
      index[d] = 0;
    }
  }
}

void contiguous(const phi::CustomContext& context, const DenseTensor& input, DenseTensor* out) {
  card::finish();
  phi::DenseTensorMeta meta = input.meta();
  meta.strides = meta.calc_strides(out->dims());
  meta.offset = 0;
  out->set_meta(meta);
  size_t width = phi::SizeOf(input.dtype());
  const char* from = static_cast<const char*>(input.data());
  char* to = static_cast<char*>(context.Alloc(out, input.dtype()));
  if (!input.numel()) return;
  card::Open a(from), b(to);
  each(input.dims().Get(), input.strides().Get(), input.dims().size(),
       [&](int64_t i, int64_t at) { memcpy(to + i * width, from + at * width, width); });
}

void strided_copy(const phi::CustomContext& context, const DenseTensor& input,
                  const std::vector<int64_t>& dims, const std::vector<int64_t>& strides,
                  int64_t offset, DenseTensor* out) {
  card::finish();
  phi::DenseTensorMeta meta = input.meta();
  meta.strides = common::make_ddim(strides);
  meta.dims = common::make_ddim(dims);
  meta.offset = offset;
  out->set_meta(meta);
  size_t width = phi::SizeOf(input.dtype());
  DenseTensor dense;
  contiguous(context, input, &dense);
  const char* from = static_cast<const char*>(dense.data());
  char* to = static_cast<char*>(out->data());
  if (!input.numel()) return;
  card::Open a(from), b(to);
  each(dims.data(), strides.data(), dims.size(),
       [&](int64_t i, int64_t at) { memcpy(to + at * width, from + i * width, width); });
}

}  // namespace

void add_kernels() {
  add_new("sync_batch_norm", &sync_batch_norm);
  add_new("sync_batch_norm_grad", &sync_batch_norm_grad);
  for (DataType type : {DataType::FLOAT16, DataType::BFLOAT16}) {
    add("momentum", phi::Backend::CPU, type, &momentum_of_masters);
    add("adamw", phi::Backend::CPU, type, &adamw_of_masters);
    add("merged_momentum", phi::Backend::CPU, type, &merged_momentum_of_masters);
#define ADD(op, function)                  \
  add(#op, phi::Backend::CPU, type,        \
      &Half<op##_name, decltype(&function<float, CPUContext>)>::call, &call_by_context<op##_name>);
    TABLE(ADD)
  }
  phi::Backend card = paddle::experimental::StringToBackend("iluvatar_gpu");
  for (DataType type : {DataType::BOOL, DataType::UINT8, DataType::INT8, DataType::INT16,
                        DataType::INT32, DataType::INT64, DataType::FLOAT16, DataType::BFLOAT16,
                        DataType::FLOAT32, DataType::FLOAT64}) {
    add("contiguous", card, type, &contiguous);
    add("strided_copy", card, type, &strided_copy);
  }
}
