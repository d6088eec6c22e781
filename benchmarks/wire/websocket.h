/* WebSocket frames as both sides of the benchmark read and write them. Source: RFC 6455, section 5.2.
 *
 * Both speak to programs of this repository only: no fragments, and a nonce that is always the same. */
#ifndef WEBSOCKET_H
#define WEBSOCKET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { WS_TEXT = 1, WS_CLOSE = 8, WS_PING = 9, WS_PONG = 10 };
enum { WS_LONGEST_HEADER = 14 };

/* The nonce of the RFC's own example, and what a server answers to it. */
#define WS_NONCE "dGhlIHNhbXBsZSBub25jZQ=="
#define WS_ACCEPT "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

struct ws_frame {
    int opcode;
    uint8_t *payload; /* unmasked, in place */
    size_t length;
    size_t total; /* with its header */
};

/* Find the frame at the beginning of what was read; false while it is not all there. */
static bool ws_read(uint8_t *data, size_t have, struct ws_frame *frame)
{
    if (have < 2)
        return false;
    bool masked = data[1] & 0x80;
    uint64_t length = data[1] & 0x7f;
    size_t header = 2;
    int extra = length == 126 ? 2 : length == 127 ? 8 : 0;
    if (have < header + extra + (masked ? 4 : 0))
        return false;
    if (extra)
        for (length = 0; header < 2 + (size_t)extra; header++)
            length = length << 8 | data[header];
    const uint8_t *mask = data + header;
    if (masked)
        header += 4;
    if (have - header < length)
        return false;
    frame->opcode = data[0] & 0x0f;
    frame->payload = data + header;
    frame->length = length;
    frame->total = header + length;
    if (masked)
        for (size_t i = 0; i < length; i++)
            frame->payload[i] ^= mask[i & 3];
    return true;
}

/* Write a header into `out`, which has room for the longest; return its length. */
static size_t ws_header(uint8_t *out, int opcode, size_t length, const uint8_t *mask)
{
    size_t header = 2;
    int extra = length < 126 ? 0 : length < 65536 ? 2 : 8;
    out[0] = 0x80 | opcode;
    out[1] = (mask ? 0x80 : 0) | (extra == 0 ? length : extra == 2 ? 126 : 127);
    for (int shift = 8 * (extra - 1); shift >= 0; shift -= 8)
        out[header++] = length >> shift;
    if (mask) {
        memcpy(out + header, mask, 4);
        header += 4;
    }
    return header;
}

#endif
