// A libcuda.so.1 for tests: device memory is the host's, kernels are meta_upscale.cu compiled for the host.
//
// It is as asynchronous as a driver may be: work waits in its stream until somebody waits for the stream, so that whoever reads too
// early reads what nobody wrote: NaN. It refuses what a driver refuses, and counts what tests ask for (`fake_…`).

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <dlfcn.h>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

struct Dim {
    int x, y, z;
};
static thread_local Dim blockIdx, threadIdx, blockDim;

#include "meta_upscale.cu"

namespace {

using Pointer = unsigned long long;
using Stream = void *;

enum Status { OK, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_IMAGE = 200, INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_FOUND = 500 };

constexpr size_t GUARD = 512;  // bytes on both sides of a block, which nobody may write
const Stream LEGACY = (Stream)1;
const auto PRIMARY = (void *)0x10;

struct Block {
    size_t size;
    void *context;  // null for memory of a pool
};

struct State {
    std::recursive_mutex lock;
    std::map<Pointer, Block> blocks;
    std::map<Stream, std::deque<std::function<void()>>> work;
    std::map<Stream, unsigned> streams{{LEGACY, 0}};
    std::map<std::string, int> failures;  // what the next call of a function returns
    std::map<std::string, long> calls, bytes;
    size_t limit = size_t(1) << 40, most = 0;
    int held = 0, broken = 0, capability = 75;  // contexts, streams, pools, modules; blocks with something written beside them
    long next = 0x1000;
};

State &state() {
    static auto *all = new State;  // which outlives whoever frees at exit
    return *all;
}

thread_local std::vector<void *> contexts;

Stream named(Stream stream) { return stream ? stream : LEGACY; }

void drain(Stream stream) {
    stream = named(stream);
    if (stream != LEGACY && !(state().streams[stream] & 1)) drain(LEGACY);
    auto &queue = state().work[stream];
    while (!queue.empty()) {
        auto work = std::move(queue.front());
        queue.pop_front();
        work();
    }
}

size_t used() {
    size_t sum = 0;
    for (auto &[pointer, block] : state().blocks) sum += block.size;
    return sum;
}

// Whether `size` bytes there are memory of the device.
bool holds(Pointer pointer, size_t size) {
    auto after = state().blocks.upper_bound(pointer);
    if (after == state().blocks.begin()) return false;
    auto &[start, block] = *--after;
    return pointer + size <= start + block.size;
}

int allocate(Pointer *pointer, size_t size, void *context) {
    if (used() + size > state().limit) return OUT_OF_MEMORY;
    auto *memory = (char *)std::aligned_alloc(GUARD, (size + 3 * GUARD - 1) / GUARD * GUARD);
    std::memset(memory, 0xff, size + 2 * GUARD);
    *pointer = (Pointer)(memory + GUARD);
    state().blocks[*pointer] = {size, context};
    state().most = std::max(state().most, used());
    return OK;
}

int release(Pointer pointer, Stream stream) {
    auto found = state().blocks.find(pointer);
    if (found == state().blocks.end()) return INVALID_VALUE;
    size_t size = found->second.size;
    state().blocks.erase(found);
    state().work[named(stream)].push_back([=] {
        auto *memory = (unsigned char *)pointer - GUARD;
        auto whole = [](unsigned char *at) { return std::all_of(at, at + GUARD, [](unsigned char c) { return c == 0xff; }); };
        state().broken += !whole(memory) + !whole(memory + GUARD + size);
        std::free(memory);
    });
    return OK;
}

template <typename Argument>
void run(void (*kernel)(Argument), Dim grid, Dim block, Argument argument) {
    blockDim = block;
    for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x)
                for (threadIdx.z = 0; threadIdx.z < block.z; ++threadIdx.z)
                    for (threadIdx.y = 0; threadIdx.y < block.y; ++threadIdx.y)
                        for (threadIdx.x = 0; threadIdx.x < block.x; ++threadIdx.x) kernel(argument);
}

bool readable(const Image &image) {
    size_t last = (image.rows - 1) * image.row_bytes + (image.cols - 1) * image.col_bytes + 1;
    return holds((Pointer)image.pixels, last) && holds((Pointer)image.out, 4ull * image.rows * image.cols);
}

