// Float32 rows times a large matrix, for so few rows that reading the matrix takes most of the time. The matrix may be
// stored in 16 bits, which halves that time; its values become float32 in the registers, so the products are the same.
//
// The outputs of 32 neighbouring weights lie in a few vectors, so no sum runs across a vector. A panel holds 32
// outputs' weights, input by input: threads walk their panels from front to back and ask memory for what comes
// a few kilobytes later, which the processor's own prefetching does not do across pages. The sums of up to eight
// rows are kept in registers (of three without AVX-512). More rows take turns over chunks of a panel that stay in the
// first-level cache, and memory is asked for the next chunk meanwhile. However many rows there are, each sum is added
// up in the order of the inputs, so that a row's products have the same bits.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstring>
#include <vector>

namespace {

// Vectors are as wide as the processor's registers: what the compiler makes of wider ones goes through memory.
#if defined(__AVX512F__)
constexpr int64_t kWide = 16, kMostRows = 8;
#elif defined(__AVX__)
constexpr int64_t kWide = 8, kMostRows = 3;  // sixteen registers: twelve sums, three values, a weight
#else
constexpr int64_t kWide = 4, kMostRows = 3;  // thirty-two registers
#endif
constexpr int64_t kPanel = 32, kVectors = kPanel / kWide, kChunk = 96;
constexpr int64_t kLineBytes = 64, kAheadBytes = 96 * kLineBytes;

typedef float Wide __attribute__((vector_size(kWide * sizeof(float))));

inline Wide load(const float* from) {
  Wide value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

inline Wide load(const at::BFloat16* from) {
  typedef uint16_t Stored __attribute__((vector_size(kWide * sizeof(uint16_t))));
  typedef uint32_t Bits __attribute__((vector_size(kWide * sizeof(uint32_t))));
  Stored stored;
  std::memcpy(&stored, from, sizeof(stored));
  return (Wide)(__builtin_convertvector(stored, Bits) << 16);
}

inline Wide load(const at::Half* from) {
#if defined(__AVX512F__)
  return (Wide)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__F16C__)
  return (Wide)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
  Wide value;
  for (int64_t i = 0; i < kWide; i++) value[i] = from[i];
  return value;
#endif
}

template <typename Weight>
constexpr int kPanelLines = kPanel * sizeof(Weight) / kLineBytes;

// Adds what the inputs of one chunk contribute to the sums [R, 32]. Memory is asked for `ahead` meanwhile, for kLines
// cache lines per input.
template <typename Weight, int R, int kLines>
void add(const float* rows, int64_t stride, const Weight* chunk, int64_t num_in, float* sums, const char* ahead) {
  Wide held[R][kVectors];
  std::memcpy(held, sums, sizeof(held));
  for (int64_t i = 0; i < num_in; i++) {
    for (int line = 0; line < kLines; line++) {
      __builtin_prefetch(ahead + (i * kLines + line) * kLineBytes, 0, kLines == kPanelLines<Weight> ? 3 : 2);
    }
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; v++) {
      const Wide weight = load(chunk + i * kPanel + v * kWide);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) held[r][v] += rows[r * stride + i] * weight;
    }
  }
  std::memcpy(sums, held, sizeof(held));
}

template <typename Weight>
using Add = void (*)(const float*, int64_t, const Weight*, int64_t, float*, const char*);
template <typename Weight, int kLines>
constexpr Add<Weight> kAdd[] = {
    nullptr,
    add<Weight, 1, kLines>, add<Weight, 2, kLines>, add<Weight, 3, kLines>, add<Weight, 4, kLines>,
    add<Weight, 5, kLines>, add<Weight, 6, kLines>, add<Weight, 7, kLines>, add<Weight, 8, kLines>};

template <typename Weight>
void multiply(const float* from, const Weight* weights, float* to, int64_t num_rows, int64_t num_in, int64_t num_out) {
  const int64_t num_panels = (num_out + kPanel - 1) / kPanel;
  // As evenly as they go: nine rows are five and four.
  const int64_t num_blocks = (num_rows + kMostRows - 1) / kMostRows;
  at::parallel_for(0, num_panels, 1, [&](int64_t begin, int64_t end) {
    const int64_t step = num_blocks == 1 ? num_in : kChunk;
    std::vector<float> sums(num_rows * kPanel);
    for (int64_t panel = begin; panel < end; panel++) {
      std::fill(sums.begin(), sums.end(), 0.0f);
      for (int64_t input = 0; input < num_in; input += step) {
        const int64_t count = std::min(step, num_in - input);
        const Weight* chunk = weights + (panel * num_in + input) * kPanel;
        const char* begin_of_chunk = reinterpret_cast<const char*>(chunk);
        const char* next_chunk = reinterpret_cast<const char*>(chunk + count * kPanel);
        for (int64_t block = 0; block < num_blocks; block++) {
          const int64_t row = num_rows * block / num_blocks, next = num_rows * (block + 1) / num_blocks;
          const float* part = from + row * num_in + input;
          float* held = sums.data() + row * kPanel;
          // Of several blocks of rows, each of the first asks for one cache line per input, until all are asked for.
          if (num_blocks == 1) {
            kAdd<Weight, kPanelLines<Weight>>[next - row](part, num_in, chunk, count, held, begin_of_chunk + kAheadBytes);
          } else if (block < kPanelLines<Weight>) {
            kAdd<Weight, 1>[next - row](part, num_in, chunk, count, held, next_chunk + block * count * kLineBytes);
          } else {
            kAdd<Weight, 0>[next - row](part, num_in, chunk, count, held, nullptr);
          }
        }
      }
      const int64_t column = panel * kPanel, wanted = std::min(kPanel, num_out - column);
      for (int64_t row = 0; row < num_rows; row++) {
        std::memcpy(to + row * num_out + column, sums.data() + row * kPanel, wanted * sizeof(float));
      }
    }
  });
}

// Products [..., num_out] of rows [..., num_in] and panels [ceil(num_out / 32), num_in, 32].
at::Tensor few_rows(const at::Tensor& given, const at::Tensor& panels, int64_t num_out) {
  const at::Tensor rows = given.contiguous();
  const int64_t num_in = panels.size(1), num_rows = rows.numel() / num_in;
  TORCH_CHECK(rows.scalar_type() == at::kFloat && rows.size(-1) == num_in, "rows do not fit the panels");
  auto shape = rows.sizes().vec();
  shape.back() = num_out;
  at::Tensor products = at::empty(shape, rows.options());
  const float* from = rows.const_data_ptr<float>();
  float* to = products.mutable_data_ptr<float>();
  if (panels.scalar_type() == at::kHalf) {
    multiply(from, panels.const_data_ptr<at::Half>(), to, num_rows, num_in, num_out);
  } else if (panels.scalar_type() == at::kBFloat16) {
    multiply(from, panels.const_data_ptr<at::BFloat16>(), to, num_rows, num_in, num_out);
  } else {
    multiply(from, panels.const_data_ptr<float>(), to, num_rows, num_in, num_out);
  }
  return products;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(specbench, library) {
  library.def("few_rows(Tensor rows, Tensor panels, int num_outputs) -> Tensor");
}

TORCH_LIBRARY_IMPL(specbench, CPU, library) { library.impl("few_rows", few_rows); }
