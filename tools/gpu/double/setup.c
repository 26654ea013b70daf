// Initialization, devices, contexts and errors.
#include "double.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

pthread_mutex_t double_lock = PTHREAD_MUTEX_INITIALIZER;
struct device double_devices[DEVICES_MAX];
struct counters double_counters;

// Names say what they are: caches of tuned kernels are kept by name, and must not be taken for a real card's.
static const struct card cards[] = {
    {"h100", "NVIDIA H100 80GB HBM3 (double)", 90, 132, 232448, 233472, 52428800, 1980000, 81559ull << 20},
    {"a100", "NVIDIA A100-SXM4-80GB (double)", 80, 108, 166912, 167936, 41943040, 1410000, 81920ull << 20},
};
static struct card card;
const struct card *double_card = &card;

static int devices;
static _Thread_local struct context *current;

const char *double_folder(void) {
    const char *folder = getenv("RETOUCH_DOUBLE_DIR");
    return folder && *folder ? folder : "/tmp";
}

int double_device_count(void) { return devices; }

int double_current_device(void) { return current ? current->device : -1; }

struct stream *double_stream(void *handle) {
    if (handle)
        return handle;
    int device = double_current_device();
    return device < 0 ? NULL : &double_devices[device].default_stream;
}

__attribute__((constructor)) static void begin(void) {
    const char *text = getenv("RETOUCH_DOUBLE_DEVICES");
    devices = text ? atoi(text) : 1;
    if (devices < 0 || devices > DEVICES_MAX) {
        complain("RETOUCH_DOUBLE_DEVICES=%s is not 0 to %d: there is one device", text, DEVICES_MAX);
        devices = 1;
    }
    const char *id = getenv("RETOUCH_DOUBLE_CARD");
    int is_a100 = id && !strcmp(id, cards[1].id);
    if (id && !is_a100 && strcmp(id, cards[0].id))
        complain("RETOUCH_DOUBLE_CARD=%s is neither h100 nor a100: it is an h100", id);
    card = cards[is_a100];
    const char *mib = getenv("RETOUCH_DOUBLE_MIB");
    uint64_t bytes = mib ? strtoull(mib, NULL, 10) << 20 : card.bytes;
    if (bytes == 0 || bytes > card.bytes)
        complain("RETOUCH_DOUBLE_MIB=%s is not 1 to %llu: it is all", mib, (unsigned long long)(card.bytes >> 20));
    else
        card.bytes = bytes;
    for (int i = 0; i < devices; i++) {
        double_devices[i].context.device = i;
        double_devices[i].default_stream.device = i;
    }
}

__attribute__((destructor)) static void end(void) { report_now(1); }

CUresult cuInit(unsigned flags) {
    (void)flags;
    return devices ? CUDA_SUCCESS : 100; // CUDA_ERROR_NO_DEVICE
}

// CUDA 13.0, whose PTX (9.0) is the newest that Debian's LLVM writes.
CUresult cuDriverGetVersion(int *version) {
    *version = 13000;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int *count) {
    *count = devices;
    return CUDA_SUCCESS;
}

