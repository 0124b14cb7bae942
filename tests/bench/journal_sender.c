/* The bare senders that the journal sinks are measured against.
 *
 *     journal_sender native|lines|blocks DIRECTORY FD...
 *
 * passes the lines of each descriptor to the journald whose sockets are in DIRECTORY, to their
 * ends: `native` a datagram a line, with the fields that sysup sends; the others by journald's
 * protocol for stdout, a connection a descriptor: `lines` with a send a line, `blocks` as the
 * lines were read. Nothing is lost: where journald is behind,
 * it waits. No failures of sockets, no fairness. Prints the time of its end (CLOCK_MONOTONIC)
 * and its CPU seconds. */
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { READ = 1 << 16, ROOM = 1 << 18, BIG = 8 << 20 };

struct source {
    int fd;
    int to;
    char head[256]; /* the fields before the message */
    size_t head_length;
    size_t length; /* of the unfinished line */
    char *rest;
};

static char buffer[ROOM];

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static int connect_to(const char *directory, const char *name, int type)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0), big = BIG;
    snprintf(address.sun_path, sizeof address.sun_path, "%s/%s", directory, name);
    if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &big, sizeof big) < 0)
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &big, sizeof big);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        die(address.sun_path);
    return fd;
}

/* Send it whole, however long the other side takes. */
static void transmit(int fd, struct iovec *parts, size_t count)
{
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = count};
    for (;;) {
        ssize_t n = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN && errno != EINTR)
            die("sendmsg");
        if (n < 0) {
            struct pollfd wanted = {.fd = fd, .events = POLLOUT};
            poll(&wanted, 1, -1);
            continue;
        }
        while (message.msg_iovlen && (size_t)n >= message.msg_iov->iov_len) {
            n -= (ssize_t)message.msg_iov->iov_len;
            message.msg_iov++;
            message.msg_iovlen--;
        }
        if (!message.msg_iovlen)
            return;
        message.msg_iov->iov_base = (char *)message.msg_iov->iov_base + n;
        message.msg_iov->iov_len -= (size_t)n;
    }
}

enum mode { NATIVE, LINES, BLOCKS };

static void send_line(struct source *source, enum mode mode, char *line, size_t length)
{
    static char name[] = "MESSAGE=", newline[] = "\n";
    struct iovec parts[] = {
        {source->head, source->head_length},
        {name, sizeof name - 1},
        {line, length},
        {newline, 1},
    };
    transmit(source->to, mode == NATIVE ? parts : parts + 2, mode == NATIVE ? 4 : 2);
}

static void send_whole(struct source *source, enum mode mode, char *data, size_t length)
{
    struct iovec part = {data, length};
    if (mode == BLOCKS) {
        transmit(source->to, &part, 1);
        return;
    }
    while (length) {
        char *end = memchr(data, '\n', length);
        size_t n = end ? (size_t)(end - data) : length;
        send_line(source, mode, data, n);
        n += end != NULL;
        data += n;
        length -= n;
    }
}

/* Returns whether the source goes on. */
static int pass(struct source *source, enum mode mode)
{
    memcpy(buffer, source->rest, source->length);
    ssize_t n = read(source->fd, buffer + source->length, READ);
    size_t length = source->length + (n > 0 ? (size_t)n : 0);
    char *newline = n > 0 ? memrchr(buffer, '\n', length) : NULL;
    size_t whole = n <= 0 ? length : newline ? (size_t)(newline + 1 - buffer) : 0;
    if (whole)
        send_whole(source, mode, buffer, whole);
    source->length = length - whole;
    if (source->length > ROOM - READ)
        die("a line is too long");
    memcpy(source->rest, buffer + whole, source->length);
    return n > 0;
}

static struct source *open_source(int fd, int native, const char *directory, int shared)
{
    struct source *source = calloc(1, sizeof *source);
    source->fd = fd;
    source->rest = malloc(ROOM);
    if (native) {
        source->to = shared;
        source->head_length = (size_t)snprintf(
            source->head, sizeof source->head,
            "PRIORITY=6\nSYSLOG_IDENTIFIER=web\nSYSLOG_PID=%d\nSYSUP_APP=bench\n"
            "SYSUP_WATCHER=web\nSYSUP_WID=%d\nSYSUP_STREAM=stdout\n", fd, fd);
    } else {
        static char hello[] = "web\n\n6\n1\n0\n0\n0\n";
        struct iovec part = {hello, sizeof hello - 1};
        source->to = connect_to(directory, "stdout", SOCK_STREAM);
        transmit(source->to, &part, 1);
    }
    return source;
}

static double seconds(struct timeval t)
{
    return (double)t.tv_sec + (double)t.tv_usec / 1e6;
}

int main(int argc, char **argv)
{
    if (argc < 4)
        return 2;
    enum mode mode = !strcmp(argv[1], "native") ? NATIVE : !strcmp(argv[1], "lines") ? LINES : BLOCKS;
    int native = mode == NATIVE, left = argc - 3;
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    int shared = native ? connect_to(argv[2], "socket", SOCK_DGRAM) : -1;
    for (int i = 3; i < argc; i++) {
        struct source *source = open_source(atoi(argv[i]), native, argv[2], shared);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = source};
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, source->fd, &event) < 0)
            die(argv[i]);
    }
    while (left) {
        struct epoll_event events[256];
        int n = epoll_wait(epoll, events, 256, -1);
        for (int i = 0; i < n; i++) {
            struct source *source = events[i].data.ptr;
            if (!pass(source, mode)) {
                close(source->fd);
                left--;
            }
        }
    }
    struct timespec now;
    struct rusage usage;
    clock_gettime(CLOCK_MONOTONIC, &now);
    getrusage(RUSAGE_SELF, &usage);
    printf("%.6f %.6f\n", (double)now.tv_sec + (double)now.tv_nsec / 1e9,
           seconds(usage.ru_utime) + seconds(usage.ru_stime));
    return 0;
}
