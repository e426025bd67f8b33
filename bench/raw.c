/* The raw C loop: as little as a server can do. It answers every GET with one fixed head and keeps the connection; the
 * body of a POST is the frames themselves, and each is written to each connection with a write of its own.
 *
 *   raw PORT [joined]      joined: the whole body in one write, to show what the load generator can take
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX_FD = 1 << 16, INPUT = 1 << 20 };
static const char HEAD[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n: open\n\n";
static const char CREATED[] = "HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n";
static int streams[MAX_FD], place[MAX_FD], count; /* place: of an fd in streams, +1 */
static char input[INPUT + 1];
static int input_length;                          /* of the one publisher, whose request may come in pieces */

static void forget(int fd) {
    if (place[fd]) {
        int last = streams[--count];
        streams[place[fd] - 1] = last;
        place[last] = place[fd];
        place[fd] = 0;
    }
    close(fd);
}

static void write_all(int fd, const char *data, size_t length) {
    while (length) {
        ssize_t n = send(fd, data, length, MSG_NOSIGNAL);
        if (n < 0) {
            struct pollfd p = {.fd = fd, .events = POLLOUT};
            if (errno != EAGAIN || poll(&p, 1, 5000) <= 0) return;
            continue;
        }
        data += n;
        length -= n;
    }
}

static void fan_out(const char *frames, size_t length, bool joined) {
    const char *end = frames + length;
    while (frames < end) {
        const char *next = joined ? NULL : memmem(frames, end - frames, "\n\n", 2);
        next = next ? next + 2 : end;
        for (int i = 0; i < count; i++) write_all(streams[i], frames, next - frames);
        frames = next;
    }
}

static void read_request(int fd, bool joined) {
    ssize_t n = recv(fd, input + input_length, INPUT - input_length, 0);
    if (n <= 0) {
        if (n == 0 || errno != EAGAIN) forget(fd);
        return;
    }
    if (place[fd]) return;
    input_length += n;
    input[input_length] = 0;
    char *body = strstr(input, "\r\n\r\n"), *field = strcasestr(input, "\r\nContent-Length:");
    if (!body) return;
    body += 4;
    if (!strncmp(input, "GET", 3)) {
        streams[count] = fd;
        place[fd] = ++count;
        write_all(fd, HEAD, sizeof HEAD - 1);
    } else {
        size_t length = field ? strtoul(field + 17, NULL, 10) : 0;
        if ((size_t)(input + input_length - body) < length) return;
        fan_out(body, length, joined);
        write_all(fd, CREATED, sizeof CREATED - 1);
    }
    input_length = 0;
}

int main(int argc, char **argv) {
    if (argc < 2) return 2;
    bool joined = argc > 2;
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1, poller = epoll_create1(0);
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 4096)) return perror("listen"), 1;
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    struct epoll_event e = {.events = EPOLLIN, .data.fd = listener}, ready[256];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &e);
    for (;;) {
        int n = epoll_wait(poller, ready, 256, -1);
        for (int i = 0; i < n; i++) {
            int fd = ready[i].data.fd;
            if (fd != listener) {
                read_request(fd, joined);
                continue;
            }
            if ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) < 0 || fd >= MAX_FD) continue;
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
            e.data.fd = fd;
            epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e);
        }
    }
}
