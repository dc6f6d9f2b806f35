/* A wall clock that is SHIFT_S seconds ahead, laid under a host's programs by /etc/ld.so.preload. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <math.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static void shift(struct timespec *t) {
    double whole = __builtin_floor((double)(SHIFT_S));
    t->tv_sec += (time_t)whole;
    t->tv_nsec += (long)(((double)(SHIFT_S) - whole) * 1e9);
    if (t->tv_nsec >= 1000000000L) { t->tv_nsec -= 1000000000L; t->tv_sec += 1; }
}

int clock_gettime(clockid_t clock, struct timespec *t) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int rc = real ? real(clock, t) : (int)syscall(SYS_clock_gettime, clock, t);
    if (rc == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) shift(t);
    return rc;
}

int gettimeofday(struct timeval *restrict t, void *restrict zone) {
    struct timespec now;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
    if (t) { t->tv_sec = now.tv_sec; t->tv_usec = now.tv_nsec / 1000; }
    return 0;
}

time_t time(time_t *t) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME_COARSE, &now);
    if (t) *t = now.tv_sec;
    return now.tv_sec;
}
