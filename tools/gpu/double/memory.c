// Allocations and copies.
#include "double.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static struct block *blocks; // By address.
static size_t block_count, block_capacity;

// The first block that starts after the address.
static size_t after(uint64_t address) {
    size_t low = 0, high = block_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (blocks[middle].start <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

// Whether the bytes lie in one allocation.
static int is_inside(uint64_t address, size_t bytes) {
    pthread_mutex_lock(&double_lock);
    size_t next = after(address);
    int inside = next > 0 && address + bytes <= blocks[next - 1].start + blocks[next - 1].bytes;
    pthread_mutex_unlock(&double_lock);
    return inside;
}

// The driver gives out pages of 2 MiB, and parts of them to small requests.
static uint64_t charge(size_t bytes) {
    uint64_t unit = bytes >= (1 << 20) ? 2 << 20 : 512;
    return (bytes + unit - 1) / unit * unit;
}

CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t bytes) {
    int device = double_current_device();
    if (device < 0)
        return CUDA_ERROR_INVALID_CONTEXT;
    if (bytes == 0)
        return CUDA_ERROR_INVALID_VALUE;
    struct device *d = &double_devices[device];
    uint64_t charged = charge(bytes);
    pthread_mutex_lock(&double_lock);
    if (!cards_take(device, charged)) {
        d->refused++;
        complain("cuda:%d: %zu bytes refused, %llu of %llu in use", device, bytes,
                 (unsigned long long)cards_used(device), (unsigned long long)double_card->bytes);
        pthread_mutex_unlock(&double_lock);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    // Pages exist once they are written to: a model of 24 GB takes next to nothing.
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (block_count == block_capacity) {
        block_capacity = block_capacity ? 2 * block_capacity : 256;
        blocks = realloc(blocks, block_capacity * sizeof *blocks);
    }
    if (memory == MAP_FAILED || !blocks)
        abort();
    size_t at = after((uint64_t)memory);
    memmove(blocks + at + 1, blocks + at, (block_count - at) * sizeof *blocks);
    blocks[at] = (struct block){(uint64_t)memory, bytes, charged, device};
    block_count++;
    d->allocations++;
    d->bytes += charged;
    if (d->bytes > d->bytes_peak)
        d->bytes_peak = d->bytes;
    *address = (uint64_t)memory;
    pthread_mutex_unlock(&double_lock);
    report_if_due();
    return CUDA_SUCCESS;
}

CUresult cuMemFree_v2(CUdeviceptr address) {
    if (address == 0)
        return CUDA_SUCCESS;
    pthread_mutex_lock(&double_lock);
    size_t next = after(address);
    struct block *block = next ? &blocks[next - 1] : NULL;
    int found = block && block->start == address;
    if (found) {
        struct device *d = &double_devices[block->device];
        munmap((void *)block->start, block->bytes);
        cards_give(block->device, block->charged);
        d->bytes -= block->charged;
        d->frees++;
        memmove(block, block + 1, (--block_count - (next - 1)) * sizeof *blocks);
    }
    pthread_mutex_unlock(&double_lock);
    report_if_due();
    return found ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemAllocAsync(CUdeviceptr *address, size_t bytes, void *stream) {
    (void)stream;
    return cuMemAlloc_v2(address, bytes);
}

CUresult cuMemFreeAsync(CUdeviceptr address, void *stream) {
    (void)stream;
    return cuMemFree_v2(address);
}

CUresult cuMemGetInfo_v2(size_t *free, size_t *total) {
    int device = double_current_device();
    if (device < 0)
        return CUDA_ERROR_INVALID_CONTEXT;
    pthread_mutex_lock(&double_lock);
    *total = double_card->bytes;
    *free = double_card->bytes - cards_used(device);
    pthread_mutex_unlock(&double_lock);
    return CUDA_SUCCESS;
}

// Pinned memory of the host: its size stands before it.
#define PINNED_HEADER 512

CUresult cuMemAllocHost_v2(void **memory, size_t bytes) {
    char *start;
    if (posix_memalign((void **)&start, PINNED_HEADER, PINNED_HEADER + bytes))
        return CUDA_ERROR_OUT_OF_MEMORY;
    *(size_t *)start = bytes;
    *memory = start + PINNED_HEADER;
    unsigned long long now = COUNT(host_bytes, bytes) + bytes;
    unsigned long long peak = atomic_load(&double_counters.host_bytes_peak);
    while (peak < now && !atomic_compare_exchange_weak(&double_counters.host_bytes_peak, &peak, now))
        ;
    return CUDA_SUCCESS;
}

CUresult cuMemHostAlloc(void **memory, size_t bytes, unsigned flags) {
    (void)flags;
    return cuMemAllocHost_v2(memory, bytes);
}

CUresult cuMemFreeHost(void *memory) {
    char *start = (char *)memory - PINNED_HEADER;
    atomic_fetch_sub(&double_counters.host_bytes, *(size_t *)start);
    free(start);
    return CUDA_SUCCESS;
}

// What a copy takes: 10 us and 50 GB/s to and from the host, 3 TB/s in the card's memory (read and written).
static void pass_time(void *handle, size_t bytes, double bytes_per_ns) {
    struct stream *stream = double_stream(handle);
    if (!stream)
        return;
    pthread_mutex_lock(&double_lock);
    if (stream->capture)
        stream->capture->copies++;
    else
        stream->clock_ns += 10e3 + bytes / bytes_per_ns;
    pthread_mutex_unlock(&double_lock);
    report_if_due();
}

static CUresult refuse(const char *call, CUdeviceptr address, size_t bytes) {
    complain("%s: %zu bytes at %#llx are not inside an allocation", call, bytes, (unsigned long long)address);
    return CUDA_ERROR_INVALID_VALUE;
}

// D1: what was copied to a card, and when by the count of launches.
#define UPLOADS 256
static struct { uint64_t start, bytes, launches; } uploads[UPLOADS];
static unsigned upload_count;

static void upload(CUdeviceptr to, const void *from, size_t bytes) {
    if (bytes > SMALL_COPY)
        return;
    memcpy((void *)to, from, bytes);
    pthread_mutex_lock(&double_lock);
    unsigned at = upload_count++ % UPLOADS;
    uploads[at].start = to;
    uploads[at].bytes = bytes;
    uploads[at].launches = double_counters.launches;
    pthread_mutex_unlock(&double_lock);
}

static void download(void *to, CUdeviceptr from, size_t bytes) {
    int known = 0;
    pthread_mutex_lock(&double_lock);
    for (unsigned i = 0; i < UPLOADS && !known; i++)
        known = uploads[i].launches == double_counters.launches && from >= uploads[i].start &&
                from + bytes <= uploads[i].start + uploads[i].bytes;
    pthread_mutex_unlock(&double_lock);
    if (known)
        memcpy(to, (void *)from, bytes);
    else
        memset(to, 0, bytes);
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, void *stream) {
    if (!is_inside(to, bytes))
        return refuse("cuMemcpyHtoDAsync", to, bytes);
    COUNT(h2d, 1);
    COUNT(h2d_bytes, bytes);
    upload(to, from, bytes);
    pass_time(stream, bytes, 50);
    return CUDA_SUCCESS;
}

CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, void *stream) {
    if (!is_inside(from, bytes))
        return refuse("cuMemcpyDtoHAsync", from, bytes);
    COUNT(d2h, 1);
    COUNT(d2h_bytes, bytes);
    download(to, from, bytes);
    pass_time(stream, bytes, 50);
    return CUDA_SUCCESS;
}

CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, void *stream) {
    if (!is_inside(to, bytes))
        return refuse("cuMemcpyDtoDAsync", to, bytes);
    if (!is_inside(from, bytes))
        return refuse("cuMemcpyDtoDAsync", from, bytes);
    COUNT(d2d, 1);
    COUNT(d2d_bytes, bytes);
    pass_time(stream, 2 * bytes, 3000);
    return CUDA_SUCCESS;
}

CUresult cuMemcpyPeerAsync(CUdeviceptr to, void *to_context, CUdeviceptr from, void *from_context, size_t bytes, void *stream) {
    (void)to_context;
    (void)from_context;
    return cuMemcpyDtoDAsync_v2(to, from, bytes, stream);
}

CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t bytes) { return cuMemcpyHtoDAsync_v2(to, from, bytes, NULL); }
CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t bytes) { return cuMemcpyDtoHAsync_v2(to, from, bytes, NULL); }
CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) { return cuMemcpyDtoDAsync_v2(to, from, bytes, NULL); }

