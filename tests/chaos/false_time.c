/* Preloaded into a process, shifts its clock on the wall by the seconds that a file holds, as a native double.
 *
 * The file is mapped: what is written into it holds at once. Clocks that count from the start of the machine stay true,
 * as on a host whose time is set. An absolute deadline on the wall is translated where the wait for it begins. libfaketime
 * does more, and breaks Python: its clock_nanosleep fails with EINVAL for deadlines of the monotonic clock.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

#define EXPORTED __attribute__((visibility("default")))
#define NANO 1000000000L
/* Seconds that a deadline of the monotonic clock does not reach: it counts from the start of the machine. */
#define ON_THE_WALL 1000000000L

typedef int timedwait(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
typedef int c11_timedwait(cnd_t *, mtx_t *, const struct timespec *);

static volatile double *offset;
static timedwait *wait_until;
static c11_timedwait *c11_wait_until;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("FALSE_TIME_FILE");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *mapped = file < 0 ? MAP_FAILED : mmap(NULL, sizeof(double), PROT_READ, MAP_SHARED, file, 0);
    if (file >= 0) close(file);
    if (mapped != MAP_FAILED) offset = mapped;
    /* Without its version, glibc for x86-64 gives the function for the condition variables of 2002. */
    wait_until = (timedwait *)dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    if (!wait_until) wait_until = (timedwait *)dlsym(RTLD_NEXT, "pthread_cond_timedwait");
    c11_wait_until = (c11_timedwait *)dlsym(RTLD_NEXT, "cnd_timedwait");
}

static struct timespec shifted(struct timespec at, double seconds) {
    at.tv_sec += (time_t)floor(seconds);
    at.tv_nsec += (long)((seconds - floor(seconds)) * NANO);
    if (at.tv_nsec >= NANO) {
        at.tv_nsec -= NANO;
        at.tv_sec += 1;
    }
    return at;
}

EXPORTED int clock_gettime(clockid_t clock, struct timespec *at) {
    int failed = syscall(SYS_clock_gettime, clock, at);
    if (!failed && offset && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) *at = shifted(*at, *offset);
    return failed;
}

EXPORTED int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec now;
    (void)zone;
    int failed = clock_gettime(CLOCK_REALTIME, &now);
    if (!failed) *at = (struct timeval){now.tv_sec, now.tv_nsec / 1000};
    return failed;
}

EXPORTED int timespec_get(struct timespec *at, int base) {
    return base == TIME_UTC && !clock_gettime(CLOCK_REALTIME, at) ? base : 0;
}

EXPORTED time_t time(time_t *at) {
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now)) return (time_t)-1;
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}

static struct timespec in_truth(const struct timespec *deadline) {
    return offset && deadline->tv_sec >= ON_THE_WALL ? shifted(*deadline, -*offset) : *deadline;
}

EXPORTED int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *deadline) {
    struct timespec at = in_truth(deadline);
    return wait_until(condition, mutex, &at);
}

/* glibc's own, which librdkafka uses, does not come through pthread_cond_timedwait. */
EXPORTED int cnd_timedwait(cnd_t *condition, mtx_t *mutex, const struct timespec *deadline) {
    struct timespec at = in_truth(deadline);
    return c11_wait_until(condition, mutex, &at);
}
