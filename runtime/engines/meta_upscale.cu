// Grey values → the trunk's input; the trunk's features → grey values, by Meta-Upscale. A thread computes one pixel.
//
// Where output pixels lie is not worked out here but in runtime/grid.py. `axes` says of every output row, and then of every output
// column, which input pixel it reads, at which phase, and how linear interpolation weighs that pixel and its two neighbours:
//     int source[rows], int phase[rows], float taps[rows][3], int source[cols], int phase[cols], float taps[cols][3]
// runtime/engines/tensorrt.py has the same two structs. Compiles as CUDA without any header (`python -m export.kernels`) and, for the
// tests, as C++ for the host.

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

struct Image {
    const char *pixels;
    float *out;                      // (rows, cols), standardised
    long long row_bytes, col_bytes;  // from one pixel to the next
    int rows, cols, kind;            // kind: NumPy's character for the type
    float black, gain, offset;
};

KERNEL standardise(Image image) {
    int row = blockIdx.y * blockDim.y + threadIdx.y, col = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= image.rows || col >= image.cols) return;
    const char *pixel = image.pixels + row * image.row_bytes + col * image.col_bytes;
    float grey = 0.0f;
    switch (image.kind) {
        case 'f': grey = *(const float *)pixel; break;
        case 'e': grey = widen(*(const half_bits *)pixel); break;
        case 'H': grey = *(const unsigned short *)pixel; break;
        case 'h': grey = *(const short *)pixel; break;
        case 'B': grey = *(const unsigned char *)pixel; break;
        case 'b': grey = *(const signed char *)pixel; break;
    }
    image.out[(long long)row * image.cols + col] = (grey - image.black) * image.gain + image.offset;
}

struct Stage {
    const void *features;  // (channels, height, width): B basis features and, with a skip, nine neighbours of the image's pixels
    const float *table;    // (phases of rows, phases of columns, B), or null: then coefficients are w2ᵀ·relu(hidden) + b2
    const float *hidden_rows, *hidden_cols, *w2, *b2;  // (phases, M), (phases, M), (M, B), (B)
    const int *axes;
    float *out;  // (rows, cols), from one row to the next `step` floats
    int *bad;    // becomes 1 where a pixel is not finite
    int channels, height, width, basis, hidden, phases_cols, rows, cols, step;
    float gain, offset, low, high;  // from the network's units to grey values
};

template <typename T>
INLINE void meta_upscale(const Stage &s) {
    int row = blockIdx.y * blockDim.y + threadIdx.y, col = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= s.rows || col >= s.cols) return;
    const int *of_cols = s.axes + 5 * s.rows;
    int phase_row = s.axes[s.rows + row], phase_col = of_cols[s.cols + col];
    const T *own = (const T *)s.features + s.axes[row] * s.width + of_cols[col];
    int plane = s.height * s.width;  // neighbouring threads read neighbouring numbers of one
    float sum = 0.0f;
    if (s.table) {
        const float *coefficients = s.table + ((long long)phase_row * s.phases_cols + phase_col) * s.basis;
        for (int k = 0; k < s.basis; ++k) sum += coefficients[k] * widen(own[k * plane]);
    } else {
        const float *hidden_row = s.hidden_rows + (long long)phase_row * s.hidden;
        const float *hidden_col = s.hidden_cols + (long long)phase_col * s.hidden;
        for (int k = 0; k < s.basis; ++k) sum += s.b2[k] * widen(own[k * plane]);
        for (int m = 0; m < s.hidden; ++m) {
            float unit = hidden_row[m] + hidden_col[m], filtered = 0.0f;
            if (unit <= 0.0f) continue;
            for (int k = 0; k < s.basis; ++k) filtered += s.w2[m * s.basis + k] * widen(own[k * plane]);
            sum += unit * filtered;
        }
    }
    const float *taps_row = (const float *)(s.axes + 2 * s.rows) + 3 * row;
    const float *taps_col = (const float *)(of_cols + 2 * s.cols) + 3 * col;
    for (int k = s.basis, tap = 0; k < s.channels; ++k, ++tap) sum += taps_row[tap / 3] * taps_col[tap % 3] * widen(own[k * plane]);
    if (!(sum - sum == 0.0f)) *s.bad = 1;  // infinity or NaN, which the clip would hide
    float grey = sum * s.gain + s.offset;
    s.out[(long long)row * s.step + col] = grey < s.low ? s.low : grey > s.high ? s.high : grey;
}

KERNEL meta_upscale_float(Stage stage) { meta_upscale<float>(stage); }
KERNEL meta_upscale_half(Stage stage) { meta_upscale<half_bits>(stage); }