// CUDA_MEMCPY2D: memory types are 1 for the host and 2 for the device.
struct copy2d {
    size_t from_x, from_y;
    int from_type;
    const char *from_host;
    CUdeviceptr from_device;
    void *from_array;
    size_t from_pitch;
    size_t to_x, to_y;
    int to_type;
    char *to_host;
    CUdeviceptr to_device;
    void *to_array;
    size_t to_pitch, width, height;
};

// Row by row, as plain copies are made; counted as one.
CUresult cuMemcpy2DAsync_v2(const struct copy2d *copy, void *stream) {
    size_t bytes = copy->width * copy->height;
    if (bytes == 0)
        return CUDA_SUCCESS;
    int down = copy->to_type == 1;
    CUdeviceptr device = down ? copy->from_device : copy->to_device;
    size_t pitch = down ? copy->from_pitch : copy->to_pitch;
    size_t extent = pitch * (copy->height - 1) + copy->width;
    if (copy->from_type == copy->to_type || pitch < copy->width)
        return CUDA_ERROR_INVALID_VALUE;
    if (!is_inside(device, extent))
        return refuse("cuMemcpy2DAsync", device, extent);
    for (size_t y = 0; y < copy->height; y++) {
        CUdeviceptr row = device + y * pitch;
        if (down)
            download(copy->to_host + y * copy->to_pitch, row, copy->width);
        else
            upload(row, copy->from_host + y * copy->from_pitch, copy->width);
    }
    if (down) {
        COUNT(d2h, 1);
        COUNT(d2h_bytes, bytes);
    } else {
        COUNT(h2d, 1);
        COUNT(h2d_bytes, bytes);
    }
    pass_time(stream, bytes, 50);
    return CUDA_SUCCESS;
}

CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t bytes, void *stream) {
    (void)value;
    if (!is_inside(to, bytes))
        return refuse("cuMemsetD8Async", to, bytes);
    COUNT(sets, 1);
    COUNT(set_bytes, bytes);
    pass_time(stream, bytes, 3000);
    return CUDA_SUCCESS;
}

CUresult cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t bytes) { return cuMemsetD8Async(to, value, bytes, NULL); }

// Pools need no care: there is one, and it keeps nothing back.
CUresult cuDeviceGetDefaultMemPool(void **pool, CUdevice device) {
    *pool = &double_devices[device];
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetMemPool(void **pool, CUdevice device) { return cuDeviceGetDefaultMemPool(pool, device); }

CUresult cuMemPoolSetAttribute(void *pool, int attribute, void *value) {
    (void)pool;
    (void)attribute;
    (void)value;
    return CUDA_SUCCESS;
}

CUresult cuMemPoolTrimTo(void *pool, size_t keep) {
    (void)pool;
    (void)keep;
    return CUDA_SUCCESS;
}
