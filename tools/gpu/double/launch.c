// Streams, events, modules, launches, graphs.
#include "double.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct kernel *double_kernels;

// --- the clock ---

// Autotune first measures what the card can do: throughputs by the host's clock, around a launch and a wait, and the
// cost of a launch by events. On the double the former would come out as infinite, and the measurement panics. So such
// launches take the host PROBE_S, which makes the card a slow one: then autotune takes the first candidate of each
// operation, the one that its authors expect to be the best, as it is fast enough for that card. Every run chooses
// alike, and no others are compiled.
#define PROBE_S 0.025
#define PROBE_LAUNCH_NS 20e3

static void know_probes(struct kernel *kernel) {
    if (strstr(kernel->name, "_throughput"))
        kernel->probe_ns = 1e9 * PROBE_S;
    else if (strstr(kernel->name, "launch_overhead"))
        kernel->probe_ns = PROBE_LAUNCH_NS;
}

static void let_host_wait(const struct kernel *kernel) {
    if (kernel->probe_ns >= 1e9 * PROBE_S)
        nanosleep(&(struct timespec){.tv_nsec = (long)kernel->probe_ns}, NULL);
}

// Waves of blocks over the multiprocessors, each taking longer with more threads. It ranks kernels by
// launches first and size second, which is all that is asked of it.
double launch_ns(const struct launch *launch) {
    if (launch->kernel->probe_ns)
        return launch->kernel->probe_ns;
    uint64_t resident = THREADS_PER_MULTIPROCESSOR / launch->threads;
    if (launch->shared && (uint64_t)double_card->shared_per_multiprocessor / launch->shared < resident)
        resident = (uint64_t)double_card->shared_per_multiprocessor / launch->shared;
    if (resident > BLOCKS_PER_MULTIPROCESSOR)
        resident = BLOCKS_PER_MULTIPROCESSOR;
    uint64_t places = double_card->multiprocessors * (resident ? resident : 1);
    uint64_t waves = (launch->blocks + places - 1) / places;
    return 5e3 + waves * (500 + (double)launch->threads);
}

// --- streams and events ---

CUresult cuStreamCreate(struct stream **stream, unsigned flags) {
    (void)flags;
    int device = double_current_device();
    if (device < 0)
        return CUDA_ERROR_INVALID_CONTEXT;
    *stream = calloc(1, sizeof **stream);
    (*stream)->device = device;
    return CUDA_SUCCESS;
}

CUresult cuStreamCreateWithPriority(struct stream **stream, unsigned flags, int priority) {
    (void)priority;
    return cuStreamCreate(stream, flags);
}

CUresult cuStreamDestroy_v2(struct stream *stream) {
    free(stream);
    return CUDA_SUCCESS;
}

CUresult cuStreamSynchronize(void *handle) {
    struct stream *stream = double_stream(handle);
    if (!stream)
        return CUDA_ERROR_INVALID_CONTEXT;
    if (stream->capture)
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    COUNT(sync_stream, 1);
    report_if_due();
    return CUDA_SUCCESS;
}