static int is_device(CUdevice device) { return device >= 0 && device < devices; }

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    if (!is_device(ordinal))
        return CUDA_ERROR_INVALID_DEVICE;
    *device = ordinal;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char *name, int length, CUdevice device) {
    if (!is_device(device))
        return CUDA_ERROR_INVALID_DEVICE;
    snprintf(name, length, "%s", double_card->name);
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetUuid_v2(char *uuid, CUdevice device) {
    if (!is_device(device))
        return CUDA_ERROR_INVALID_DEVICE;
    memcpy(uuid, "retouch double\0", 15);
    uuid[15] = (char)device;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetUuid(char *uuid, CUdevice device) { return cuDeviceGetUuid_v2(uuid, device); }

CUresult cuDeviceGetPCIBusId(char *text, int length, CUdevice device) {
    if (!is_device(device))
        return CUDA_ERROR_INVALID_DEVICE;
    snprintf(text, length, "0000:%02x:00.0", 0x10 + device);
    return CUDA_SUCCESS;
}

CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
    if (!is_device(device))
        return CUDA_ERROR_INVALID_DEVICE;
    *bytes = double_card->bytes;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device) {
    if (!is_device(device))
        return CUDA_ERROR_INVALID_DEVICE;
    switch (attribute) {
    case 1: *value = THREADS_PER_BLOCK; break;
    case 2: case 3: *value = 1024; break;      // largest block, x and y
    case 4: *value = 64; break;                // z
    case 5: *value = 2147483647; break;        // largest grid, x
    case 6: case 7: *value = 65535; break;     // y and z
    case 8: *value = SHARED_PER_BLOCK; break;
    case 9: *value = 65536; break;             // constant memory
    case 10: *value = 32; break;               // warp size
    case 11: *value = 2147483647; break;       // pitch
    case 12: *value = 65536; break;            // registers per block
    case 13: *value = double_card->clock_khz; break;
    case 14: *value = 512; break;              // texture alignment
    case 16: *value = double_card->multiprocessors; break;
    case 33: *value = 0x10 + device; break;    // PCI bus
    case 36: *value = 2619000; break;          // memory clock, kHz
    case 37: *value = 5120; break;             // memory bus, bits
    case 38: *value = double_card->l2_bytes; break;
    case 39: *value = THREADS_PER_MULTIPROCESSOR; break;
    case 41: *value = 1; break;                // unified addressing
    case 75: *value = double_card->capability / 10; break;
    case 76: *value = double_card->capability % 10; break;
    case 78: *value = 1; break;                // stream priorities
    case 81: *value = double_card->shared_per_multiprocessor; break;
    case 82: *value = 65536; break;            // registers per multiprocessor
    case 83: *value = 1; break;                // managed memory
    case 95: *value = 1; break;                // cooperative launches
    case 97: *value = double_card->shared_per_block_optin; break;
    case 106: *value = BLOCKS_PER_MULTIPROCESSOR; break;
    case 115: *value = 1; break;               // memory pools
    case 120: *value = double_card->capability >= 90; break; // clusters
    default: *value = 0;
    }
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(struct context **context, CUdevice device) {
    if (!is_device(device))
        return CUDA_ERROR_INVALID_DEVICE;
    pthread_mutex_lock(&double_lock);
    struct device *d = &double_devices[device];
    int fits = d->retained || cards_take(device, CONTEXT_BYTES);
    d->retained += fits;
    d->used |= fits;
    pthread_mutex_unlock(&double_lock);
    *context = &d->context;
    return fits ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

// The last holder's release gives the context's own memory back. Allocations that a real one would free, too, stay:
// a program that has some left is about to end.
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    if (!is_device(device))
        return CUDA_ERROR_INVALID_DEVICE;
    pthread_mutex_lock(&double_lock);
    struct device *d = &double_devices[device];
    int held = d->retained > 0;
    if (held && --d->retained == 0)
        cards_give(device, CONTEXT_BYTES);
    pthread_mutex_unlock(&double_lock);
    return held ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

CUresult cuCtxSetCurrent(struct context *context) {
    current = context;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(struct context **context) {
    *context = current;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice *device) {
    if (!current)
        return CUDA_ERROR_INVALID_CONTEXT;
    *device = current->device;
    return CUDA_SUCCESS;
}

CUresult cuCtxSynchronize(void) {
    if (!current)
        return CUDA_ERROR_INVALID_CONTEXT;
    COUNT(sync_context, 1);
    report_if_due();
    return CUDA_SUCCESS;
}

CUresult cuCtxSetFlags(unsigned flags) {
    (void)flags;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0;
    *greatest = -5;
    return CUDA_SUCCESS;
}

static const struct { CUresult code; const char *name, *text; } errors[] = {
    {CUDA_SUCCESS, "CUDA_SUCCESS", "no error"},
    {CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {CUDA_ERROR_INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {CUDA_ERROR_INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {CUDA_ERROR_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {CUDA_ERROR_INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {CUDA_ERROR_NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
     "operation not permitted when stream is capturing"},
};

static int find_error(CUresult code) {
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].code == code)
            return (int)i;
    return -1;
}

CUresult cuGetErrorName(CUresult code, const char **name) {
    int i = find_error(code);
    *name = i < 0 ? NULL : errors[i].name;
    return i < 0 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult code, const char **text) {
    int i = find_error(code);
    *text = i < 0 ? NULL : errors[i].text;
    return i < 0 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
