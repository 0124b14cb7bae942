/* What the C tests hold to be so; else the program ends by SIGABRT, which fuzzers catch. */
#ifndef SYSUP_TESTS_CHECK_H
#define SYSUP_TESTS_CHECK_H
#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s\n", __func__, __LINE__, #condition); \
            abort(); \
        } \
    } while (0)

#endif
