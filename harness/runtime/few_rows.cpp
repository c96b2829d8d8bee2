// Rows times a large float32 matrix, for so few rows that reading the matrix takes most of the time.
//
// The outputs of 32 neighbouring weights lie in a few vectors, so no sum runs across a vector. A panel holds 32
// outputs' weights, input by input: threads walk their panels from front to back and ask memory for what comes
// a few kilobytes later, which the processor's own prefetching does not do across pages. Up to eight rows are
// kept in registers (three without AVX-512); the next ones find the panel in the second-level cache.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>

namespace {

// Vectors are as wide as the processor's registers: what the compiler makes of wider ones goes through memory.
#if defined(__AVX512F__)
constexpr int64_t kWide = 16, kMostRows = 8;
#elif defined(__AVX__)
constexpr int64_t kWide = 8, kMostRows = 3;  // sixteen registers: twelve sums, three values, a weight
#else
constexpr int64_t kWide = 4, kMostRows = 3;  // thirty-two registers
#endif
constexpr int64_t kPanel = 32, kVectors = kPanel / kWide, kLine = 16, kAhead = 96 * kLine;

typedef float Wide __attribute__((vector_size(kWide * sizeof(float))));

inline Wide load(const float* from) {
  Wide value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

template <int R>
void multiply(const float* rows, const float* panel, float* to, int64_t num_in, int64_t num_out, int64_t wanted) {
  Wide sums[R][kVectors] = {};
  for (int64_t i = 0; i < num_in; i++) {
    const float* weights = panel + i * kPanel;
    __builtin_prefetch(weights + kAhead);
    __builtin_prefetch(weights + kAhead + kLine);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; v++) {
      const Wide weight = load(weights + v * kWide);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) sums[r][v] += rows[r * num_in + i] * weight;
    }
  }
  for (int r = 0; r < R; r++) std::memcpy(to + r * num_out, sums[r], wanted * sizeof(float));
}

using Multiply = void (*)(const float*, const float*, float*, int64_t, int64_t, int64_t);
constexpr Multiply kMultiply[] = {nullptr, multiply<1>, multiply<2>, multiply<3>, multiply<4>,
                                               multiply<5>, multiply<6>, multiply<7>, multiply<8>};

// Products [..., num_out] of rows [..., num_in] and panels [ceil(num_out / 32), num_in, 32].
at::Tensor few_rows(const at::Tensor& given, const at::Tensor& panels, int64_t num_out) {
  const at::Tensor rows = given.contiguous();
  const int64_t num_in = panels.size(1), num_panels = panels.size(0), num_rows = rows.numel() / num_in;
  TORCH_CHECK(rows.scalar_type() == at::kFloat && rows.size(-1) == num_in, "rows do not fit the panels");
  auto shape = rows.sizes().vec();
  shape.back() = num_out;
  at::Tensor products = at::empty(shape, rows.options());
  const float *from = rows.const_data_ptr<float>(), *weights = panels.const_data_ptr<float>();
  float* to = products.mutable_data_ptr<float>();
  // As evenly as they go: nine rows are five and four.
  const int64_t num_blocks = (num_rows + kMostRows - 1) / kMostRows;
  at::parallel_for(0, num_panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; panel++) {
      const int64_t column = panel * kPanel, wanted = std::min(kPanel, num_out - column);
      for (int64_t block = 0; block < num_blocks; block++) {
        const int64_t row = num_rows * block / num_blocks, next = num_rows * (block + 1) / num_blocks;
        kMultiply[next - row](from + row * num_in, weights + panel * num_in * kPanel,
                              to + row * num_out + column, num_in, num_out, wanted);
      }
    }
  });
  return products;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(specbench, library) {
  library.def("few_rows(Tensor rows, Tensor panels, int num_outputs) -> Tensor");
}

TORCH_LIBRARY_IMPL(specbench, CPU, library) { library.impl("few_rows", few_rows); }
