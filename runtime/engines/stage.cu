// The Meta-Upscale stage on a GPU: a thread sums up, for one output pixel, the B responses at the input pixel that it reads.
//
// Where pixels lie is not worked out here but in runtime/grid.py: `axes` says of every output row, and then of every output column,
// which input pixel it reads, at which phase, and how linear interpolation weighs that pixel and its two neighbours:
//     int source[h], int phase[h], float taps[h][3], int source[w], int phase[w], float taps[w][3]
// The pixels read are (slices, in_rows, in_cols, channels), channels last: B responses and, with a skip, nine neighbours of the
// image. Compiles as CUDA without any header (`python -m export.kernels`) and, for the tests, as C++ for the host.

typedef unsigned short half_bits;  // of an IEEE 754 binary16

#ifdef __CUDACC__
#define KERNEL extern "C" __global__ void
#define INLINE __device__ __forceinline__
INLINE float widen(half_bits bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
#else
#define KERNEL extern "C" void
#define INLINE static inline
INLINE float widen(half_bits bits) {
    _Float16 value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}
#endif

INLINE float widen(float value) { return value; }

// The output pixel that is this thread's, and what it reads.
struct Pixel {
    int row, col, slice;
    int source_row, source_col, phase_row, phase_col;
    const float *taps_row, *taps_col;
};

INLINE bool find(Pixel &pixel, const int *axes, int rows, int cols) {
    pixel.row = blockIdx.y * blockDim.y + threadIdx.y;
    pixel.col = blockIdx.x * blockDim.x + threadIdx.x;
    pixel.slice = blockIdx.z;
    if (pixel.row >= rows || pixel.col >= cols) return false;
    const int *second = axes + 5 * rows;
    pixel.source_row = axes[pixel.row];
    pixel.phase_row = axes[rows + pixel.row];
    pixel.taps_row = (const float *)(axes + 2 * rows) + 3 * pixel.row;
    pixel.source_col = second[pixel.col];
    pixel.phase_col = second[cols + pixel.col];
    pixel.taps_col = (const float *)(second + 2 * cols) + 3 * pixel.col;
    return true;
}

// What the pixel reads: `channels` numbers.
template <typename T>
INLINE const T *at(const T *responses, const Pixel &pixel, int in_rows, int in_cols, int channels) {
    return responses + (((long long)pixel.slice * in_rows + pixel.source_row) * in_cols + pixel.source_col) * channels;
}

// Adds the skip and writes the pixel.
template <typename T>
INLINE void finish(float sum, const T *own, const Pixel &pixel, int basis, int channels, float *out, int rows, int cols) {
    for (int k = basis; k < channels; ++k) {
        int tap = k - basis;
        sum += pixel.taps_row[tap / 3] * pixel.taps_col[tap % 3] * widen(own[k]);
    }
    out[((long long)pixel.slice * rows + pixel.row) * cols + pixel.col] = sum;
}

// table: (phases_y, phases_x, B) in half precision.
template <typename T>
INLINE void by_table(const T *responses, int in_rows, int in_cols, int channels, const half_bits *table, int phases_x,
                     int basis, const int *axes, float *out, int rows, int cols) {
    Pixel pixel;
    if (!find(pixel, axes, rows, cols)) return;
    const T *own = at(responses, pixel, in_rows, in_cols, channels);
    const half_bits *coefficients = table + ((long long)pixel.phase_row * phases_x + pixel.phase_col) * basis;
    float sum = 0.0f;
    for (int k = 0; k < basis; ++k) sum += widen(coefficients[k]) * widen(own[k]);
    finish(sum, own, pixel, basis, channels, out, rows, cols);
}

// The coefficients of this one pixel, w2 · relu(hidden_rows[phase_row] + hidden_cols[phase_col]) + b2; for scales that have too many
// phases for a table. hidden_rows (…, hidden), hidden_cols (…, hidden), w2 (B, hidden), b2 (B), all float32.
template <typename T>
INLINE void by_predictor(const T *responses, int in_rows, int in_cols, int channels, const float *hidden_rows,
                         const float *hidden_cols, const float *w2, const float *b2, int hidden, int basis, const int *axes,
                         float *out, int rows, int cols) {
    Pixel pixel;
    if (!find(pixel, axes, rows, cols)) return;
    const T *own = at(responses, pixel, in_rows, in_cols, channels);
    const float *part_row = hidden_rows + (long long)pixel.phase_row * hidden;
    const float *part_col = hidden_cols + (long long)pixel.phase_col * hidden;
    float sum = 0.0f;
    for (int k = 0; k < basis; ++k) {
        float coefficient = b2[k];
        for (int m = 0; m < hidden; ++m) {
            float unit = part_row[m] + part_col[m];
            coefficient += unit > 0.0f ? w2[k * hidden + m] * unit : 0.0f;
        }
        sum += coefficient * widen(own[k]);
    }
    finish(sum, own, pixel, basis, channels, out, rows, cols);
}

#define READ(T) const T *responses, int in_rows, int in_cols, int channels
#define WRITE int basis, const int *axes, float *out, int rows, int cols

KERNEL stage_float(READ(float), const half_bits *table, int phases_x, WRITE) {
    by_table(responses, in_rows, in_cols, channels, table, phases_x, basis, axes, out, rows, cols);
}

KERNEL stage_half(READ(half_bits), const half_bits *table, int phases_x, WRITE) {
    by_table(responses, in_rows, in_cols, channels, table, phases_x, basis, axes, out, rows, cols);
}

KERNEL table_free_float(READ(float), const float *hidden_rows, const float *hidden_cols, const float *w2, const float *b2,
                        int hidden, WRITE) {
    by_predictor(responses, in_rows, in_cols, channels, hidden_rows, hidden_cols, w2, b2, hidden, basis, axes, out, rows, cols);
}

KERNEL table_free_half(READ(half_bits), const float *hidden_rows, const float *hidden_cols, const float *w2, const float *b2,
                       int hidden, WRITE) {
    by_predictor(responses, in_rows, in_cols, channels, hidden_rows, hidden_cols, w2, b2, hidden, basis, axes, out, rows, cols);
}
