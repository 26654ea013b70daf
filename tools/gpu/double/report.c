// What was counted, as JSON in `<pid>.json`: at the end, and while the program runs every 200 ms that it calls.
// A program that wants it at once calls `retouch_double_report`.
#include "double.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define REPORT_INTERVAL_S 0.2

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + 1e-9 * now.tv_nsec;
}

void complain(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("driver double: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
}

static void write_text(FILE *file, const char *text) {
    fputc('"', file);
    for (; *text; text++) {
        if (*text == '"' || *text == '\\')
            fprintf(file, "\\%c", *text);
        else if ((unsigned char)*text < ' ')
            fprintf(file, "\\u%04x", *text);
        else
            fputc(*text, file);
    }
    fputc('"', file);
}

static void write_command(FILE *file) {
    static char line[4096];
    FILE *source = fopen("/proc/self/cmdline", "r");
    size_t length = source ? fread(line, 1, sizeof line - 1, source) : 0;
    if (source)
        fclose(source);
    for (size_t i = 0; i + 1 < length; i++)
        if (!line[i])
            line[i] = ' ';
    line[length] = 0;
    fputs("  \"command\": ", file);
    write_text(file, line);
    fputs(",\n", file);
}

#define N(value) ((unsigned long long)(value))

static void write_devices(FILE *file) {
    fputs("  \"devices\": [", file);
    const char *separator = "\n";
    for (int i = 0; i < double_device_count(); i++) {
        const struct device *d = &double_devices[i];
        if (!d->used)
            continue;
        fprintf(file,
                "%s    {\"ordinal\": %d, \"launches\": %llu, \"bytes\": %llu, \"bytes_peak\": %llu, \"allocations\": %llu, "
                "\"frees\": %llu, \"refused\": %llu, \"card_bytes\": %llu, \"card_bytes_peak\": %llu}",
                separator, i, N(d->launches), N(d->bytes), N(d->bytes_peak), N(d->allocations), N(d->frees), N(d->refused),
                N(cards_used(i)), N(cards_peak(i)));
        separator = ",\n";
    }
    fputs("\n  ],\n", file);
}

static void write_kernels(FILE *file) {
    fputs("  \"kernels\": [", file);
    const char *separator = "\n";
    for (struct kernel *k = double_kernels; k; k = k->next) {
        fprintf(file, "%s    {\"launches\": %llu, \"ptx\": \"%s\", \"name\": ", separator, N(k->launches), k->module->ptx);
        write_text(file, k->name);
        fputc('}', file);
        separator = ",\n";
    }
    fputs("\n  ]\n", file);
}

static void write_counters(FILE *file) {
    const struct counters *c = &double_counters;
    fprintf(file, "  \"launches\": %llu,\n  \"refused\": %llu,\n  \"modules\": %llu,\n", N(c->launches), N(c->kernels_refused), N(c->modules));
    fprintf(file, "  \"syncs\": {\"stream\": %llu, \"event\": %llu, \"context\": %llu},\n", N(c->sync_stream), N(c->sync_event), N(c->sync_context));
    const char *copies = "  \"copies\": {\"h2d\": %llu, \"h2d_bytes\": %llu, \"d2h\": %llu, \"d2h_bytes\": %llu, \"d2d\": %llu, \"d2d_bytes\": %llu},\n";
    fprintf(file, copies, N(c->h2d), N(c->h2d_bytes), N(c->d2h), N(c->d2h_bytes), N(c->d2d), N(c->d2d_bytes));
    fprintf(file, "  \"memsets\": {\"count\": %llu, \"bytes\": %llu},\n", N(c->sets), N(c->set_bytes));
    fprintf(file, "  \"graphs\": {\"made\": %llu, \"launched\": %llu},\n", N(c->graphs), N(c->graph_launches));
    fprintf(file, "  \"pinned\": {\"bytes\": %llu, \"bytes_peak\": %llu},\n", N(c->host_bytes), N(c->host_bytes_peak));
}

void report_now(int finished) {
    char path[4096], partial[4200];
    snprintf(path, sizeof path, "%s/%d.json", double_folder(), (int)getpid());
    snprintf(partial, sizeof partial, "%s.partial", path);
    pthread_mutex_lock(&double_lock);
    FILE *file = fopen(partial, "w");
    if (file) {
        fprintf(file, "{\n  \"pid\": %d,\n  \"finished\": %s,\n", (int)getpid(), finished ? "true" : "false");
        write_command(file);
        write_counters(file);
        write_devices(file);
        write_kernels(file);
        fputs("}\n", file);
    }
    // Readers find a whole file, if an old one.
    if (!file || fclose(file) || rename(partial, path))
        complain("can't write %s", path);
    pthread_mutex_unlock(&double_lock);
}

void report_if_due(void) {
    static _Atomic double due;
    double now = seconds(), expected = atomic_load(&due);
    if (now >= expected && atomic_compare_exchange_strong(&due, &expected, now + REPORT_INTERVAL_S))
        report_now(0);
}

void retouch_double_report(void) { report_now(0); }
