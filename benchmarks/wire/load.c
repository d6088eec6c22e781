/* The load: many WebSocket clients in one thread, and what they see.
 *
 *     load --port P --pid PID [options] PHASE...
 *
 * It opens all clients, does the phases in their order and prints one line of JSON for each: `connect` for the opening,
 * then
 *
 *     warm:W:SECONDS       as `saturate`, printed like any other; to be thrown away
 *     saturate:W:SECONDS   at most W messages outstanding
 *     pace:RATE:SECONDS    so many messages a second, each at a drawn moment of the first half of its interval: in step
 *                          with the kernel's ticks, all of them would find the server in the same instruction
 *     idle:SECONDS         nothing
 *     resume:MISSED        all but one client of each room are cut off; those publish MISSED messages in each room; the
 *                          others come back and resume
 *     restart:MISSED       the same, but before they come back the server is restarted: the load prints a line, and waits
 *                          for one with the id of the new process, on the same port
 *
 * Latency is counted from when a message was due, not from when it was sent. Each delivery is checked: nobody may miss
 * one, and everybody of a room must see the same order. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "measure.h"
#include "websocket.h"

enum { EVENTS = 1024, INPUT = 1 << 20, EPOCH = 129, LONGEST_BODY = 4000, STAMP = 33 };
static const uint64_t SECOND = 1000000000, PATIENCE = 15 * SECOND;
static const char FILLING[] = " hello there everyone, this is a chat line";

enum state { CLOSED, OPENING, JOINING, READY };

struct client {
    int fd, room;
    enum state state;
    bool stalled;    /* it reads nothing */
    uint8_t *kept;   /* the beginning of a frame that has not come whole */
    size_t length;
    uint64_t seen;   /* deliveries in this phase */
    uint64_t order;  /* a hash of what they were, in their order */
    uint64_t offset; /* of the newest message seen, while positions are noted */
};

/* Options. */
static int port, server, cpu = -1, number = 1000, rooms = 1, senders = 16, stalled_each = 0, window = 256;
static size_t body_bytes = 64;
static bool phoenix = true;
static const char *path = "/socket/websocket?vsn=2.0.0&user_id=user-%05d";

static struct client *clients;
static char (*epochs)[EPOCH]; /* of each room's stream */
static int poller, ready, lost, unrecovered;
static bool noting, resuming, timing;
static uint64_t deliveries, delivered_bytes, published;
static struct histogram latency;
static uint8_t input[INPUT];

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void give_up(const char *what)
{
    fprintf(stderr, "load: %s; %d of %d clients are ready, %d are lost.\n", what, ready, number, lost);
    exit(1);
}

/* Out. */

static void send_text(struct client *client, const char *text, size_t length, int opcode)
{
    static const uint8_t mask[4] = {0x37, 0xfa, 0x21, 0x3d};
    uint8_t frame[WS_LONGEST_HEADER + LONGEST_BODY + 1000];
    size_t header = ws_header(frame, opcode, length, mask);
    for (size_t i = 0; i < length; i++)
        frame[header + i] = (uint8_t)text[i] ^ mask[i & 3];
    if (send(client->fd, frame, header + length, MSG_NOSIGNAL) != (ssize_t)(header + length))
        give_up("a server takes no more of what a client sends");
}

static void publish(struct client *client, uint64_t due)
{
    char body[LONGEST_BODY + 1], text[LONGEST_BODY + 1000];
    size_t at = snprintf(body, sizeof body, "@%016llx%016llx", (unsigned long long)due, (unsigned long long)++published);
    while (at < body_bytes) {
        size_t room = body_bytes - at, part = sizeof FILLING - 1 < room ? sizeof FILLING - 1 : room;
        memcpy(body + at, FILLING, part);
        at += part;
    }
    body[at] = 0;
    int length = at;
    if (phoenix)
        length = snprintf(text, sizeof text, "[\"1\",\"2\",\"room:room-%d\",\"new_message\",{\"content\":\"%s\"}]",
                          client->room, body);
    send_text(client, phoenix ? text : body, length, WS_TEXT);
}

