// CUDA's runtime and cuDNN for the real onnxruntime-gpu: memory is the host's, kernels and convolutions compute nothing. All else
// that it asks for is a function that returns 0 (test_onnxruntime_gpu.py).

#include <cstdlib>
#include <cstring>

struct Properties {  // the beginning of CUDA 13's cudaDeviceProp
    char name[256], uuid[16], luid[8];
    unsigned mask;
    size_t memory, shared;
    int registers, warp;
    size_t pitch;
    int threads, block[3], grid[3];
    size_t constant;
    int major, minor;
    size_t alignment[2];
    int processors;
};

static long bytes[5];  // that were copied, by kind: host to host, host to device, device to host, device to device, as they lie

extern "C" {

int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaGetDeviceProperties(Properties *properties, int) {
    *properties = {"Fake T400", "", "", 0, 4ul << 30, 49152, 65536, 32, 0, 1024, {}, {1 << 30, 65535, 65535}, 0, 7, 5, {}, 6};
    return 0;
}
int cudaDeviceGetAttribute(int *value, int kind, int) { *value = kind == 75 ? 7 : kind == 76 ? 5 : 1024; return 0; }
int cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
int cudaRuntimeGetVersion(int *version) { *version = 13000; return 0; }
int cudaMalloc(void **memory, size_t size) {
    *memory = std::memset(std::aligned_alloc(256, (size + 511) / 256 * 256), 0, size);
    return 0;
}
int cudaHostAlloc(void **memory, size_t size, unsigned) { return cudaMalloc(memory, size); }
int cudaMallocHost(void **memory, size_t size) { return cudaMalloc(memory, size); }
int cudaFree(void *memory) { std::free(memory); return 0; }
int cudaFreeHost(void *memory) { return cudaFree(memory); }
int cudaMemcpy(void *target, const void *source, size_t size, int kind) {
    bytes[kind] += size;
    std::memmove(target, source, size);
    return 0;
}
int cudaMemcpyAsync(void *target, const void *source, size_t size, int kind, void *) { return cudaMemcpy(target, source, size, kind); }
int cudaMemGetInfo(size_t *free, size_t *total) { *free = *total = 4ul << 30; return 0; }
int cudaStreamCreateWithFlags(void **stream, unsigned) { *stream = std::malloc(1); return 0; }
int cudaEventCreateWithFlags(void **event, unsigned) { *event = std::malloc(1); return 0; }
int cudaStreamIsCapturing(void *, int *status) { *status = 0; return 0; }
const char *cudaGetErrorString(int) { return "a fake error"; }
const char *cudaGetErrorName(int) { return "a fake error"; }
int __cudaPopCallConfiguration(void *, void *, void *, void *) { return 1; }  // so that no kernel is launched
void **__cudaRegisterFatBinary(void *) { static void *binary; return &binary; }
long fake_bytes(int kind) { return bytes[kind]; }

size_t cudnnGetVersion() { return 91000; }
size_t cudnnGetCudartVersion() { return 13000; }
const char *cudnnGetErrorString(int) { return "a fake error"; }
int cudnnCreate(void **handle) { *handle = std::malloc(1); return 0; }
int cudnnGetStream(void *, void **stream) { *stream = nullptr; return 0; }
int cudnnBackendCreateDescriptor(int, void **descriptor) { *descriptor = std::malloc(1); return 0; }
int cudnnBackendGetAttribute(void *, int name, int type, long, long *count, void *values) {
    bool number = type == 3 || type == 23;  // int64, int32
    if (count) *count = number || name == 202;  // one way to compute a convolution
    if (values && number) std::memset(values, 0, type == 3 ? 8 : 4);
    return 0;
}

#define NOTHING(name) int name() { return 0; }
#define DESCRIPTOR(kind) NOTHING(cudnnCreate##kind##Descriptor) NOTHING(cudnnDestroy##kind##Descriptor)
DESCRIPTOR(Tensor) DESCRIPTOR(Filter) DESCRIPTOR(Convolution)
NOTHING(cudnnSetTensorNdDescriptor) NOTHING(cudnnSetFilterNdDescriptor) NOTHING(cudnnSetConvolutionNdDescriptor)
NOTHING(cudnnSetConvolutionMathType) NOTHING(cudnnSetConvolutionGroupCount)
NOTHING(cudnnAddTensor) NOTHING(cudnnConvolutionForward) NOTHING(cudnnSetStream) NOTHING(cudnnDestroy)
NOTHING(cudnnBackendSetAttribute) NOTHING(cudnnBackendFinalize) NOTHING(cudnnBackendExecute) NOTHING(cudnnBackendDestroyDescriptor)
NOTHING(cuTensorMapEncodeTiled)
}
