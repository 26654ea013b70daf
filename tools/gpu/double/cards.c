// The memory of the cards, which all processes of a folder share: a file `cards` in it, mapped by each.
#include "double.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

struct process {
    atomic_int pid;
    atomic_ullong bytes[DEVICES_MAX];
};

struct cards {
    struct process processes[PROCESSES_MAX];
    atomic_ullong peak[DEVICES_MAX];
};

static struct cards *cards;
static struct process *own;

static int is_alive(int pid) { return kill(pid, 0) == 0 || errno != ESRCH; }

static struct process *claim(void) {
    for (int i = 0; i < PROCESSES_MAX; i++) {
        struct process *p = &cards->processes[i];
        int pid = atomic_load(&p->pid);
        if (pid && is_alive(pid))
            continue;
        if (atomic_compare_exchange_strong(&p->pid, &pid, (int)getpid())) {
            // What a killed process held is free again.
            for (int d = 0; d < DEVICES_MAX; d++)
                atomic_store(&p->bytes[d], 0);
            return p;
        }
    }
    return NULL;
}

// Called with the lock.
static struct process *self(void) {
    static struct cards private_cards;
    if (own)
        return own;
    char path[4096];
    snprintf(path, sizeof path, "%s/cards", double_folder());
    int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (file >= 0 && ftruncate(file, sizeof *cards) == 0) {
        void *map = mmap(NULL, sizeof *cards, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        cards = map == MAP_FAILED ? NULL : map;
    }
    if (file >= 0)
        close(file);
    own = cards ? claim() : NULL;
    if (!own) {
        complain("%s can't be shared: this process has the cards to itself", path);
        cards = &private_cards;
        own = claim();
    }
    return own;
}

uint64_t cards_used(int device) {
    self();
    uint64_t sum = 0;
    for (int i = 0; i < PROCESSES_MAX; i++) {
        struct process *p = &cards->processes[i];
        int pid = atomic_load(&p->pid);
        if (pid && is_alive(pid))
            sum += atomic_load(&p->bytes[device]);
    }
    return sum;
}

int cards_take(int device, uint64_t bytes) {
    struct process *p = self();
    // Taken first and given back if it was too much: two processes never get the same bytes.
    atomic_fetch_add(&p->bytes[device], bytes);
    uint64_t used = cards_used(device);
    if (used > double_card->bytes) {
        atomic_fetch_sub(&p->bytes[device], bytes);
        return 0;
    }
    unsigned long long peak = atomic_load(&cards->peak[device]);
    while (peak < used && !atomic_compare_exchange_weak(&cards->peak[device], &peak, used))
        ;
    return 1;
}

void cards_give(int device, uint64_t bytes) { atomic_fetch_sub(&self()->bytes[device], bytes); }

uint64_t cards_peak(int device) {
    self();
    return atomic_load(&cards->peak[device]);
}
