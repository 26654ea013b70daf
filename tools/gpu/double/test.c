// The double keeps to what double.h says; `gpu double --check` runs this first. With RETOUCH_DOUBLE_DEVICES=2.
#include "double.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

CUresult cuInit(unsigned);
CUresult cuDevicePrimaryCtxRetain(struct context **, int);
CUresult cuDevicePrimaryCtxRelease_v2(int);
CUresult cuCtxSetCurrent(struct context *);
CUresult cuMemAlloc_v2(CUdeviceptr *, size_t);
CUresult cuMemFree_v2(CUdeviceptr);
CUresult cuMemGetInfo_v2(size_t *, size_t *);
CUresult cuMemcpyHtoD_v2(CUdeviceptr, const void *, size_t);
CUresult cuMemcpyDtoH_v2(void *, CUdeviceptr, size_t);
CUresult cuModuleLoadData(struct module **, const void *);
CUresult cuModuleGetFunction(struct kernel **, const struct module *, const char *);
CUresult cuFuncSetAttribute(struct kernel *, int, int);
CUresult cuLaunchKernel(struct kernel *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **);
CUresult cuStreamCreate(struct stream **, unsigned);
CUresult cuEventCreate(struct event **, unsigned);
CUresult cuEventRecord(struct event *, void *);
CUresult cuEventElapsedTime(float *, const struct event *, const struct event *);
CUresult cuStreamBeginCapture_v2(void *, int);
CUresult cuStreamEndCapture(void *, struct graph **);
CUresult cuGraphInstantiateWithFlags(struct graph **, const struct graph *, unsigned long long);
CUresult cuGraphLaunch(const struct graph *, void *);

