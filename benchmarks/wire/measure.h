/* What the load generator measures with: a clock, percentiles, and what a process has used so far. Linux only. */
#ifndef MEASURE_H
#define MEASURE_H

#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Counts of values, 32 buckets for each power of two: a percentile is exact to 3 %. */
enum { BUCKETS = 32 * 60 };

struct histogram {
    uint64_t counts[BUCKETS];
    uint64_t total, largest;
};

static int bucket_of(uint64_t value)
{
    if (value < 64)
        return value;
    int shift = 58 - __builtin_clzll(value); /* leaves 32 to 63 */
    return 32 * (shift + 1) + (value >> shift) - 32;
}

static void histogram_add(struct histogram *histogram, uint64_t value)
{
    histogram->counts[bucket_of(value)]++;
    histogram->total++;
    if (value > histogram->largest)
        histogram->largest = value;
}

/* Return the least value of the bucket that this part of all values reaches. */
static uint64_t histogram_quantile(const struct histogram *histogram, double part)
{
    uint64_t wanted = part * histogram->total, seen = 0;
    for (int i = 0; i < BUCKETS; i++) {
        seen += histogram->counts[i];
        if (seen > wanted)
            return i < 64 ? (uint64_t)i : (uint64_t)(i % 32 + 32) << (i / 32 - 1);
    }
    return histogram->largest;
}

/* CPU time of a process, in seconds. `total` is exact: the scheduler counts it in nanoseconds. How much of it was user
 * mode is what the kernel found at its ticks, some hundred times a second, scaled to the total; so a phase is to last.
 * `waited` is for how long it would have run, but another process had the core: then latencies tell of that one. */
struct cpu {
    double total, user, kernel, waited;
};

static struct cpu cpu_of(int pid)
{
    struct cpu used = {0};
    char path[600], text[1024];
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *threads = opendir(path);
    struct dirent *thread;
    while (threads && (thread = readdir(threads))) {
        snprintf(path, sizeof path, "/proc/%d/task/%s/schedstat", pid, thread->d_name);
        FILE *file = thread->d_name[0] == '.' ? NULL : fopen(path, "r");
        unsigned long long ran, waited;
        if (file && fscanf(file, "%llu %llu", &ran, &waited) == 2) {
            used.total += ran / 1e9;
            used.waited += waited / 1e9;
        }
        if (file)
            fclose(file);
    }
    if (threads)
        closedir(threads);
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *file = fopen(path, "r");
    if (file) {
        text[fread(text, 1, sizeof text - 1, file)] = 0;
        fclose(file);
        unsigned long long user = 0, kernel = 0;
        char *rest = strrchr(text, ')'); /* the name before it may hold anything */
        if (rest)
            sscanf(rest + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu", &user, &kernel);
        used.user = user / (double)sysconf(_SC_CLK_TCK);
        used.kernel = kernel / (double)sysconf(_SC_CLK_TCK);
    }
    return used;
}

/* Resident memory of a process, in bytes. */
static double resident_of(int pid)
{
    char path[64], line[256];
    long kib = 0;
    snprintf(path, sizeof path, "/proc/%d/status", pid);
    FILE *file = fopen(path, "r");
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "VmRSS: %ld", &kib) == 1)
            break;
    if (file)
        fclose(file);
    return kib * 1024.0;
}

#endif
