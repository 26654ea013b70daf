/* A wall clock that is off: preloaded into the processes of a run, it adds seconds to the time of day.
 *
 * The seconds stand in the file $CHAOS_CLOCK/PROCESS, which is read at every look at the clock, so that a clock can
 * jump while its process runs. PROCESS is the value of --name, or the first argument. Without the file the clock is
 * right. Monotonic clocks are left alone, as NTP and people leave them. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static char offset_file[PATH_MAX];

__attribute__((constructor)) static void find_offset_file(void) {
    const char *folder = getenv("CHAOS_CLOCK");
    char line[4096] = {0};
    int file = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    if (!folder || file < 0)
        return;
    ssize_t length = read(file, line, sizeof line - 1);
    close(file);
    const char *name = NULL, *word = line;
    for (int index = 0; word < line + length; index++, word += strlen(word) + 1) {
        const char *next = word + strlen(word) + 1;
        if (index == 1)
            name = word;
        if (strcmp(word, "--name") == 0 && next < line + length)
            name = next;
    }
    if (name && snprintf(offset_file, sizeof offset_file, "%s/%s", folder, name) >= (int)sizeof offset_file)
        offset_file[0] = 0;
}

static long offset_s(void) {
    char text[32] = {0};
    int before = errno;
    int file = offset_file[0] ? open(offset_file, O_RDONLY | O_CLOEXEC) : -1;
    if (file >= 0) {
        if (read(file, text, sizeof text - 1) < 0)
            text[0] = 0;
        close(file);
    }
    errno = before;
    return atol(text);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = syscall(SYS_clock_gettime, clock, time);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        time->tv_sec += offset_s();
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec time;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &time);
    now->tv_sec = time.tv_sec;
    now->tv_usec = time.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out)
        *out = now.tv_sec;
    return now.tv_sec;
}