static void join(struct client *client)
{
    char text[400], place[200] = "";
    if (resuming)
        snprintf(place, sizeof place, "\"epoch\":\"%s\",\"offset\":%llu", epochs[client->room],
                 (unsigned long long)client->offset);
    int length = snprintf(text, sizeof text, "[\"1\",\"1\",\"room:room-%d\",\"phx_join\",{%s}]", client->room, place);
    send_text(client, text, length, WS_TEXT);
    client->state = JOINING;
}

static void connect_to_server(int index)
{
    struct client *client = &clients[index];
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int yes = 1, small = 4096;
    struct linger cut = {1, 0}; /* closing it resets the connection, so that no address waits to be used again */
    client->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (client->fd < 0)
        die("socket");
    if (client->stalled)
        setsockopt(client->fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    if (connect(client->fd, (struct sockaddr *)&address, sizeof address))
        die("connect");
    setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    setsockopt(client->fd, SOL_SOCKET, SO_LINGER, &cut, sizeof cut);
    fcntl(client->fd, F_SETFL, O_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = index};
    epoll_ctl(poller, EPOLL_CTL_ADD, client->fd, &event);
    client->state = OPENING;
    client->length = 0;

    char target[200], request[600];
    snprintf(target, sizeof target, path, index);
    int length = snprintf(request, sizeof request,
                          "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                          "Sec-WebSocket-Key: " WS_NONCE "\r\nSec-WebSocket-Version: 13\r\n\r\n",
                          target, port);
    if (send(client->fd, request, length, MSG_NOSIGNAL) != length)
        die("send");
}

/* In. */

static void is_ready(struct client *client)
{
    client->state = READY;
    ready++;
    if (client->stalled)
        epoll_ctl(poller, EPOLL_CTL_DEL, client->fd, NULL);
}

static uint64_t hexadecimal(const uint8_t *text)
{
    uint64_t value = 0;
    for (int i = 0; i < 16; i++)
        value = value << 4 | (text[i] <= '9' ? text[i] - '0' : text[i] - 'a' + 10);
    return value;
}

/* Note where in the room's stream this message is. */
static void note_place(struct client *client, const struct ws_frame *frame)
{
    static const char epoch[] = "\"epoch\":\"", offset[] = "\"offset\":";
    char *first = memmem(frame->payload, frame->length, epoch, sizeof epoch - 1);
    char *second = memmem(frame->payload, frame->length, offset, sizeof offset - 1);
    if (!first || !second)
        give_up("a message has no epoch and offset");
    first += sizeof epoch - 1;
    size_t length = strcspn(first, "\"");
    if (length < EPOCH) {
        memcpy(epochs[client->room], first, length);
        epochs[client->room][length] = 0;
    }
    client->offset = strtoull(second + sizeof offset - 1, NULL, 10);
}

static void take(struct client *client, const struct ws_frame *frame, uint64_t now)
{
    const uint8_t *stamp = memchr(frame->payload, '@', frame->length);
    if (stamp && stamp + STAMP <= frame->payload + frame->length) {
        uint64_t due = hexadecimal(stamp + 1), which = hexadecimal(stamp + 17);
        deliveries++;
        delivered_bytes += frame->length;
        client->seen++;
        client->order = (client->order ^ which) * 0x100000001b3; /* FNV-1a, a message at a time */
        if (timing && !client->stalled)
            histogram_add(&latency, now > due ? now - due : 0);
        if (noting)
            note_place(client, frame);
    } else if (client->state == JOINING && memmem(frame->payload, frame->length, "\"phx_reply\"", 11)) {
        if (!memmem(frame->payload, frame->length, "\"status\":\"ok\"", 13)) {
            fprintf(stderr, "load: %.*s\n", (int)frame->length, frame->payload);
            give_up("a join was refused");
        }
        if (resuming && !memmem(frame->payload, frame->length, "\"recovered\":true", 16))
            unrecovered++;
        is_ready(client);
    }
}

static void lose(struct client *client)
{
    if (client->state == READY)
        ready--;
    client->state = CLOSED;
    lost++;
    close(client->fd);
}

static void serve(struct client *client)
{
    memcpy(input, client->kept, client->length);
    ssize_t got = recv(client->fd, input + client->length, INPUT - client->length, 0);
    if (got <= 0) {
        if (got == 0 || errno != EAGAIN)
            lose(client);
        return;
    }
    uint64_t now = now_ns();
    size_t have = client->length + got, at = 0;
    uint8_t *end;
    if (client->state == OPENING && (end = memmem(input, have, "\r\n\r\n", 4))) {
        if (memcmp(input, "HTTP/1.1 101", 12)) {
            fprintf(stderr, "load: %.*s\n", (int)have, input);
            give_up("a handshake was refused");
        }
        at = end + 4 - input;
        if (phoenix)
            join(client);
        else
            is_ready(client);
    }
    struct ws_frame frame;
    while (client->state > OPENING && ws_read(input + at, have - at, &frame)) {
        at += frame.total;
        if (frame.opcode == WS_TEXT)
            take(client, &frame, now);
        else if (frame.opcode == WS_PING)
            send_text(client, (char *)frame.payload, frame.length, WS_PONG);
    }
    client->length = have - at;
    if (client->length) {
        client->kept = realloc(client->kept, client->length);
        memcpy(client->kept, input + at, client->length);
    }
}

static void step(int wait_ms)
{
    struct epoll_event events[EVENTS];
    int count = epoll_wait(poller, events, EVENTS, wait_ms);
    for (int i = 0; i < count; i++)
        serve(&clients[events[i].data.u32]);
}

static void steps_until(uint64_t end)
{
    while (now_ns() < end)
        step(1);
}

/* Phases. */

/* Open every client from `first` on that is closed, at most `window` of them at a time. */
static void open_all(int first)
{
    int opened = first, before = ready;
    uint64_t limit = now_ns() + 4 * PATIENCE;
    while (ready - before < number - first) {
        while (opened < number && opened - first - (ready - before) < window)
            connect_to_server(opened++);
        step(10);
        if (lost)
            give_up("a client was cut off while it joined");
        if (now_ns() > limit)
            give_up("not all clients could join in time");
    }
}

static void begin_counting(void)
{
    memset(&latency, 0, sizeof latency);
    deliveries = delivered_bytes = 0;
    for (int i = 0; i < number; i++)
        clients[i].seen = clients[i].order = 0;
}

static int readers(void)
{
    int count = 0;
    for (int i = 0; i < number; i++)
        count += !clients[i].stalled;
    return count;
}

/* Those who read that have not seen exactly this many messages. */
static int incomplete(uint64_t messages)
{
    int count = 0;
    for (int i = 0; i < number; i++)
        count += !clients[i].stalled && clients[i].seen != messages;
    return count;
}

/* Those who read that have not seen the order that the first of their room has seen. */
static int disordered(void)
{
    int count = 0;
    for (int i = 0; i < number; i++)
        count += !clients[i].stalled && clients[i].order != clients[clients[i].room].order;
    return count;
}

/* Those who did not read and whose connection the server has ended. */
static int given_up(void)
{
    int count = 0;
    for (int i = 0; i < number; i++) {
        ssize_t got = 1;
        while (clients[i].stalled && got > 0)
            got = recv(clients[i].fd, input, INPUT, 0);
        count += clients[i].stalled && (got == 0 || errno != EAGAIN);
    }
    return count;
}

/* Publish in the first room, by each of the senders in turn, for so long. */
static void messages(const char *name, double rate, int outstanding, double seconds)
{
    if (rooms > 1)
        give_up("messages are for a single room");
    begin_counting();
    int count = readers(), lost_before = lost, next = 0;
    uint64_t sent = 0, random = 1, seen = 0;
    struct cpu before = cpu_of(server), own = cpu_of(getpid());
    double resident = resident_of(server), peak = resident;
    uint64_t start = now_ns(), end = start + seconds * SECOND, last = start, sampled = start;
    uint64_t total = rate * seconds, due = start;
    timing = true;
    for (;;) {
        uint64_t now = now_ns();
        if (outstanding)
            while (now < end && sent * count < deliveries + (uint64_t)outstanding * count) {
                publish(&clients[next++ % senders], now);
                sent++;
            }
        else
            while (sent < total && now >= due) {
                publish(&clients[next++ % senders], due);
                random = random * 6364136223846793005 + 1442695040888963407;
                double drawn = (random >> 40) / (double)(1 << 24) / 2;
                due = start + (++sent + drawn) / rate * SECOND;
            }
        if (deliveries >= sent * count && (outstanding ? now >= end : sent == total))
            break;
        step(0);
        if (deliveries != seen) {
            seen = deliveries;
            last = now_ns();
        }
        if (now > end && now > last + 4 * SECOND)
            break; /* what has not come by now is missing */
        if (now > sampled + SECOND / 10) {
            sampled = now;
            double present = resident_of(server);
            peak = present > peak ? present : peak;
        }
    }
    timing = false;
    struct cpu after = cpu_of(server);
    double elapsed = (last - start) / (double)SECOND, used = after.total - before.total;
    double waited = (after.waited - before.waited + cpu_of(getpid()).waited - own.waited) / 2;
    double ticks = after.user - before.user + after.kernel - before.kernel;
    double user = ticks > 0 ? used * (after.user - before.user) / ticks : 0;
    uint64_t count_seen = latency.total;
    printf("{\"phase\": \"%s\", \"messages\": %llu, \"deliveries\": %llu, \"per_second\": %.0f, \"cpu_us\": %.4f, "
           "\"user_us\": %.4f, \"busy\": %.3f, \"waited\": %.3f, \"p50_ms\": %.3f, \"p99_ms\": %.3f, \"max_ms\": %.3f, "
           "\"frame_bytes\": %.1f, \"incomplete\": %d, \"disordered\": %d, \"lost\": %d, \"stalled\": %d, "
           "\"given_up\": %d, \"resident_growth\": %.0f}\n",
           name, (unsigned long long)sent, (unsigned long long)count_seen, count_seen / elapsed, 1e6 * used / count_seen,
           1e6 * user / count_seen, used / elapsed, waited / elapsed, histogram_quantile(&latency, 0.5) / 1e6,
           histogram_quantile(&latency, 0.99) / 1e6, latency.largest / 1e6, delivered_bytes / (double)deliveries,
           incomplete(sent), disordered(), lost - lost_before, number - count, given_up(), peak - resident);
    steps_until(now_ns() + SECOND / 5);
}

static void idle(double seconds)
{
    struct cpu before = cpu_of(server);
    steps_until(now_ns() + seconds * SECOND);
    printf("{\"phase\": \"idle\", \"cpu_s\": %.4f, \"resident\": %.0f, \"lost\": %d}\n",
           cpu_of(server).total - before.total, resident_of(server), lost);
}

/* Wait until every reader among the first so many clients has seen so many messages. */
static void all_see(int first, int last, uint64_t messages)
{
    uint64_t limit = now_ns() + PATIENCE;
    for (int i = first; i < last;) {
        if (clients[i].seen >= messages || clients[i].stalled)
            i++;
        else if (now_ns() > limit)
            give_up("a message did not come");
        else
            step(1);
    }
}

/* Say that the server is to be restarted, and wait until it is. */
static void await_restart(void)
{
    printf("{\"phase\": \"restart\", \"lost\": %d}\n", lost);
    fflush(stdout);
    if (scanf("%d", &server) != 1)
        give_up("nobody has said which process the server is now");
    for (int i = 0; i < rooms; i++)
        lose(&clients[i]);
    lost = 0;
}

static void resume(int missed, bool restart)
{
    noting = true;
    begin_counting();
    for (int i = 0; i < rooms; i++)
        publish(&clients[i], now_ns());
    all_see(0, number, 1);
    begin_counting();
    struct cpu before = cpu_of(server);
    uint64_t start = now_ns();
    for (int i = rooms; i < number; i++)
        lose(&clients[i]);
    lost = 0;
    for (int each = 0; each < missed; each++)
        for (int i = 0; i < rooms; i++)
            publish(&clients[i], now_ns());
    all_see(0, rooms, missed);
    if (restart) {
        await_restart();
        before = cpu_of(server);
        start = now_ns();
    }
    resuming = true;
    open_all(rooms);
    all_see(rooms, number, missed);
    uint64_t end = now_ns();
    steps_until(now_ns() + SECOND / 2); /* a message that comes twice would come now */
    printf("{\"phase\": \"resume\", \"seconds\": %.3f, \"cpu_s\": %.3f, \"resumed\": %d, \"unrecovered\": %d, "
           "\"incomplete\": %d, \"disordered\": %d}\n",
           (end - start) / (double)SECOND, cpu_of(server).total - before.total, number - rooms, unrecovered,
           incomplete(missed), disordered());
    noting = resuming = false;
}

static void run(const char *phase)
{
    double first = 0, second = 0;
    char name[16];
    if (sscanf(phase, "%15[^:]:%lf:%lf", name, &first, &second) < 2)
        give_up("a phase is written NAME:NUMBER[:NUMBER]");
    if (!strcmp(name, "saturate") || !strcmp(name, "warm"))
        messages(name, 0, first, second);
    else if (!strcmp(name, "pace"))
        messages(name, first, 0, second);
    else if (!strcmp(name, "idle"))
        idle(first);
    else if (!strcmp(name, "resume"))
        resume(first, false);
    else if (!strcmp(name, "restart"))
        resume(first, true);
    else
        give_up("there is no such phase");
    fflush(stdout);
}

static void options(int argc, char **argv)
{
    static const struct option known[] = {
        {"port", required_argument, NULL, 'p'},    {"pid", required_argument, NULL, 'i'},
        {"cpu", required_argument, NULL, 'c'},     {"clients", required_argument, NULL, 'n'},
        {"rooms", required_argument, NULL, 'r'},   {"senders", required_argument, NULL, 's'},
        {"body", required_argument, NULL, 'b'},    {"stalled-each", required_argument, NULL, 't'},
        {"window", required_argument, NULL, 'w'},  {"plain", no_argument, NULL, 'P'},
        {NULL, 0, NULL, 0}};
    int option;
    while ((option = getopt_long(argc, argv, "+", known, NULL)) != -1)
        switch (option) {
        case 'p': port = atoi(optarg); break;
        case 'i': server = atoi(optarg); break;
        case 'c': cpu = atoi(optarg); break;
        case 'n': number = atoi(optarg); break;
        case 'r': rooms = atoi(optarg); break;
        case 's': senders = atoi(optarg); break;
        case 'b': body_bytes = atoi(optarg); break;
        case 't': stalled_each = atoi(optarg); break;
        case 'w': window = atoi(optarg); break;
        case 'P': phoenix = false, path = "/%05d"; break; /* every message to everybody, in no protocol */
        default: exit(2);
        }
    if (!port || !server || senders > number || rooms > number || body_bytes < STAMP || body_bytes > LONGEST_BODY)
        give_up("an option is missing or out of range");
}

int main(int argc, char **argv)
{
    options(argc, argv);
    cpu_set_t only;
    CPU_ZERO(&only);
    CPU_SET(cpu, &only);
    if (cpu >= 0 && sched_setaffinity(0, sizeof only, &only))
        die("sched_setaffinity");
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);

    clients = calloc(number, sizeof *clients);
    epochs = calloc(rooms, sizeof *epochs);
    poller = epoll_create1(0);
    for (int i = 0; i < number; i++) {
        clients[i].room = i % rooms;
        clients[i].stalled = stalled_each && i >= senders && i % stalled_each == 0;
    }
    struct cpu before = cpu_of(server);
    double resident = resident_of(server);
    uint64_t start = now_ns();
    open_all(0);
    uint64_t end = now_ns();
    steps_until(end + SECOND);
    printf("{\"phase\": \"connect\", \"seconds\": %.3f, \"cpu_s\": %.3f, \"clients\": %d, \"bytes_each\": %.0f}\n",
           (end - start) / (double)SECOND, cpu_of(server).total - before.total, number,
           (resident_of(server) - resident) / number);
    fflush(stdout);
    while (optind < argc)
        run(argv[optind++]);
    return 0;
}
