/* What spawn.c and child.c share: the memory between a process and its parent. */
#ifndef SYSUP_CHILD_H
#define SYSUP_CHILD_H
#include "native.h"

#include <stdbool.h>

#define CHILD_STACK 65536 /* child.c has at most a path of PATH_MAX on it, and small change */
#define LAST_SIGNAL 64    /* _NSIG of every architecture but MIPS */
#define SIGSET_BYTES (LAST_SIGNAL / 8)

/* Above the child's stack. The child reads what is first and writes what is last. */
struct child {
    bool shares;       /* it is in our memory; the parent's affair, as is the next */
    int32_t sign;      /* the end of a pipe that tells when it has left that */
    int32_t own_sign;  /* the child's end of it */
    int32_t pid;
    struct spawn_spec spec;
    bool in_cgroup;    /* born into it; else it must join */
    int32_t step;      /* the one it is at */
    int32_t index;
    int error;         /* errno; 0: nothing failed */
    int32_t sources[]; /* room for one descriptor per entry of spec->fds */
};

/* The first descriptor above all that the child is to have. */
int32_t above_all(const struct spawn_spec *spec);

/* What the child does, with a `struct child`: it executes its program, or fails and exits. */
int child_main(void *argument);

#endif