bool readable(const Stage &s) {
    auto floats = [](const float *pointer, size_t count) { return holds((Pointer)pointer, 4 * count); };
    bool filters = s.table ? floats(s.table, s.basis * s.phases_cols)
                           : floats(s.hidden_rows, s.rows * s.hidden) && floats(s.hidden_cols, s.cols * s.hidden);
    return filters && floats(s.w2, s.hidden * s.basis) && floats(s.b2, s.basis) && holds((Pointer)s.bad, 4) &&
           holds((Pointer)s.axes, 20 * (s.rows + s.cols)) && floats(s.out, size_t(s.rows - 1) * s.step + s.cols);
}

template <typename Argument>
int launch(void (*kernel)(Argument), Dim grid, Dim block, Stream stream, void **arguments) {
    Argument argument = *static_cast<Argument *>(arguments[0]);
    if (!readable(argument)) return INVALID_VALUE;
    state().work[stream].push_back([=] { run(kernel, grid, block, argument); });
    return OK;
}

const char *KERNELS[] = {"standardise", "meta_upscale_float", "meta_upscale_half"};

int entered(const char *name, bool wants_context, Stream stream = nullptr) {
    auto &all = state();
    ++all.calls[name];
    if (auto found = all.failures.find(name); found != all.failures.end()) return found->second;
    if (wants_context && (contexts.empty() || contexts.back() != PRIMARY || !all.held)) return INVALID_CONTEXT;
    return stream && !all.streams.count(stream) ? INVALID_HANDLE : OK;
}

}  // namespace

#define ENTER(...)                                             \
    std::lock_guard<std::recursive_mutex> held(state().lock); \
    if (int status = entered(__func__, __VA_ARGS__)) return status

extern "C" {

int cuInit(unsigned) { ENTER(false); return OK; }
int cuDriverGetVersion(int *version) { *version = 12080; return OK; }
int cuDeviceGet(int *device, int index) { *device = index; return index ? 101 : OK; }
int cuDeviceGetName(char *name, int size, int) { return std::strncpy(name, "Fake T400", size), OK; }
int cuDeviceGetAttribute(int *value, int kind, int) { return *value = kind == 75 ? state().capability / 10 : kind == 76 ? state().capability % 10 : 0, OK; }
int cuDevicePrimaryCtxRetain(void **context, int) { ENTER(false); *context = PRIMARY; ++state().held; return OK; }
int cuDevicePrimaryCtxRelease_v2(int) { --state().held; return OK; }
int cuCtxPushCurrent_v2(void *context) { contexts.push_back(context); return OK; }
int cuCtxPopCurrent_v2(void **context) {
    if (contexts.empty()) return INVALID_CONTEXT;
    *context = contexts.back();
    contexts.pop_back();
    return OK;
}

int cuStreamCreate(Stream *stream, unsigned flags) {
    ENTER(true);
    *stream = (Stream)(state().next += 0x10);
    state().streams[*stream] = flags;
    ++state().held;
    return OK;
}
int cuStreamDestroy_v2(Stream stream) { ENTER(true, stream); drain(stream); --state().held; state().streams.erase(stream); return OK; }
int cuStreamSynchronize(Stream stream) { ENTER(true, stream); drain(stream); return OK; }

int cuMemPoolCreate(void **pool, const void *) { ENTER(true); *pool = (void *)(state().next += 0x10); ++state().held; return OK; }
int cuMemPoolDestroy(void *) { ENTER(true); --state().held; return OK; }
int cuMemPoolSetAttribute(void *, int, void *) { ENTER(true); return OK; }
int cuMemAllocFromPoolAsync(Pointer *pointer, size_t size, void *, Stream stream) {
    ENTER(true, stream);
    return allocate(pointer, size, nullptr);
}
int cuMemFreeAsync(Pointer pointer, Stream stream) { ENTER(!stream, stream); return release(pointer, stream); }
int cuMemGetInfo_v2(size_t *free, size_t *total) { ENTER(true); *total = size_t(4) << 30; *free = *total - used(); return OK; }
int cuPointerGetAttribute(void *value, int kind, Pointer pointer) {
    ENTER(true);
    if (kind != 1 || !holds(pointer, 1)) return INVALID_VALUE;
    *(void **)value = std::prev(state().blocks.upper_bound(pointer))->second.context;
    return OK;
}
int cuMemcpyHtoDAsync_v2(Pointer target, const void *source, size_t size, Stream stream) {
    ENTER(true, stream);
    if (!holds(target, size)) return INVALID_VALUE;
    std::string copy((const char *)source, size);  // memory that is not pinned is read at once
    state().work[stream].push_back([=] { std::memcpy((void *)target, copy.data(), size); });
    state().bytes["up"] += size;
    return OK;
}
int cuMemcpyDtoHAsync_v2(void *target, Pointer source, size_t size, Stream stream) {
    ENTER(true, stream);
    if (!holds(source, size)) return INVALID_VALUE;
    state().work[stream].push_back([=] { std::memcpy(target, (void *)source, size); });
    state().bytes["down"] += size;
    return OK;
}

int cuModuleLoadData(void **module, const void *image) {
    ENTER(true);
    if (!std::strstr((const char *)image, ".version 8.0") || !std::strstr((const char *)image, ".target sm_75")) return INVALID_IMAGE;
    *module = const_cast<void *>(image);
    ++state().held;
    return OK;
}
int cuModuleUnload(void *) { ENTER(true); --state().held; return OK; }
int cuModuleGetFunction(void **function, void *module, const char *name) {
    ENTER(true);
    for (int k = 0; k < 3; ++k)
        if (!std::strcmp(name, KERNELS[k]) && std::strstr((const char *)module, (".entry " + std::string(name) + "(").c_str()))
            return *function = (void *)(long)(k + 1), OK;
    return NOT_FOUND;
}
int cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   Stream stream, void **arguments, void **extra) {
    ENTER(true, stream);
    if (!x || !y || !z || y > 65535 || z > 65535 || bx * by * bz > 1024 || bz > 64 || shared || extra) return INVALID_VALUE;
    Dim grid{int(x), int(y), int(z)}, block{int(bx), int(by), int(bz)};
    switch ((long)function) {
        case 1: return launch(standardise, grid, block, stream, arguments);
        case 2: return launch(meta_upscale_float, grid, block, stream, arguments);
        case 3: return launch(meta_upscale_half, grid, block, stream, arguments);
    }
    return INVALID_HANDLE;
}

