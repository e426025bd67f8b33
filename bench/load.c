/* The load generator: subscribers, publisher and clients in one thread.
 *
 *   load HOST PORT      or, to a unix socket,      load unix PATH
 *
 * Commands come on stdin, one a line; each is answered by one line of JSON on stdout. It knows no server: requests are
 * templates that are given to it.
 *
 *   set NAME TEXT                  a template; \r \n \\ are escapes. Names: stream publish body item between after,
 *                                  check, and those that `ask` and `probe` are given
 *   channels N                     events go to so many channels in turn
 *   each 0|1                       whether each event needs a request of its own (they are pipelined)
 *   size BYTES                     of an event's data
 *   open N AT_ONCE HEAD            open N streams more; HEAD 0: with no answer, as parked polls; `check` is asked between
 *   close                          close all streams
 *   fanout RATE BATCH SECONDS GRACE   publish at RATE events/s to all open streams
 *   single SECONDS                 publish an event when all streams have had the one before it
 *   ask NAME CONNECTIONS SECONDS   the request again and again on kept-alive connections
 *   fresh NAME CONNECTIONS SECONDS    the same, each on a connection of its own that is closed after the answer
 *   connect AT_ONCE SECONDS        open streams, each closed when its first block has come
 *   pages CONNECTIONS SECONDS      the request `page`, then a stream on the same connection, closed at its first block
 *   keep NAME N AT_ONCE            open N connections that stay open after one answer
 *   use NAME                       the request once more on each of these
 *   hold NAME N                    the request, which is answered later, on N of these; `check` is asked between
 *   release                        publish an event, until all have been answered with it
 *   probe NAME EVERY_MS RATE SECONDS  time the request on new connections while RATE events/s are published
 *   greedy NAME CONNECTIONS PROBE EVERY_MS SECONDS   the first as with `ask`, while the second is timed on new connections
 *   own N                          streams opened from now on take the channels 0 to N - 1 in turn, one each; 0: no more
 *   places N SHARED                the same, but each place remembers its last id; SHARED 1: all have the channel 0
 *   tell BATCH SECONDS             publish an event to each channel, until all open streams have theirs, or for so long
 *   cut                            close all streams; each place remembers which event comes next
 *   storm N SECONDS                cut, and open N streams again, all at once, until each has had all events (or so long)
 *   flood CONNECTIONS BATCH SECONDS GRACE   publish to all of these: each connection again as soon as it is answered
 *
 * An event's data is `@`, a digit for its channel, nine digits that count its channel's events, and filling. Each stream
 * checks that these are contiguous; what is not is told as lost or doubled.
 *
 * On channels of their own, the digit is 9, and the number counts in turns over all N channels: it is the channel's
 * where it is divided by N. A stream that has been open before says where it was by the template `again`, if there is
 * one: %I in it is the last id that the stream was told (by its first block, if places do not remember). The template
 * `busy` is the text in a server's first block that says that it is busy: such a stream is opened again after the
 * time that it is told.
 *
 * In a request that is asked again and again, %N is another number each time.
 *
 * The template `NAME?` is a text that each answer to the request NAME has. `stream?` is in each stream's first block;
 * without it, a stream is in with its head, or on channels of their own with its first block.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { MARK = 11, CHANNELS = 8, MAX_FD = 1 << 16, EVENTS = 1 << 20, OWN = 9, MAX_OWN = 1 << 14,
       BUFFER = 1 << 18, REPLY = 1 << 16, SAMPLES = 1 << 20 };
static const double BATCH_TIME = 0.02;  /* events that fall due within it share a request */
enum kind { NONE, STREAM, PUBLISHER, CLIENT, GREEDY, FLOODER, KEPT, PAGE };
enum framing { HEAD, PLAIN, CHUNK_SIZE, CHUNK, CHUNK_END, LAST };

struct connection {
    enum kind kind;
    enum framing framing;
    bool joined;               /* a stream that is counted as open */
    bool live;                 /* a stream of a storm that has had all events */
    uint32_t chunk;            /* bytes of the chunk that are still to come */
    uint32_t next[CHANNELS];   /* number of the next event; 0 before the first */
    uint32_t own;              /* a stream's channel; the first of those that a connection publishes to */
    uint32_t turn, place;      /* of what a connection publishes next: how often it has been around, and how far it is */
    int in_flight;             /* events that it has not been answered for */
    char tail[MARK];           /* of a mark that a read has cut */
    int tail_length;
    char *reply;               /* a stream's head, or what has come of an answer */
    int reply_length;
    int64_t asked_at;
    const char *request;       /* what a client asks again and again */
    const char *expect;        /* what its answer has */
    bool is_counted;           /* %N in its request is a number that no other has */
    char *unsent;              /* a stream's request, while its connection waits to be accepted */
    char line[136];            /* the begin of a line that a read has cut */
    int line_length;
};

static struct connection connections[MAX_FD];
static struct { char name[16]; char *text; } templates[32];
static struct sockaddr_storage server;
static socklen_t server_length;
static int poller, urgent, channel_count = 1, data_size = 128;
static bool one_each;
static char buffer[BUFFER];

static int open_streams, waiting, failed, ended, early;   /* waiting: without its first block; early: answered unasked */
static bool keep_connecting, want_head = true;

static uint32_t numbers[CHANNELS];                        /* of the newest event of each channel */
static uint32_t first_number[CHANNELS];                   /* of this run */
static int64_t published_at[EVENTS];
static int64_t last_at[EVENTS];
static int32_t receipts[EVENTS];
static int64_t published, completed, delivered, lost, doubled, last_receipt, now;

static uint32_t own_count, own_next, own_first;           /* channels; that of the next stream; the first event's number */
static int64_t own_due[MAX_OWN];                          /* when one that was told `busy` comes back */
static char own_id[MAX_OWN][128];
static int own_waiting, flooders, flood_batch;
static int64_t busy, accepted, greedy_answers;
static bool own_shared, remembering, storming;            /* remembering: ids and places of streams that are cut */
static uint32_t own_place[MAX_OWN];
static int live, kept;
static int64_t storm_began;
static char held_mark[MARK + 1];                          /* of the event that held requests are answered with */

