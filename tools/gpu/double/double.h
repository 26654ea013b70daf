// A CUDA driver without a GPU: `libcuda.so.1` that answers as NVIDIA's driver does on H100s or A100s, counts what
// it is asked, keeps the PTX, and computes nothing. Whole programs run their host side on it.
//
//     RETOUCH_DOUBLE_DIR       where counts and PTX go, and what processes share [/tmp]
//     RETOUCH_DOUBLE_DEVICES   how many cards there are, 0 to 16 [1]
//     RETOUCH_DOUBLE_CARD      h100 or a100 [h100]
//     RETOUCH_DOUBLE_MIB       memory of a card, where it is less than such cards have
//
// What it keeps to:
//   D1. Results are zeros: what comes back from a card is zeros, but for at most SMALL_COPY bytes that were copied
//       there after the last launch. Otherwise a result might be the bits of whatever was in its memory before, and
//       not a number.
//   D2. What the driver refuses is refused with the driver's error: grids, blocks and shared memory over the
//       card's limits, copies outside allocations, more memory than the card has. The cards' memory is shared by
//       all processes that have the same RETOUCH_DOUBLE_DIR, as it is on a machine.
//   D3. Events have plausible times that depend on the launches between them alone, so that runs are alike.
#ifndef RETOUCH_DOUBLE_H
#define RETOUCH_DOUBLE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

typedef int CUresult;
typedef int CUdevice;
typedef uint64_t CUdeviceptr;

enum {
    CUDA_SUCCESS = 0,
    CUDA_ERROR_INVALID_VALUE = 1,
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_INVALID_DEVICE = 101,
    CUDA_ERROR_INVALID_IMAGE = 200,
    CUDA_ERROR_INVALID_CONTEXT = 201,
    CUDA_ERROR_INVALID_HANDLE = 400,
    CUDA_ERROR_NOT_FOUND = 500,
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900,
};

#define DEVICES_MAX 16
#define PROCESSES_MAX 64
// What a context takes before the first allocation, as nvidia-smi shows it for an idle process.
#define CONTEXT_BYTES (520ull << 20)
// What all cards have alike.
#define THREADS_PER_MULTIPROCESSOR 2048
#define BLOCKS_PER_MULTIPROCESSOR 32
#define THREADS_PER_BLOCK 1024
#define SHARED_PER_BLOCK 49152
#define SMALL_COPY ((size_t)1 << 16)

struct card {
    const char *id, *name;
    int capability, multiprocessors, shared_per_block_optin, shared_per_multiprocessor, l2_bytes, clock_khz;
    uint64_t bytes;
};

extern const struct card *double_card;

// An allocation, on the host in truth.
struct block {
    uint64_t start, bytes, charged;
    int device;
};

struct context {
    int device;
};

struct module {
    char ptx[17]; // The hash that its file is called by.
};

struct kernel {
    struct kernel *next;
    const struct module *module;
    char *name;
    int shared_max;
    double probe_ns; // 0, or the fixed time of a probe.
    atomic_ullong launches;
};

// What a launch needs, also kept in graphs.
struct launch {
    struct kernel *kernel;
    uint64_t blocks, threads, shared;
};

struct graph {
    struct launch *launches;
    size_t count, capacity, copies;
};

struct stream {
    int device;
    double clock_ns; // The device's time when all that was queued is done.
    struct graph *capture;
};

struct event {
    int recorded, device;
    double clock_ns;
};

struct device {
    struct context context;
    struct stream default_stream;
    int retained, used; // Holders of the context now; whether there ever was one.
    uint64_t bytes, bytes_peak, allocations, frees, refused;
    atomic_ullong launches;
};

struct counters {
    atomic_ullong launches, modules, kernels_refused;
    atomic_ullong sync_stream, sync_event, sync_context;
    atomic_ullong h2d, h2d_bytes, d2h, d2h_bytes, d2d, d2d_bytes, sets, set_bytes;
    atomic_ullong graphs, graph_launches;
    atomic_ullong host_bytes, host_bytes_peak;
};

extern pthread_mutex_t double_lock; // Devices, blocks, modules and streams.
extern struct device double_devices[DEVICES_MAX];
extern struct counters double_counters;
extern struct kernel *double_kernels;

#define COUNT(counter, by) atomic_fetch_add_explicit(&double_counters.counter, (by), memory_order_relaxed)

// setup.c
int double_device_count(void);
const char *double_folder(void);
int double_current_device(void); // -1 without a context.
struct stream *double_stream(void *handle);

// cards.c: memory that processes share.
uint64_t cards_used(int device);
int cards_take(int device, uint64_t bytes); // 0 if the card has not so much.
void cards_give(int device, uint64_t bytes);
uint64_t cards_peak(int device);

// launch.c
double launch_ns(const struct launch *launch);

// report.c
void report_if_due(void);
void report_now(int finished);
void complain(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
