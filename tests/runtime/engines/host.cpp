// stage.cu on the host: every thread of a launch, one after the other. Arguments come as cuLaunchKernel takes them, by address.

#include <cstring>
#include <utility>

struct Dim {
    int x, y, z;
};
static Dim blockIdx, threadIdx, blockDim;

#include "stage.cu"

template <typename... A, std::size_t... I>
static void call(void (*kernel)(A...), void **arguments, std::index_sequence<I...>) {
    kernel(*static_cast<A *>(arguments[I])...);
}

template <typename... A>
static void run(void (*kernel)(A...), const int *grid, const int *block, void **arguments) {
    blockDim = {block[0], block[1], block[2]};
    for (blockIdx.z = 0; blockIdx.z < grid[2]; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < grid[1]; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < grid[0]; ++blockIdx.x)
                for (threadIdx.z = 0; threadIdx.z < block[2]; ++threadIdx.z)
                    for (threadIdx.y = 0; threadIdx.y < block[1]; ++threadIdx.y)
                        for (threadIdx.x = 0; threadIdx.x < block[0]; ++threadIdx.x)
                            call(kernel, arguments, std::index_sequence_for<A...>{});
}

extern "C" int launch(const char *name, const int *grid, const int *block, void **arguments) {
    if (!std::strcmp(name, "stage_float")) return run(stage_float, grid, block, arguments), 0;
    if (!std::strcmp(name, "stage_half")) return run(stage_half, grid, block, arguments), 0;
    if (!std::strcmp(name, "table_free_float")) return run(table_free_float, grid, block, arguments), 0;
    if (!std::strcmp(name, "table_free_half")) return run(table_free_half, grid, block, arguments), 0;
    return 1;
}
