/* The reference: what a room on WebSockets costs where nothing but the kernel has to be paid.
 *
 *     room each|joined CPU
 *
 * It sends every message it reads to everybody who is connected, as it is. `each` does so as each message is read, with
 * one send() for a delivery; `joined` first reads all that one epoll_wait() told of, and then sends it to each in one
 * send(). There are no rooms, no users and no checks, and whoever does not take all of it at once loses the rest.
 *
 * It prints one line of JSON, {"port": ...}, and serves until it is killed. */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "websocket.h"

enum { MOST = 20000, EVENTS = 1024, INPUT = 1 << 16, OUTPUT = 1 << 22 };

static const char ACCEPT[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                             "Sec-WebSocket-Accept: " WS_ACCEPT "\r\n\r\n";

struct client {
    bool open;    /* its handshake is answered */
    int place;    /* in `subscribers` */
    uint8_t *kept; /* the beginning of a frame that has not come whole */
    size_t length;
};

static struct client clients[MOST]; /* by file descriptor */
static int subscribers[MOST], count;
static bool joined;
static uint8_t input[INPUT], output[OUTPUT];
static size_t pending;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void send_to_all(void)
{
    for (int i = 0; i < count; i++)
        (void)!send(subscribers[i], output, pending, MSG_NOSIGNAL | MSG_DONTWAIT);
    pending = 0;
}

static void take(const struct ws_frame *frame)
{
    if (pending + WS_LONGEST_HEADER + frame->length > OUTPUT)
        send_to_all();
    pending += ws_header(output + pending, WS_TEXT, frame->length, NULL);
    memcpy(output + pending, frame->payload, frame->length);
    pending += frame->length;
    if (!joined)
        send_to_all();
}

static void open_socket(int fd)
{
    clients[fd].open = true;
    clients[fd].place = count;
    subscribers[count++] = fd;
    (void)!send(fd, ACCEPT, sizeof ACCEPT - 1, MSG_NOSIGNAL);
}

static void close_socket(int fd)
{
    struct client *client = &clients[fd];
    if (client->open) {
        int last = subscribers[--count];
        subscribers[client->place] = last;
        clients[last].place = client->place;
    }
    free(client->kept);
    *client = (struct client){0};
    close(fd);
}

/* Do what came; false where the connection is over. */
static bool serve(int fd)
{
    struct client *client = &clients[fd];
    if (client->length)
        memcpy(input, client->kept, client->length);
    ssize_t got = recv(fd, input + client->length, INPUT - client->length, 0);
    if (got <= 0)
        return false;
    size_t have = client->length + got, at = 0;
    if (!client->open) {
        uint8_t *end = memmem(input, have, "\r\n\r\n", 4);
        if (end) {
            at = end + 4 - input;
            open_socket(fd);
        }
    }
    struct ws_frame frame;
    while (client->open && ws_read(input + at, have - at, &frame)) {
        if (frame.opcode == WS_CLOSE)
            return false;
        if (frame.opcode == WS_TEXT)
            take(&frame);
        at += frame.total;
    }
    client->length = have - at;
    if (client->length) {
        client->kept = realloc(client->kept, client->length);
        memcpy(client->kept, input + at, client->length);
    }
    return true;
}

static int listening(void)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, size) || listen(fd, 4096))
        die("listen");
    if (getsockname(fd, (struct sockaddr *)&address, &size))
        die("getsockname");
    printf("{\"port\": %d}\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

static void watch(int poll, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event))
        die("epoll_ctl");
}

int main(int argc, char **argv)
{
    if (argc != 3 || (strcmp(argv[1], "each") && strcmp(argv[1], "joined"))) {
        fprintf(stderr, "usage: room each|joined CPU\n");
        return 2;
    }
    joined = strcmp(argv[1], "joined") == 0;
    cpu_set_t cpu;
    CPU_ZERO(&cpu);
    CPU_SET(atoi(argv[2]), &cpu);
    if (sched_setaffinity(0, sizeof cpu, &cpu))
        die("sched_setaffinity");
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max < MOST ? files.rlim_max : MOST;
    setrlimit(RLIMIT_NOFILE, &files);
    int door = listening(), poll = epoll_create1(0), yes = 1;
    watch(poll, door);
    for (;;) {
        struct epoll_event events[EVENTS];
        int ready = epoll_wait(poll, events, EVENTS, -1);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd != door) {
                if (!serve(fd))
                    close_socket(fd);
                continue;
            }
            int fresh = accept4(door, NULL, NULL, SOCK_NONBLOCK);
            if (fresh < 0)
                continue;
            setsockopt(fresh, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
            watch(poll, fresh);
        }
        if (pending)
            send_to_all();
    }
}