int cuGetProcAddress_v2(const char *name, void **function, int, unsigned long long, int *) {
    static void *self = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
    for (const char *version : {"_v2", ""})
        if ((*function = dlsym(self, (std::string(name) + version).c_str()))) return OK;
    return NOT_FOUND;
}

// For tests.
int fake_allocate(Pointer *pointer, size_t size, void *context) { return allocate(pointer, size, context); }
int fake_free(Pointer pointer) { return release(pointer, LEGACY); }
void fake_write(Pointer target, const void *source, size_t size, Stream stream) {  // by a kernel of another library's
    std::string copy((const char *)source, size);
    state().work[named(stream)].push_back([=] { std::memcpy((void *)target, copy.data(), size); });
}
void fake_read(void *target, Pointer source, size_t size) { std::memcpy(target, (void *)source, size); }
long fake_stream() { state().streams[(Stream)(state().next += 0x10)] = 1; return state().next; }
void fake_drain(Stream stream) { drain(stream); }
int fake_holds(Pointer pointer, size_t size) { return holds(pointer, size); }
int fake_context() { return contexts.empty() ? 0 : contexts.back() == PRIMARY ? 1 : 2; }
int fake_depth() { return contexts.size(); }
void fake_push(void *context) { contexts.push_back(context); }
void fake_fail(const char *name, int status) { status ? void(state().failures[name] = status) : void(state().failures.erase(name)); }
long fake_calls(const char *name) { return state().calls[name]; }
long fake_bytes(const char *way) { return state().bytes[way]; }
size_t fake_used() { return used(); }
size_t fake_most() { return state().most; }
void fake_limit(size_t limit) { state().limit = limit; state().most = used(); }
int fake_left() { return state().held + int(state().blocks.size()); }
void fake_capability(int capability) { state().capability = capability; }
int fake_broken() { return state().broken; }
int fake_sizes(int kernel) { return kernel ? sizeof(Stage) : sizeof(Image); }
}