static int publisher = -1, unanswered;
static int64_t asked, answers, refused, samples_taken;
static int64_t samples[SAMPLES];                          /* nanoseconds that requests took */
static uint32_t counted;                                  /* requests that have a number */
static bool asking, probing, fresh;                       /* a probe is not repeated; fresh: by a new connection */

static int64_t clock_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static double cpu_seconds(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return u.ru_utime.tv_sec + u.ru_stime.tv_sec + (u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static void die(const char *why) {
    fprintf(stderr, "load: %s: %s\n", why, strerror(errno));
    exit(1);
}

static const char *find_template(const char *name) {
    for (int i = 0; i < 32 && templates[i].text; i++)
        if (!strcmp(templates[i].name, name)) return templates[i].text;
    return NULL;
}

static const char *template(const char *name) {
    const char *text = find_template(name);
    if (text) return text;
    fprintf(stderr, "load: no template %s\n", name);
    exit(1);
}

static void set_template(const char *name, const char *text) {
    int i = 0;
    while (templates[i].text && strcmp(templates[i].name, name))
        if (++i == 32) die("too many templates");
    char *out = malloc(strlen(text) + 1), *o = out;
    for (; *text; text++) {
        if (*text == '\\' && text[1]) {
            text++;
            *o++ = *text == 'r' ? '\r' : *text == 'n' ? '\n' : *text;
        } else *o++ = *text;
    }
    *o = 0;
    snprintf(templates[i].name, sizeof templates[i].name, "%s", name);
    free(templates[i].text);
    templates[i].text = out;
}

/* Connections */

static int connect_to_server(enum kind kind) {
    static unsigned source;
    int fd = socket(server.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    if (fd < 0) die("socket");
    if (fd >= MAX_FD) die("too many connections");
    if (server.ss_family == AF_INET) {
        /* From a hundred addresses, so that ports do not run out, and limits for each address are as in real life. */
        struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000002 + source++ % 100)};
        setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
        if (bind(fd, (struct sockaddr *)&from, sizeof from)) die("bind");
        if (kind == PUBLISHER || kind == FLOODER) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    }
    if (connect(fd, (struct sockaddr *)&server, server_length) && errno != EINPROGRESS) {
        close(fd);
        return -1;
    }
    memset(&connections[fd], 0, sizeof connections[fd]);
    connections[fd].kind = kind;
    kept += kind == KEPT;
    if (kind == PUBLISHER || kind == FLOODER) connections[fd].expect = find_template("publish?");
    struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
    if (epoll_ctl(kind == STREAM ? poller : urgent, EPOLL_CTL_ADD, fd, &e)) die("epoll_ctl");
    return fd;
}

static void hang_up(int fd) {
    struct connection *c = &connections[fd];
    free(c->reply);
    free(c->unsent);
    kept -= c->kind == KEPT;
    memset(c, 0, sizeof *c);
    close(fd);
}

/* Loopback has room for what is sent here; where it has not, everything waits. */
static bool send_all(int fd, const char *data, size_t length) {
    while (length) {
        ssize_t n = send(fd, data, length, MSG_NOSIGNAL);
        if (n < 0) {
            struct pollfd p = {.fd = fd, .events = POLLOUT};
            if ((errno != EAGAIN && errno != ENOTCONN) || poll(&p, 1, 10000) <= 0) return false;
            continue;
        }
        data += n;
        length -= n;
    }
    return true;
}

/* A connection that waits to be accepted takes no request yet. */
static bool send_when_accepted(int fd, const char *request) {
    ssize_t n = send(fd, request, strlen(request), MSG_NOSIGNAL);
    if (n >= 0) return send_all(fd, request + n, strlen(request) - n);
    if (errno != EAGAIN && errno != ENOTCONN) return false;
    connections[fd].unsent = strdup(request);
    struct epoll_event e = {.events = EPOLLIN | EPOLLOUT, .data.fd = fd};
    return !epoll_ctl(poller, EPOLL_CTL_MOD, fd, &e);
}

static void send_unsent(int fd) {
    struct connection *c = &connections[fd];
    struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
    if (epoll_ctl(poller, EPOLL_CTL_MOD, fd, &e)) die("epoll_ctl");
    if (!send_all(fd, c->unsent, strlen(c->unsent))) shutdown(fd, SHUT_RDWR);    /* read_stream counts it */
    free(c->unsent);
    c->unsent = NULL;
}

/* What a subscriber reads */

static bool is_own(void) { return own_count && !own_shared; }

/* The last id of each place. */
static void take_ids(struct connection *c, const char *p, size_t length) {
    for (const char *end; length; length -= end - p, p = end) {
        const char *newline = memchr(p, '\n', length);
        end = newline ? newline + 1 : p + length;
        int room = sizeof c->line - 1 - c->line_length, taken = end - p < room ? end - p : room;
        memcpy(c->line + c->line_length, p, taken);
        c->line_length += taken;
        if (!newline) continue;
        c->line[c->line_length] = 0;
        if (!strncmp(c->line, "id: ", 4)) sscanf(c->line + 4, "%127s", own_id[c->own]);
        c->line_length = 0;
    }
}

static void take_own(struct connection *c, uint32_t number) {
    if (!own_count || number % own_count != c->own) {
        refused++;
        return;
    }
    uint32_t turn = number / own_count, expected = c->next[0];
    if (expected && turn < expected) {
        doubled++;
        return;
    }
    if (expected) lost += turn - expected;
    c->next[0] = turn + 1;
    if (number < own_first || number - own_first >= EVENTS) return;
    delivered++;
    last_receipt = last_at[number - own_first] = now;
    receipts[number - own_first] = 1;
}

static void take_mark(struct connection *c, const char *mark) {
    unsigned channel = mark[1] - '0';
    uint32_t number = 0;
    for (int i = 2; i < MARK; i++) number = number * 10 + (mark[i] - '0');
    if (channel == OWN) {
        take_own(c, number);
        return;
    }
    if (channel >= CHANNELS || number > numbers[channel]) {
        refused++;
        return;
    }
    uint32_t expected = c->next[channel];
    if (expected && number < expected) {
        doubled++;
        return;
    }
    if (expected) lost += number - expected;
    c->next[channel] = number + 1;
    if (number < first_number[channel]) return;
    int64_t event = (int64_t)(number - first_number[channel]) * channel_count + channel;
    delivered++;
    last_receipt = last_at[event] = now;
    if (++receipts[event] == open_streams) completed++;
}

static void scan(struct connection *c, const char *p, size_t length) {
    if (own_count && (remembering || c->reply)) take_ids(c, p, length);
    if (c->tail_length) {
        size_t n = MARK - c->tail_length;
        if (n > length) n = length;
        memcpy(c->tail + c->tail_length, p, n);
        c->tail_length += n;
        p += n;
        length -= n;
        if (c->tail_length < MARK) return;
        c->tail_length = 0;
        take_mark(c, c->tail);
    }
    const char *mark;
    while (length && (mark = memchr(p, '@', length))) {
        length -= mark - p;
        if (length < MARK) {
            memcpy(c->tail, mark, length);
            c->tail_length = length;
            return;
        }
        take_mark(c, mark);
        p = mark + MARK;
        length -= MARK;
    }
}

static void take_body(struct connection *c, const char *p, size_t length) {
    while (length) {
        char b;
        switch (c->framing) {
        case PLAIN:
            scan(c, p, length);
            return;
        case CHUNK_SIZE:
            b = *p++;
            length--;
            if (b >= '0' && b <= '9') c->chunk = c->chunk * 16 + (b - '0');
            else if ((b | 32) >= 'a' && (b | 32) <= 'f') c->chunk = c->chunk * 16 + ((b | 32) - 'a' + 10);
            else if (b == '\n') c->framing = c->chunk ? CHUNK : LAST;
            break;
        case CHUNK: {
            size_t n = length < c->chunk ? length : c->chunk;
            scan(c, p, n);
            p += n;
            length -= n;
            c->chunk -= n;
            if (!c->chunk) c->framing = CHUNK_END;
            break;
        }
        case CHUNK_END:
            if (*p == '\n') c->framing = CHUNK_SIZE;
            p++;
            length--;
            break;
        default:
            return;
        }
    }
}

/* The head, which may come in pieces; true when the body has begun, or never will. */
static bool take_head(struct connection *c, const char *data, size_t length) {
    c->reply = realloc(c->reply, c->reply_length + length + 1);
    memcpy(c->reply + c->reply_length, data, length);
    c->reply_length += length;
    c->reply[c->reply_length] = 0;
    char *end = strstr(c->reply, "\r\n\r\n");
    if (!end) return false;
    const char *expect = find_template("stream?"), *says_busy = own_count ? find_template("busy") : NULL;
    if (!c->joined && !strncmp(c->reply + 8, " 200", 4)) {
        char *block = says_busy ? strstr(end, says_busy) : NULL, *retry = strstr(end, "retry: ");
        if (block) {
            if (!strstr(block, "\n\n")) return false;
            busy++;
            own_waiting++;
            own_due[c->own] = clock_now() + (int64_t)((retry ? atoi(retry + 7) : 1000) * 1e6);
        } else if (expect && !strstr(end + 4, expect)) return false;
        else if (own_count && !strstr(end + 4, "\n\n") && !strstr(end + 4, "\r\n\r\n")) return false;
    }
    *end = 0;
    if (strncmp(c->reply + 8, " 200", 4)) {
        if (!failed++) fprintf(stderr, "load: a stream was answered: %.300s\n", c->reply);
    }
    c->framing = strcasestr(c->reply, "\r\nTransfer-Encoding: chunked") ? CHUNK_SIZE : PLAIN;
    take_body(c, end + 4, c->reply_length - (end + 4 - c->reply));
    free(c->reply);
    c->reply = NULL;
    return true;
}

static void start_stream(void);

/* A stream of a storm is live when it has had all events, those too that were published while it was away. */
static void note_live(struct connection *c) {
    if (!storming || c->live || !c->joined || c->next[0] != (is_own() ? own_first / own_count : numbers[0]) + 1) return;
    c->live = true;
    live++;
    samples[samples_taken++] = clock_now() - storm_began;
}

static void read_stream(int fd) {
    struct connection *c = &connections[fd];
    ssize_t n = recv(fd, buffer, BUFFER, 0);
    if (n < 0 && errno == EAGAIN) return;
    bool first = c->framing == HEAD;
    if (n > 0 && !first) {
        take_body(c, buffer, n);
        note_live(c);
        return;
    }
    if (n > 0 && !take_head(c, buffer, n)) return;
    if (first && own_count && own_due[c->own]) {
        waiting--;
        hang_up(fd);
        return;
    }
    if (n <= 0) {
        ended++;
        if (first) failed++;
        if (c->joined) open_streams--;
    }
    if (first && !c->joined) {
        waiting--;
        if (n > 0) {
            open_streams++;
            c->joined = true;
            note_live(c);
        }
    } else if (first) early++;
    if (keep_connecting) {
        answers++;
        open_streams -= c->joined;
        hang_up(fd);
        start_stream();
    } else if (n <= 0) hang_up(fd);
}

static size_t put(char *out, const char *text, unsigned channel, uint32_t number, size_t body_length);

static void start_stream(void) {
    int fd = connect_to_server(STREAM);
    const char *request = template("stream");
    if (fd >= 0 && own_count) {
        static char own_request[1 << 14];
        unsigned own = connections[fd].own = own_next++ % own_count;
        const char *again = own_id[own][0] ? find_template("again") : NULL;
        own_request[put(own_request, again ? again : request, own, 0, 0)] = 0;
        own_due[own] = 0;
        request = own_request;
        if (remembering) connections[fd].next[0] = own_place[own];
    }
    if (fd < 0 || !send_when_accepted(fd, request)) {
        failed++;
        if (fd >= 0) hang_up(fd);
        return;
    }
    if (want_head) waiting++;
    else {
        open_streams++;
        connections[fd].joined = true;
    }
}

/* Answers to requests */

static size_t put(char *out, const char *text, unsigned channel, uint32_t number, size_t body_length);

static void ask(int fd) {
    static char request[1 << 14];
    struct connection *c = &connections[fd];
    c->asked_at = clock_now();
    asked++;
    if (!c->is_counted) {
        if (!send_all(fd, c->request, strlen(c->request))) refused++;
        return;
    }
    size_t length = put(request, c->request, 0, ++counted, 0);
    if (!send_all(fd, request, length)) refused++;
}

static void start_client(enum kind kind, const char *request, const char *expect) {
    int fd = connect_to_server(kind);
    if (fd < 0) die("connect");
    connections[fd].request = request;
    connections[fd].expect = expect;
    connections[fd].is_counted = strstr(request, "%N");
    ask(fd);
}

static const char *expectation(const char *name) {
    char full[20];
    snprintf(full, sizeof full, "%s?", name);
    return find_template(full);
}

static void start_named(enum kind kind, const char *name) { start_client(kind, template(name), expectation(name)); }

/* The length of the first whole answer in `reply`, or 0. A stream's is its first block, with what it is to have. */
static int answer_length(const char *reply, int length, const char *expect) {
    const char *end = memmem(reply, length, "\r\n\r\n", 4), *field;
    if (!end) return 0;
    int head = end + 4 - reply;
    if ((field = strcasestr(reply, "\r\nContent-Length:")) && field < end) {
        int whole = head + atoi(field + 17);
        return whole <= length ? whole : 0;
    }
    if (!strncmp(reply + 9, "204", 3)) return head;
    if ((field = strcasestr(reply, "\r\nContent-Type: text/event-stream")) && field < end)
        return expect ? (memmem(reply, length, expect, strlen(expect)) ? length : 0) : length > head ? length : 0;
    const char *last = memmem(reply + head - 2, length - head + 2, "\r\n0\r\n\r\n", 7);
    return last ? last + 7 - reply : 0;
}

static void publish_own(int fd);

/* A page has its poll's answer, and opens its stream; or it has its stream's first block. */
static void go_on(int fd) {
    static char request[1 << 14];
    struct connection *c = &connections[fd];
    const char *opened = expectation("stream");
    if (c->expect == opened) {
        answers++;
        if (samples_taken < SAMPLES) samples[samples_taken++] = clock_now() - c->asked_at;
        hang_up(fd);
        if (asking) start_named(PAGE, "page");
        return;
    }
    const char *id = strstr(c->reply, "\"last_event_id\":"), *next = template("page-stream");
    own_id[0][0] = 0;
    if (id) sscanf(id + 16, " \"%127[^\"]", own_id[0]);
    if (strstr(next, "%I") && !own_id[0][0]) refused++;
    request[put(request, next, 0, counted, 0)] = 0;
    c->expect = opened;
    c->reply_length = 0;
    if (!send_all(fd, request, strlen(request))) refused++;
}

static void read_answers(int fd) {
    struct connection *c = &connections[fd];
    if (!c->reply) c->reply = malloc(REPLY + 1);
    ssize_t n = recv(fd, c->reply + c->reply_length, REPLY - c->reply_length, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
        if (c->kind == PUBLISHER) publisher = -1, unanswered = 0, refused++;
        else refused++;
        waiting -= c->kind == KEPT;
        hang_up(fd);
        return;
    }
    c->reply_length += n;
    c->reply[c->reply_length] = 0;
    int length, done = 0;
    while ((length = answer_length(c->reply + done, c->reply_length - done, c->expect))) {
        bool good = c->reply[done + 9] == '2'
                    && (!c->expect || memmem(c->reply + done, length, c->expect, strlen(c->expect)));
        if (!good && !refused++) fprintf(stderr, "load: answered: %.600s\n", c->reply + done);
        done += length;
        if (c->kind == PAGE) return go_on(fd);
        if (c->kind == PUBLISHER) {
            unanswered--;
            continue;
        }
        if (c->kind == GREEDY) {
            greedy_answers++;
            continue;
        }
        if (c->kind == FLOODER) {
            accepted += one_each ? 1 : c->in_flight;
            c->in_flight -= one_each ? 1 : c->in_flight;
            continue;
        }
        answers++;
        if (samples_taken < SAMPLES) samples[samples_taken++] = clock_now() - c->asked_at;
    }
    c->reply_length -= done;
    memmove(c->reply, c->reply + done, c->reply_length);
    if (done && c->kind == KEPT) {
        waiting--;
        free(c->reply);
        c->reply = NULL;
    }
    if (done && c->kind == CLIENT) {
        const char *request = c->request, *expect = c->expect;
        if (asking && !probing && !fresh) return ask(fd);
        hang_up(fd);
        if (asking && fresh) start_client(CLIENT, request, expect);
    }
    if (done && asking && c->kind == GREEDY) ask(fd);
    if (done && asking && c->kind == FLOODER && !c->in_flight) publish_own(fd);
}

/* Publishing: one connection, so that the order is told; what falls due while it waits for its answer goes together. */

static size_t put(char *out, const char *text, unsigned channel, uint32_t number, size_t body_length) {
    char *o = out;
    for (; *text; text++) {
        if (*text != '%') {
            *o++ = *text;
            continue;
        }
        switch (*++text) {
        case 'L': o += sprintf(o, "%zu", body_length); break;
        case 'C': o += sprintf(o, "%u", channel); break;
        case 'N': o += sprintf(o, "%u", number); break;
        case 'I': o += sprintf(o, "%s", own_id[channel]); break;
        case 'D':
            o += sprintf(o, "@%u%09u ", is_own() ? OWN : channel, number);
            memset(o, 'x', data_size - MARK - 1);
            o += data_size - MARK - 1;
            break;
        default: *o++ = *text;
        }
    }
    return o - out;
}

static void publish(int count, int64_t due, int64_t every) {
    static char body[1 << 20], request[1 << 21];
    size_t length = 0, body_length = 0;
    if (publisher < 0 && (publisher = connect_to_server(PUBLISHER)) < 0) {
        refused++;
        return;
    }
    if (!one_each) body_length += put(body, template("body"), 0, 0, 0);
    for (int i = 0; i < count && published < EVENTS; i++, due += every) {
        unsigned channel = is_own() ? published : published % channel_count;
        uint32_t number = is_own() ? own_first + channel : ++numbers[channel];
        published_at[published++] = due;
        if (!one_each) {
            if (i) body_length += put(body + body_length, template("between"), 0, 0, 0);
            body_length += put(body + body_length, template("item"), channel, number, 0);
            continue;
        }
        body_length = put(body, template("item"), channel, number, 0);
        length += put(request + length, template("publish"), channel, number, body_length);
        memcpy(request + length, body, body_length);
        length += body_length;
        unanswered++;
    }
    if (!one_each) {
        body_length += put(body + body_length, template("after"), 0, 0, 0);
        length = put(request, template("publish"), 0, 0, body_length);
        memcpy(request + length, body, body_length);
        length += body_length;
        unanswered++;
    }
    if (!send_all(publisher, request, length)) refused++;
}

/* Each connection has channels of its own, so that the order in which they are told is known. */
static void publish_own(int fd) {
    static char body[1 << 20], request[1 << 21];
    struct connection *c = &connections[fd];
    size_t length = 0, body_length = one_each ? 0 : put(body, template("body"), 0, 0, 0);
    int64_t sent_at = clock_now();
    for (int i = 0; i < flood_batch; i++) {
        uint32_t channel = c->own + c->place * flooders, number = own_first + c->turn * own_count + channel;
        if (number - own_first >= EVENTS) return;
        published_at[number - own_first] = sent_at;
        published++;
        c->in_flight++;
        c->place++;
        if (c->own + c->place * flooders >= own_count) c->place = 0, c->turn++;
        if (one_each) {
            body_length = put(body, template("item"), channel, number, 0);
            length += put(request + length, template("publish"), channel, number, body_length);
            memcpy(request + length, body, body_length);
            length += body_length;
            continue;
        }
        if (i) body_length += put(body + body_length, template("between"), 0, 0, 0);
        body_length += put(body + body_length, template("item"), channel, number, 0);
    }
    if (!one_each) {
        body_length += put(body + body_length, template("after"), 0, 0, 0);
        length = put(request, template("publish"), 0, 0, body_length);
        memcpy(request + length, body, body_length);
        length += body_length;
    }
    if (!send_all(fd, request, length)) refused++;
}

/* Answers that are timed do not queue behind ten thousand streams. */
static void read_urgent(void) {
    struct epoll_event ready[64];
    now = clock_now();
    int n = epoll_wait(urgent, ready, 64, 0);
    for (int i = 0; i < n; i++)
        if (connections[ready[i].data.fd].kind != NONE) read_answers(ready[i].data.fd);
}

static void step(int64_t until) {
    static struct epoll_event ready[512];
    now = clock_now();
    int64_t left = until - now;
    struct timespec wait = {.tv_sec = left > 0 ? left / 1000000000 : 0, .tv_nsec = left > 0 ? left % 1000000000 : 0};
    int n = epoll_pwait2(poller, ready, 512, &wait, NULL);
    for (int i = 0; i < n; i++) {
        int fd = ready[i].data.fd;
        if (fd == urgent || i % 32 == 31) read_urgent();
        if (fd == urgent || connections[fd].kind != STREAM) continue;
        if (connections[fd].unsent && ready[i].events & EPOLLOUT) send_unsent(fd);
        read_stream(fd);
    }
}

/* Runs */

static int64_t seconds(double s) { return (int64_t)(s * 1e9); }

static int compare(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static double percentile(int64_t *values, int64_t count, double p) {
    if (!count) return 0;
    qsort(values, count, sizeof *values, compare);
    int64_t place = (int64_t)(count * p);
    return values[place < count ? place : count - 1] / 1e6;
}

static void begin_run(void) {
    for (int i = 0; i < channel_count; i++) first_number[i] = numbers[i] + 1;
    memset(receipts, 0, sizeof receipts);
    published = completed = delivered = lost = doubled = refused = asked = answers = samples_taken = ended = 0;
}

/* Until each stream has had an event of each channel: those that open without an answer are known to listen then. */
static void begin_listening(void) {
    int64_t end = clock_now() + seconds(30), again = 0;
    begin_run();
    while (open_streams && (now = clock_now()) < end) {
        if (!unanswered) {
            if (published && completed == published) return begin_run();
            if (now >= again) {
                begin_run();
                publish(channel_count, now, 0);
                again = now + seconds(2);
            }
        }
        step(unanswered || again > end ? end : again);
    }
    begin_run();
    refused++;
}

static void tell_events(double took, double cpu, bool late) {
    static int64_t latency[EVENTS];
    int64_t whole = 0;
    for (int64_t i = 0; i < published; i++)
        if (receipts[i] >= open_streams && open_streams) latency[whole++] = last_at[i] - published_at[i];
    printf("{\"streams\": %d, \"published\": %lld, \"delivered\": %lld, \"lost\": %lld, \"doubled\": %lld, "
           "\"refused\": %lld, \"ended\": %d, \"late\": %s, \"seconds\": %.4f, \"p50\": %.3f, \"p99\": %.3f, \"max\": %.3f, "
           "\"cpu\": %.3f}\n",
           open_streams, (long long)published, (long long)delivered,
           (long long)(published * open_streams - delivered > lost ? published * open_streams - delivered : lost),
           (long long)doubled, (long long)refused, ended, late ? "true" : "false", took, percentile(latency, whole, 0.5),
           percentile(latency, whole, 0.99), percentile(latency, whole, 1), cpu);
}

static void fan_out(double rate, int batch, double length, double grace) {
    begin_listening();
    double cpu = cpu_seconds();
    int64_t start = clock_now(), end = start + seconds(length), limit = end + seconds(grace);
    int64_t every = (int64_t)(1e9 / rate), due = start, next = start, offered = (end - start) / every;
    last_receipt = start;
    while ((now = clock_now()) < limit && open_streams && !refused) {
        if (completed == published && published == offered && !unanswered) break;
        if (!unanswered && published < offered && now >= next && now >= due) {
            int64_t count = (now - due) / every + 1;
            if (count > offered - published) count = offered - published;
            next = count > batch ? now : now + seconds(BATCH_TIME);
            if (count > batch) count = batch;
            publish(count, due, every);
            due += every * count;
        }
        step(unanswered || published == offered ? limit : next > due ? next : due);
    }
    double used = (cpu_seconds() - cpu) / ((clock_now() - start) / 1e9);
    bool late = completed < offered;
    /* Late is not lost: what comes now is counted, but the run was too fast for the server. */
    limit = clock_now() + seconds(3);
    while (completed < published && open_streams && clock_now() < limit) step(limit);
    tell_events((last_receipt - start) / 1e9, used, late);
}

static void single(double length) {
    begin_listening();
    double cpu = cpu_seconds();
    int64_t start = clock_now(), end = start + seconds(length), limit = end + seconds(10);
    while ((now = clock_now()) < limit && open_streams) {
        if (completed == published && !unanswered) {
            if (now >= end) break;
            publish(1, now, 0);
        }
        step(limit);
    }
    double took = (clock_now() - start) / 1e9;
    tell_events(took, (cpu_seconds() - cpu) / took, completed < published);
}

/* A request that is answered: what was sent before it has been accepted by then. */
static void check(void) {
    int64_t limit = clock_now() + seconds(10);
    int fd = connect_to_server(CLIENT);
    if (fd < 0) return;
    connections[fd].request = template("check");
    ask(fd);
    while (connections[fd].kind == CLIENT && clock_now() < limit) step(limit);
    if (connections[fd].kind == CLIENT) hang_up(fd);
}

/* Open so many, and wait until they are in; those of a storm all at once, and until they are live. */
static void open_these(int count, int at_once, double patience) {
    int64_t limit = clock_now() + seconds(patience);
    int all = count;
    failed = waiting = early = own_waiting = busy = 0;
    memset(own_due, 0, sizeof own_due);
    while ((count || waiting > 0 || own_waiting || (storming && live < all)) && clock_now() < limit && failed < 100) {
        if (own_waiting) {
            for (uint32_t i = 0, next = own_next; i < own_count && waiting < at_once; i++)
                if (own_due[i] && own_due[i] <= now) {
                    own_waiting--;
                    own_next = i;
                    start_stream();
                    own_next = next;
                }
        }
        if (count && waiting < at_once) {
            start_stream();
            if (--count % at_once == 0 && !want_head) check();
            if (storming && count % 64 == 0) step(now);
        } else step(own_waiting ? clock_now() + seconds(0.01) : limit);
    }
    failed += count + own_waiting;
}

static void open_many(int count, int at_once) {
    int64_t start = clock_now();
    open_these(count, at_once, 60);
    printf("{\"open\": %d, \"failed\": %d, \"early\": %d, \"busy\": %lld, \"seconds\": %.4f}\n", open_streams, failed,
           early, (long long)busy, (clock_now() - start) / 1e9);
}

static void close_kind(enum kind kind) {
    for (int fd = 0; fd < MAX_FD; fd++)
        if (connections[fd].kind == kind) hang_up(fd);
    if (kind == STREAM || kind == KEPT) waiting = 0;
    if (kind == STREAM) open_streams = 0;
    if (kind == PUBLISHER) publisher = -1, unanswered = 0;
}

static void tell_answers(double took, double cpu) {
    printf("{\"asked\": %lld, \"answers\": %lld, \"refused\": %lld, \"failed\": %d, \"delivered\": %lld, "
           "\"seconds\": %.4f, \"p50\": %.3f, \"p99\": %.3f, \"cpu\": %.3f}\n",
           (long long)asked, (long long)answers, (long long)refused, failed, (long long)delivered, took, percentile(samples, samples_taken, 0.5),
           percentile(samples, samples_taken, 0.99), cpu / took);
}

static void ask_all(enum kind kind, const char *name, int count, double length) {
    begin_run();
    failed = 0;
    asking = true;
    double cpu = cpu_seconds();
    int64_t start = clock_now(), end = start + seconds(length);
    for (int i = 0; i < count; i++) start_named(kind, name);
    while (clock_now() < end) step(end);
    asking = false;
    tell_answers((clock_now() - start) / 1e9, cpu_seconds() - cpu);
    close_kind(kind);
}

/* Connections that are kept, with or without a request */

static void keep(const char *name, int count, int at_once) {
    begin_run();
    failed = waiting = 0;
    double cpu = cpu_seconds();
    int64_t start = clock_now(), limit = start + seconds(60);
    while ((count || waiting > 0) && clock_now() < limit && !refused) {
        if (!count || waiting >= at_once) step(limit);
        else {
            start_named(KEPT, name);
            waiting++;
            count--;
        }
    }
    failed = count + waiting;
    tell_answers((clock_now() - start) / 1e9, cpu_seconds() - cpu);
}

static void use(const char *name) {
    begin_run();
    failed = waiting = 0;
    double cpu = cpu_seconds();
    int64_t start = clock_now(), limit = start + seconds(60);
    for (int fd = 0; fd < MAX_FD; fd++) {
        if (connections[fd].kind != KEPT) continue;
        connections[fd].request = template(name);
        connections[fd].expect = expectation(name);
        ask(fd);
        waiting++;
        while (waiting >= 32 && clock_now() < limit) step(limit);
    }
    while (waiting > 0 && clock_now() < limit) step(limit);
    failed = waiting;
    tell_answers((clock_now() - start) / 1e9, cpu_seconds() - cpu);
}

static void hold(const char *name, int count) {
    begin_run();
    waiting = 0;
    strcpy(held_mark, "@none");
    for (int fd = 0; fd < MAX_FD; fd++) {
        if (connections[fd].kind != KEPT) continue;
        connections[fd].request = template(name);
        connections[fd].expect = held_mark;
        ask(fd);
        if (++waiting % 32 == 0) check();
    }
    while (kept < count && !refused) {
        start_client(KEPT, template(name), held_mark);
        if (++waiting % 32 == 0) check();
    }
    check();
    printf("{\"held\": %d, \"refused\": %lld}\n", waiting, (long long)refused);
}

static void release(void) {
    begin_run();
    double cpu = cpu_seconds();
    int held = waiting;
    int64_t start = clock_now(), limit = start + seconds(30);
    snprintf(held_mark, sizeof held_mark, "@0%09u", numbers[0] + 1);
    for (int fd = 0; fd < MAX_FD; fd++)
        if (connections[fd].kind == KEPT) connections[fd].asked_at = start;
    publish(1, start, 0);
    while (answers + refused < held && clock_now() < limit) step(limit);
    int64_t last = clock_now();
    while (unanswered && clock_now() < limit) step(limit);
    failed = held - answers;
    tell_answers((last - start) / 1e9, cpu_seconds() - cpu);
}

static void connect_all(int at_once, double length) {
    begin_run();
    failed = waiting = 0;
    keep_connecting = true;
    double cpu = cpu_seconds();
    int64_t start = clock_now(), end = start + seconds(length);
    for (int i = 0; i < at_once; i++) start_stream();
    while (clock_now() < end) step(end);
    keep_connecting = false;
    tell_answers((clock_now() - start) / 1e9, cpu_seconds() - cpu);
    close_kind(STREAM);
}

static void probe(const char *name, double every_ms, double rate, double length) {
    if (rate) begin_listening();
    else begin_run();
    failed = 0;
    double cpu = cpu_seconds();
    int64_t start = clock_now(), end = start + seconds(length), next_probe = start, next_event = start;
    while ((now = clock_now()) < end) {
        if (now >= next_probe) {
            start_named(CLIENT, name);
            next_probe += seconds(every_ms / 1e3);
        }
        if (rate && now >= next_event && !unanswered) {
            publish(1, now, 0);
            next_event += seconds(1 / rate);
        }
        int64_t until = next_probe < end ? next_probe : end;
        if (rate && !unanswered && next_event < until) until = next_event;
        step(until);
    }
    int64_t limit = clock_now() + seconds(5);
    double took = (clock_now() - start) / 1e9, used = cpu_seconds() - cpu;
    for (bool some = true; some && clock_now() < limit;) {      /* the slowest answers count too */
        some = false;
        for (int fd = 0; fd < MAX_FD && !some; fd++) some = connections[fd].kind == CLIENT;
        if (some) step(clock_now() + seconds(0.01));
    }
    tell_answers(took, used);
    close_kind(CLIENT);
}

static void greedy(const char *name, int count, const char *probed, double every_ms, double length) {
    begin_run();
    failed = 0;
    greedy_answers = 0;
    asking = probing = true;
    double cpu = cpu_seconds();
    int64_t start = clock_now(), end = start + seconds(length), next_probe = start + seconds(0.2), probes = 0;
    for (int i = 0; i < count; i++) start_named(GREEDY, name);
    while ((now = clock_now()) < end) {
        if (now >= next_probe) {
            start_named(CLIENT, probed);
            probes++;
            next_probe += seconds(every_ms / 1e3);
        }
        step(next_probe < end ? next_probe : end);
    }
    asking = false;
    double took = (clock_now() - start) / 1e9, used = (cpu_seconds() - cpu) / took;
    int64_t within = greedy_answers, limit = clock_now() + seconds(5);
    for (bool some = true; some && clock_now() < limit;) {      /* the slowest answers count too */
        some = false;
        for (int fd = 0; fd < MAX_FD && !some; fd++) some = connections[fd].kind == CLIENT;
        if (some) step(clock_now() + seconds(0.01));
    }
    probing = false;
    printf("{\"greedy\": %lld, \"asked\": %lld, \"answers\": %lld, \"refused\": %lld, \"failed\": %d, \"seconds\": %.4f, \"p50\": %.3f, "
           "\"p99\": %.3f, \"cpu\": %.3f}\n",
           (long long)within, (long long)probes, (long long)answers, (long long)refused, failed, took, percentile(samples, samples_taken, 0.5),
           percentile(samples, samples_taken, 0.99), used);
    close_kind(GREEDY);
    close_kind(CLIENT);
}

static void flood(int count, int batch, double length, double grace) {
    static int64_t latency[EVENTS];
    begin_run();
    memset(published_at, 0, sizeof published_at);
    for (int fd = 0; fd < MAX_FD; fd++)
        if (connections[fd].kind == STREAM) connections[fd].next[0] = 0;
    own_first += (EVENTS / own_count + 1) * own_count;   /* beyond all that was published before */
    flooders = count;
    flood_batch = batch;
    accepted = 0;
    asking = true;
    double cpu = cpu_seconds();
    int64_t start = last_receipt = clock_now(), end = start + seconds(length);
    for (int i = 0; i < count; i++) {
        int fd = connect_to_server(FLOODER);
        if (fd < 0) die("connect");
        connections[fd].own = i;
        publish_own(fd);
    }
    while (clock_now() < end) step(end);
    asking = false;
    double used = (cpu_seconds() - cpu) / ((clock_now() - start) / 1e9);
    int64_t in_time = delivered, accepted_in_time = accepted, limit = clock_now() + seconds(grace);
    while (delivered < published && clock_now() < limit) step(limit);
    int64_t whole = 0;
    for (int64_t i = 0; i < EVENTS; i++)
        if (receipts[i] && published_at[i]) latency[whole++] = last_at[i] - published_at[i];
    if (published - delivered > lost) lost = published - delivered;
    printf("{\"streams\": %d, \"published\": %lld, \"accepted\": %lld, \"in_time\": %lld, \"delivered\": %lld, "
           "\"lost\": %lld, \"doubled\": %lld, \"refused\": %lld, \"ended\": %d, \"seconds\": %.4f, \"p50\": %.3f, "
           "\"p99\": %.3f, \"max\": %.3f, \"cpu\": %.3f}\n",
           open_streams, (long long)published, (long long)accepted_in_time, (long long)in_time, (long long)delivered,
           (long long)lost, (long long)doubled, (long long)refused, ended, (end - start) / 1e9,
           percentile(latency, whole, 0.5), percentile(latency, whole, 0.99), percentile(latency, whole, 1), used);
    close_kind(FLOODER);
}

static void set_places(int count, bool all_share, bool remember) {
    own_count = count;
    own_next = 0;
    own_shared = all_share;
    remembering = remember;
    memset(own_id, 0, sizeof own_id);
    memset(own_place, 0, sizeof own_place);
    printf("{}\n");
}

/* A storm: all streams are cut, and come back at once */

static void tell(int batch, double patience) {
    begin_run();
    own_first += is_own() ? own_count : 0;
    int64_t start = clock_now(), limit = start + seconds(patience);
    int64_t all = is_own() ? own_count : 1, wanted = open_streams;
    while ((now = clock_now()) < limit && !refused) {
        if (!unanswered && published < all) publish(batch < all - published ? batch : all - published, now, 0);
        else if (!unanswered && delivered >= wanted) break;
        else step(limit);
    }
    printf("{\"published\": %lld, \"delivered\": %lld, \"missing\": %lld, \"lost\": %lld, \"doubled\": %lld, "
           "\"refused\": %lld, \"ended\": %d, \"seconds\": %.4f}\n", (long long)published, (long long)delivered,
           (long long)(wanted - delivered + all - published), (long long)lost, (long long)doubled, (long long)refused,
           ended, (clock_now() - start) / 1e9);
}

static void cut(void) {
    for (int fd = 0; fd < MAX_FD; fd++)
        if (connections[fd].kind == STREAM) own_place[connections[fd].own] = connections[fd].next[0];
    close_kind(STREAM);
}

static void storm(int count, double patience) {
    double cpu = cpu_seconds();
    lost = doubled = refused = samples_taken = ended = live = 0;
    storming = want_head = true;
    storm_began = now = clock_now();
    cut();
    open_these(count, count, patience);
    storming = false;
    double took = (clock_now() - storm_began) / 1e9;
    printf("{\"open\": %d, \"live\": %d, \"failed\": %d, \"busy\": %lld, \"lost\": %lld, \"doubled\": %lld, "
           "\"refused\": %lld, \"ended\": %d, \"seconds\": %.4f, \"p50\": %.3f, \"p99\": %.3f, \"cpu\": %.3f}\n",
           open_streams, live, failed, (long long)busy, (long long)lost, (long long)doubled, (long long)refused, ended,
           took, percentile(samples, samples_taken, 0.5), percentile(samples, samples_taken, 0.99),
           (cpu_seconds() - cpu) / took);
}

static bool obey(char *line) {
    char name[16], other[16], text[2];
    int count, at_once, used = 0;
    double a, b, c;
    line[strcspn(line, "\n")] = 0;
    if (sscanf(line, "set %15s %n%1c", name, &used, text) >= 1 && used) {
        set_template(name, line + used);
        printf("{}\n");
    } else if (sscanf(line, "channels %d", &channel_count) == 1 && channel_count <= CHANNELS) printf("{}\n");
    else if (sscanf(line, "size %d", &data_size) == 1 && data_size > MARK && data_size < 1000) printf("{}\n");
    else if (sscanf(line, "each %d", &count) == 1) {
        one_each = count;
        printf("{}\n");
    } else if (sscanf(line, "open %d %d %d", &count, &at_once, &used) == 3) {
        want_head = used;
        open_many(count, at_once);
    } else if (!strcmp(line, "close")) {
        close_kind(STREAM);
        close_kind(PUBLISHER);
        close_kind(KEPT);
        printf("{}\n");
    } else if (sscanf(line, "fanout %lf %d %lf %lf", &a, &count, &b, &c) == 4 && count <= 1000) fan_out(a, count, b, c);
    else if (sscanf(line, "single %lf", &a) == 1) single(a);
    else if (sscanf(line, "ask %15s %d %lf", name, &count, &a) == 3) ask_all(CLIENT, name, count, a);
    else if (sscanf(line, "fresh %15s %d %lf", name, &count, &a) == 3) {
        fresh = true;
        ask_all(CLIENT, name, count, a);
        fresh = false;
    } else if (sscanf(line, "pages %d %lf", &count, &a) == 2) ask_all(PAGE, "page", count, a);
    else if (sscanf(line, "keep %15s %d %d", name, &count, &at_once) == 3) keep(name, count, at_once);
    else if (sscanf(line, "use %15s", name) == 1) use(name);
    else if (sscanf(line, "hold %15s %d", name, &count) == 2) hold(name, count);
    else if (!strcmp(line, "release")) release();
    else if (sscanf(line, "tell %d %lf", &count, &a) == 2 && own_count && count <= 1000) tell(count, a);
    else if (sscanf(line, "storm %d %lf", &count, &a) == 2 && own_count) storm(count, a);
    else if (!strcmp(line, "cut")) {
        cut();
        printf("{}\n");
    } else if (sscanf(line, "connect %d %lf", &at_once, &a) == 2) {
        want_head = true;
        connect_all(at_once, a);
    } else if (sscanf(line, "probe %15s %lf %lf %lf", name, &a, &b, &c) == 4) probe(name, a, b, c);
    else if (sscanf(line, "greedy %15s %d %15s %lf %lf", name, &count, other, &a, &b) == 5) greedy(name, count, other, a, b);
    else if (sscanf(line, "own %d", &count) == 1 && count <= MAX_OWN) set_places(count, false, false);
    else if (sscanf(line, "places %d %d", &count, &used) == 2 && count <= MAX_OWN) set_places(count, used, true);
    else if (sscanf(line, "flood %d %d %lf %lf", &count, &at_once, &a, &b) == 4 && own_count && count > 0
               && (uint32_t)count <= own_count && at_once <= 1000) flood(count, at_once, a, b);
    else return false;
    return !fflush(stdout);
}

int main(int argc, char **argv) {
    if (argc != 3) return fprintf(stderr, "usage: load HOST PORT | load unix PATH\n"), 2;
    if (!strcmp(argv[1], "unix")) {
        struct sockaddr_un *to = (void *)&server;
        to->sun_family = AF_UNIX;
        snprintf(to->sun_path, sizeof to->sun_path, "%s", argv[2]);
        server_length = sizeof *to;
    } else {
        struct sockaddr_in *to = (void *)&server;
        to->sin_family = AF_INET;
        to->sin_port = htons(atoi(argv[2]));
        if (!inet_pton(AF_INET, argv[1], &to->sin_addr)) die("address");
        server_length = sizeof *to;
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    poller = epoll_create1(EPOLL_CLOEXEC);
    urgent = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event e = {.events = EPOLLIN, .data.fd = urgent};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, urgent, &e)) die("epoll_ctl");
    static char line[1 << 16];
    while (fgets(line, sizeof line, stdin))
        if (!obey(line)) return fprintf(stderr, "load: not a command: %.60s\n", line), 2;
    return 0;
}
