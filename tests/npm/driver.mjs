// What a page does with the official client of Phoenix Channels, driven from outside: commands in, reports out. One
// driver is one socket. Node and Chromium run the same file; tests/clients/peers.py is the other end.
//
// A channel keeps the place of the newest message it has seen, and sends it at every join: that is all there is to resume.
import { Presence, Socket } from "phoenix";

const always = (ms) => (ms === undefined ? undefined : () => ms);

// Version 1 has objects on the wire; the client itself only speaks version 2, and takes another codec.
const V1 = { encode: (frame, done) => done(JSON.stringify(frame)), decode: (text, done) => done(JSON.parse(text)) };

export class Driver {
  #report;
  #transport;
  #socket;
  #channels = new Map();
  #params = {};
  #token;

  constructor(report, transport) {
    this.#report = report;
    this.#transport = transport;
  }

  // Does one command; whatever the client throws is a report too.
  do({ command, ...fields }) {
    try {
      this[command](fields);
    } catch (error) {
      this.#report({ what: "thrown", error: `${error}` });
    }
  }

  connect({ url, params = {}, token, vsn = "2.0.0", timeout_ms, heartbeat_ms, reconnect_ms, rejoin_ms }) {
    this.become({ params, token });
    this.#socket = new Socket(url, {
      ...(vsn === "1.0.0" ? V1 : {}),
      vsn,
      transport: this.#transport,
      params: () => this.#params,
      authToken: token === undefined ? undefined : () => this.#token,
      timeout: timeout_ms,
      heartbeatIntervalMs: heartbeat_ms,
      reconnectAfterMs: always(reconnect_ms),
      rejoinAfterMs: always(rejoin_ms),
    });
    this.#socket.onOpen(() => this.#report({ what: "open", protocol: this.#socket.conn.protocol }));
    this.#socket.onClose(({ code }) => this.#report({ what: "close", code }));
    this.#socket.onError(() => this.#report({ what: "error" }));
    this.#socket.connect();
  }

  // From the next connection on.
  become({ params, token }) {
    this.#params = params;
    this.#token = token;
  }

  disconnect() {
    this.#socket.disconnect(() => this.#report({ what: "disconnected" }));
  }

  reconnect() {
    this.#socket.connect();
  }

  join({ channel: name, topic, params }) {
    const report = (fields) => this.#report({ channel: name, ...fields });
    let seen = params ?? {};
    const channel = this.#socket.channel(topic, () => seen);
    channel.on("new_message", (message) => {
      seen = { epoch: message.epoch, offset: message.offset };
      report({ what: "message", message });
    });
    channel.onClose(() => report({ what: "closed" }));
    channel.onError(() => report({ what: "failed" }));
    this.#watch(new Presence(channel), report);
    this.#channels.set(name, channel);
    channel
      .join()
      .receive("ok", (head) => {
        if (!head.recovered) seen = { epoch: head.epoch, offset: head.offset };
        report({ what: "joined", head });
      })
      .receive("error", (refusal) => report({ what: "refused", refusal }))
      .receive("timeout", () => report({ what: "timeout" }));
  }

  push({ channel, event, payload, bytes, id }) {
    const push = this.#channels.get(channel).push(event, bytes ? Uint8Array.from(bytes).buffer : payload);
    for (const status of ["ok", "error", "timeout"]) {
      push.receive(status, (response) => this.#report({ what: "reply", id, status, response }));
    }
  }

  leave({ channel }) {
    this.#channels.get(channel).leave();
  }

  #watch(presence, report) {
    presence.onJoin((user, before) => report({ what: "came", user, first: !before }));
    presence.onLeave((user, after) => report({ what: "went", user, last: after.metas.length === 0 }));
    presence.onSync(() => {
      const here = Object.fromEntries(presence.list((user, { metas }) => [user, metas.length]));
      report({ what: "synced", here });
    });
  }
}