CUresult cuStreamQuery(void *handle) { return double_stream(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT; }

CUresult cuStreamWaitEvent(void *handle, const struct event *event, unsigned flags) {
    (void)flags;
    struct stream *stream = double_stream(handle);
    if (!stream)
        return CUDA_ERROR_INVALID_CONTEXT;
    pthread_mutex_lock(&double_lock);
    if (event->recorded && stream->clock_ns < event->clock_ns)
        stream->clock_ns = event->clock_ns;
    pthread_mutex_unlock(&double_lock);
    return CUDA_SUCCESS;
}

CUresult cuEventCreate(struct event **event, unsigned flags) {
    (void)flags;
    int device = double_current_device();
    if (device < 0)
        return CUDA_ERROR_INVALID_CONTEXT;
    *event = calloc(1, sizeof **event);
    (*event)->device = device;
    return CUDA_SUCCESS;
}

CUresult cuEventDestroy_v2(struct event *event) {
    free(event);
    return CUDA_SUCCESS;
}

CUresult cuEventRecord(struct event *event, void *handle) {
    struct stream *stream = double_stream(handle);
    if (!stream)
        return CUDA_ERROR_INVALID_CONTEXT;
    if (stream->device != event->device)
        return CUDA_ERROR_INVALID_HANDLE;
    pthread_mutex_lock(&double_lock);
    event->recorded = 1;
    event->clock_ns = stream->clock_ns;
    pthread_mutex_unlock(&double_lock);
    return CUDA_SUCCESS;
}

CUresult cuEventQuery(struct event *event) {
    (void)event;
    return CUDA_SUCCESS;
}

CUresult cuEventSynchronize(struct event *event) {
    (void)event;
    COUNT(sync_event, 1);
    report_if_due();
    return CUDA_SUCCESS;
}

CUresult cuEventElapsedTime_v2(float *milliseconds, const struct event *start, const struct event *end) {
    if (!start->recorded || !end->recorded)
        return CUDA_ERROR_INVALID_HANDLE;
    *milliseconds = (float)((end->clock_ns - start->clock_ns) / 1e6);
    return CUDA_SUCCESS;
}

CUresult cuEventElapsedTime(float *milliseconds, const struct event *start, const struct event *end) {
    return cuEventElapsedTime_v2(milliseconds, start, end);
}

// --- modules ---

// FNV-1a: names files of the same text alike.
static uint64_t hash(const char *text) {
    uint64_t value = 0xcbf29ce484222325ull;
    for (; *text; text++)
        value = (value ^ (unsigned char)*text) * 0x100000001b3ull;
    return value;
}

static void keep(const struct module *module, const char *text) {
    char path[4096], partial[4200];
    snprintf(path, sizeof path, "%s/%s.ptx", double_folder(), module->ptx);
    if (access(path, F_OK) == 0)
        return;
    snprintf(partial, sizeof partial, "%s.%d", path, (int)getpid());
    FILE *file = fopen(partial, "w");
    int whole = file && fputs(text, file) >= 0;
    if (file && (fclose(file) || !whole || rename(partial, path)))
        complain("can't write %s", path);
}

CUresult cuModuleLoadData(struct module **module, const void *image) {
    // Binaries are not PTX, and nothing here could say what is in them.
    if (double_current_device() < 0)
        return CUDA_ERROR_INVALID_CONTEXT;
    if (!strstr(image, ".version"))
        return CUDA_ERROR_INVALID_IMAGE;
    *module = calloc(1, sizeof **module);
    snprintf((*module)->ptx, sizeof (*module)->ptx, "%016llx", (unsigned long long)hash(image));
    COUNT(modules, 1);
    pthread_mutex_lock(&double_lock);
    keep(*module, image);
    pthread_mutex_unlock(&double_lock);
    return CUDA_SUCCESS;
}

// Kernels outlive their module: the report names them.
CUresult cuModuleUnload(struct module *module) {
    (void)module;
    return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(struct kernel **kernel, const struct module *module, const char *name) {
    *kernel = calloc(1, sizeof **kernel);
    (*kernel)->module = module;
    (*kernel)->name = strdup(name);
    (*kernel)->shared_max = SHARED_PER_BLOCK;
    know_probes(*kernel);
    pthread_mutex_lock(&double_lock);
    (*kernel)->next = double_kernels;
    double_kernels = *kernel;
    pthread_mutex_unlock(&double_lock);
    return CUDA_SUCCESS;
}

#define MAX_DYNAMIC_SHARED_SIZE_BYTES 8

CUresult cuFuncSetAttribute(struct kernel *kernel, int attribute, int value) {
    if (attribute != MAX_DYNAMIC_SHARED_SIZE_BYTES)
        return CUDA_SUCCESS;
    if (value < 0 || value > double_card->shared_per_block_optin) {
        complain("%s: %d bytes of shared memory, at most %d", kernel->name, value, double_card->shared_per_block_optin);
        return CUDA_ERROR_INVALID_VALUE;
    }
    kernel->shared_max = value;
    return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int *value, int attribute, const struct kernel *kernel) {
    *value = attribute == 0 ? THREADS_PER_BLOCK : attribute == MAX_DYNAMIC_SHARED_SIZE_BYTES ? kernel->shared_max : 0;
    return CUDA_SUCCESS;
}

// --- launches ---

static void run(struct stream *stream, const struct launch *launch) {
    stream->clock_ns += launch_ns(launch);
    atomic_fetch_add_explicit(&launch->kernel->launches, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&double_devices[stream->device].launches, 1, memory_order_relaxed);
    COUNT(launches, 1);
}

static void record(struct graph *graph, const struct launch *launch) {
    if (graph->count == graph->capacity) {
        graph->capacity = graph->capacity ? 2 * graph->capacity : 64;
        graph->launches = realloc(graph->launches, graph->capacity * sizeof *graph->launches);
        if (!graph->launches)
            abort();
    }
    graph->launches[graph->count++] = *launch;
}

CUresult cuLaunchKernel(struct kernel *kernel, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                        unsigned shared, void *handle, void **arguments, void **extra) {
    (void)arguments;
    (void)extra;
    struct stream *stream = double_stream(handle);
    if (!stream)
        return CUDA_ERROR_INVALID_CONTEXT;
    uint64_t threads = (uint64_t)bx * by * bz;
    const char *wrong = !gx || !gy || !gz                                      ? "an empty grid"
                        : gx > 2147483647u || gy > 65535 || gz > 65535         ? "a grid over 2147483647, 65535, 65535"
                        : !threads || threads > THREADS_PER_BLOCK || bz > 64   ? "a block over 1024 threads, or 64 in z"
                        : shared > (unsigned)kernel->shared_max                ? "more shared memory than it opted in to"
                                                                               : NULL;
    if (wrong) {
        COUNT(kernels_refused, 1);
        complain("%s refused: %s; grid %u, %u, %u, block %u, %u, %u, shared memory %u of %d", kernel->name, wrong, gx, gy, gz,
                 bx, by, bz, shared, kernel->shared_max);
        return CUDA_ERROR_INVALID_VALUE;
    }
    struct launch launch = {kernel, (uint64_t)gx * gy * gz, threads, shared};
    pthread_mutex_lock(&double_lock);
    if (stream->capture)
        record(stream->capture, &launch);
    else
        run(stream, &launch);
    pthread_mutex_unlock(&double_lock);
    let_host_wait(kernel);
    report_if_due();
    return CUDA_SUCCESS;
}

CUresult cuLaunchCooperativeKernel(struct kernel *kernel, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                                   unsigned bz, unsigned shared, void *handle, void **arguments) {
    return cuLaunchKernel(kernel, gx, gy, gz, bx, by, bz, shared, handle, arguments, NULL);
}

CUresult cuLaunchHostFunc(void *handle, void (*function)(void *), void *argument) {
    (void)handle;
    function(argument);
    return CUDA_SUCCESS;
}

// Descriptors of the tensor memory accelerator: what the driver checks of them.
CUresult cuTensorMapEncodeTiled(void *map, int type, unsigned rank, void *address, const uint64_t *dimensions, const uint64_t *strides,
                                const unsigned *box, const unsigned *element_strides, int interleave, int swizzle, int promotion, int fill) {
    (void)type, (void)element_strides, (void)interleave, (void)swizzle, (void)promotion, (void)fill;
    int right = rank >= 1 && rank <= 5 && (uintptr_t)address % 16 == 0;
    for (unsigned i = 0; right && i < rank; i++)
        right = dimensions[i] >= 1 && dimensions[i] <= 1ull << 32 && box[i] >= 1 && box[i] <= 256 && (i == 0 || strides[i - 1] % 16 == 0);
    memset(map, 0, 128);
    if (!right)
        complain("cuTensorMapEncodeTiled refused: rank %u, at %p", rank, address);
    return right ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuTensorMapEncodeIm2col(void *map, int type, unsigned rank, void *address) {
    (void)type;
    memset(map, 0, 128);
    return rank >= 3 && rank <= 5 && (uintptr_t)address % 16 == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

// --- graphs ---

CUresult cuStreamBeginCapture_v2(void *handle, int mode) {
    (void)mode;
    struct stream *stream = double_stream(handle);
    if (!handle || stream->capture)
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    stream->capture = calloc(1, sizeof *stream->capture);
    return CUDA_SUCCESS;
}

CUresult cuStreamEndCapture(void *handle, struct graph **graph) {
    struct stream *stream = double_stream(handle);
    if (!stream || !stream->capture)
        return CUDA_ERROR_INVALID_VALUE;
    *graph = stream->capture;
    stream->capture = NULL;
    return CUDA_SUCCESS;
}

CUresult cuStreamIsCapturing(void *handle, int *status) {
    struct stream *stream = double_stream(handle);
    *status = stream && stream->capture;
    return CUDA_SUCCESS;
}

// Kernels first, then copies: enough to be counted by kind.
CUresult cuGraphGetNodes(const struct graph *graph, uintptr_t *nodes, size_t *count) {
    if (nodes)
        for (size_t i = 0; i < *count; i++)
            nodes[i] = i < graph->count;
    else
        *count = graph->count + graph->copies;
    return CUDA_SUCCESS;
}

CUresult cuGraphNodeGetType(uintptr_t is_kernel, int *type) {
    *type = is_kernel ? 0 : 1;
    return CUDA_SUCCESS;
}

CUresult cuGraphInstantiateWithFlags(struct graph **executable, const struct graph *graph, unsigned long long flags) {
    (void)flags;
    struct graph *copy = calloc(1, sizeof *copy);
    *copy = (struct graph){malloc(graph->count * sizeof *graph->launches + 1), graph->count, graph->count, graph->copies};
    memcpy(copy->launches, graph->launches, graph->count * sizeof *graph->launches);
    *executable = copy;
    COUNT(graphs, 1);
    return CUDA_SUCCESS;
}

CUresult cuGraphUpload(struct graph *executable, void *handle) {
    (void)executable;
    (void)handle;
    return CUDA_SUCCESS;
}

// One call of the host: its kernels are not counted as launches. They start without the host's 5 us.
CUresult cuGraphLaunch(const struct graph *executable, void *handle) {
    struct stream *stream = double_stream(handle);
    if (!stream)
        return CUDA_ERROR_INVALID_CONTEXT;
    pthread_mutex_lock(&double_lock);
    for (size_t i = 0; i < executable->count; i++)
        stream->clock_ns += launch_ns(&executable->launches[i]) - 4e3;
    pthread_mutex_unlock(&double_lock);
    COUNT(graph_launches, 1);
    report_if_due();
    return CUDA_SUCCESS;
}

CUresult cuGraphExecDestroy(struct graph *graph) {
    free(graph->launches);
    free(graph);
    return CUDA_SUCCESS;
}

CUresult cuGraphDestroy(struct graph *graph) { return cuGraphExecDestroy(graph); }
