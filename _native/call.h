/* System calls for who runs in another thread's memory, and with its errno: call() leaves that
 * alone, and returns -errno.
 *
 * Where we don't know how to do that, CALLS_USE_ERRNO says so. */
#ifndef SYSUP_CALL_H
#define SYSUP_CALL_H
#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__) && defined(__LP64__)

static inline long call_with_five(long number, long a, long b, long c, long d, long e)
{
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    __asm__ volatile("syscall"
                     : "+a"(number)
                     : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
                     : "rcx", "r11", "memory");
    return number;
}

#elif defined(__aarch64__)

static inline long call_with_five(long number, long a, long b, long c, long d, long e)
{
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4) : "memory");
    return x0;
}

#else
#define CALLS_USE_ERRNO

static inline long call_with_five(long number, long a, long b, long c, long d, long e)
{
    long rc = syscall(number, a, b, c, d, e);
    return rc < 0 ? -errno : rc;
}

#endif

/* call(number, at most five arguments) */
#define call(...) CALL_FILLED(__VA_ARGS__, 0, 0, 0, 0, 0, 0)
#define CALL_FILLED(number, a, b, c, d, e, ...) \
    call_with_five(number, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e))

#endif