#define EXPECT(call, code)                                                                       \
    do {                                                                                         \
        CUresult result = (call);                                                                \
        if (result != (code)) {                                                                  \
            fprintf(stderr, "%s:%d: %s is %d, not %d\n", __FILE__, __LINE__, #call, result, code); \
            exit(1);                                                                             \
        }                                                                                        \
    } while (0)

static size_t free_bytes(void) {
    size_t free, total;
    EXPECT(cuMemGetInfo_v2(&free, &total), CUDA_SUCCESS);
    return free;
}

// D1: small copies come back until something is launched; large ones read as zeros.
static void copies(struct kernel *kernel) {
    CUdeviceptr memory;
    static char large[SMALL_COPY + 1], back[SMALL_COPY + 1];
    memset(large, 7, sizeof large);
    EXPECT(cuMemAlloc_v2(&memory, sizeof large), CUDA_SUCCESS);
    EXPECT(cuMemcpyHtoD_v2(memory, "shape", 6), CUDA_SUCCESS);
    EXPECT(cuMemcpyDtoH_v2(back, memory, 6), CUDA_SUCCESS);
    EXPECT(strcmp(back, "shape"), 0);
    EXPECT(cuLaunchKernel(kernel, 1, 1, 1, 32, 1, 1, 0, NULL, NULL, NULL), CUDA_SUCCESS);
    EXPECT(cuMemcpyDtoH_v2(back, memory, 6), CUDA_SUCCESS);
    EXPECT(back[0], 0);
    EXPECT(cuMemcpyHtoD_v2(memory, large, sizeof large), CUDA_SUCCESS);
    EXPECT(cuMemcpyDtoH_v2(back, memory, sizeof back), CUDA_SUCCESS);
    EXPECT(back[0], 0);
    EXPECT(cuMemcpyHtoD_v2(memory + 1, large, sizeof large), CUDA_ERROR_INVALID_VALUE);
    EXPECT(cuMemFree_v2(memory), CUDA_SUCCESS);
    EXPECT(cuMemFree_v2(memory), CUDA_ERROR_INVALID_VALUE);
}

// D2: each card has its own memory, and no more than there is.
static void memory(struct context *first, struct context *second) {
    CUdeviceptr most, more;
    EXPECT(cuCtxSetCurrent(second), CUDA_SUCCESS);
    size_t other = free_bytes();
    EXPECT(cuCtxSetCurrent(first), CUDA_SUCCESS);
    EXPECT(cuMemAlloc_v2(&most, free_bytes() - (4 << 20)), CUDA_SUCCESS);
    EXPECT(cuMemAlloc_v2(&more, 8 << 20), CUDA_ERROR_OUT_OF_MEMORY);
    EXPECT(cuCtxSetCurrent(second), CUDA_SUCCESS);
    EXPECT(free_bytes() == other, 1);
    EXPECT(cuMemAlloc_v2(&more, 8 << 20), CUDA_SUCCESS);
    EXPECT(cuMemFree_v2(more), CUDA_SUCCESS);
    EXPECT(cuMemFree_v2(most), CUDA_SUCCESS);
    EXPECT(cuCtxSetCurrent(first), CUDA_SUCCESS);
}

static float milliseconds(struct kernel *kernel, struct stream *stream, int launches, unsigned blocks) {
    struct event *start, *end;
    float taken;
    EXPECT(cuEventCreate(&start, 0), CUDA_SUCCESS);
    EXPECT(cuEventCreate(&end, 0), CUDA_SUCCESS);
    EXPECT(cuEventElapsedTime(&taken, start, end), CUDA_ERROR_INVALID_HANDLE);
    EXPECT(cuEventRecord(start, stream), CUDA_SUCCESS);
    for (int i = 0; i < launches; i++)
        EXPECT(cuLaunchKernel(kernel, blocks, 1, 1, 256, 1, 1, 0, stream, NULL, NULL), CUDA_SUCCESS);
    EXPECT(cuEventRecord(end, stream), CUDA_SUCCESS);
    EXPECT(cuEventElapsedTime(&taken, start, end), CUDA_SUCCESS);
    return taken;
}

int main(void) {
    struct context *first, *second;
    struct module *module;
    struct kernel *kernel;
    struct stream *stream;
    struct graph *graph, *executable;
    EXPECT(cuInit(0), CUDA_SUCCESS);
    EXPECT(cuDevicePrimaryCtxRetain(&first, 0), CUDA_SUCCESS);
    EXPECT(cuDevicePrimaryCtxRetain(&second, 1), CUDA_SUCCESS);
    EXPECT(cuDevicePrimaryCtxRetain(&second, 2), CUDA_ERROR_INVALID_DEVICE);
    EXPECT(cuDevicePrimaryCtxRetain(&second, 1), CUDA_SUCCESS);
    EXPECT(cuCtxSetCurrent(first), CUDA_SUCCESS);
    EXPECT(cuModuleLoadData(&module, "\177ELF"), CUDA_ERROR_INVALID_IMAGE);
    EXPECT(cuModuleLoadData(&module, ".version 9.0\n"), CUDA_SUCCESS);
    EXPECT(cuModuleGetFunction(&kernel, module, "kernel"), CUDA_SUCCESS);
    copies(kernel);
    memory(first, second);

    EXPECT(cuStreamCreate(&stream, 1), CUDA_SUCCESS);
    EXPECT(cuLaunchKernel(kernel, 1, 65536, 1, 32, 1, 1, 0, stream, NULL, NULL), CUDA_ERROR_INVALID_VALUE);
    EXPECT(cuLaunchKernel(kernel, 1, 1, 1, 1025, 1, 1, 0, stream, NULL, NULL), CUDA_ERROR_INVALID_VALUE);
    EXPECT(cuLaunchKernel(kernel, 1, 1, 1, 32, 1, 1, 65536, stream, NULL, NULL), CUDA_ERROR_INVALID_VALUE);
    EXPECT(cuFuncSetAttribute(kernel, 8, 232449), CUDA_ERROR_INVALID_VALUE);
    EXPECT(cuFuncSetAttribute(kernel, 8, 65536), CUDA_SUCCESS);
    EXPECT(cuLaunchKernel(kernel, 1, 1, 1, 32, 1, 1, 65536, stream, NULL, NULL), CUDA_SUCCESS);

    // D3: more launches and larger ones take longer, and the same ones the same time.
    float one = milliseconds(kernel, stream, 1, 100);
    EXPECT(one == milliseconds(kernel, stream, 1, 100), 1);
    EXPECT(one < milliseconds(kernel, stream, 1, 1000000), 1);
    EXPECT(1.9f * one < milliseconds(kernel, stream, 2, 100), 1);

    // The last holder of a context gives its memory back.
    EXPECT(cuDevicePrimaryCtxRelease_v2(1), CUDA_SUCCESS);
    EXPECT(cards_used(1) == CONTEXT_BYTES, 1);
    EXPECT(cuDevicePrimaryCtxRelease_v2(1), CUDA_SUCCESS);
    EXPECT(cards_used(1) == 0, 1);
    EXPECT(cuDevicePrimaryCtxRelease_v2(1), CUDA_ERROR_INVALID_CONTEXT);

    // A graph is one call of the host.
    unsigned long long before = double_counters.launches;
    EXPECT(cuStreamBeginCapture_v2(stream, 0), CUDA_SUCCESS);
    EXPECT(cuLaunchKernel(kernel, 1, 1, 1, 32, 1, 1, 0, stream, NULL, NULL), CUDA_SUCCESS);
    EXPECT(cuStreamEndCapture(stream, &graph), CUDA_SUCCESS);
    EXPECT(cuGraphInstantiateWithFlags(&executable, graph, 0), CUDA_SUCCESS);
    EXPECT(cuGraphLaunch(executable, stream), CUDA_SUCCESS);
    EXPECT(before == double_counters.launches && double_counters.graph_launches == 1, 1);
    puts("the driver double keeps to its rules");
    return 0;
}
