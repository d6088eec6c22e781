// A server of the wire in memory, which fails where a test says so. It keeps rooms, their streams and the keys of messages.
const KEY_MS = 300_000;

class Room {
  epoch = "e1";
  messages = [];
  /** What was ever said, in all streams. */
  said = [];
  keys = new Map();
  kept = 1000;
  head = 0;

  publish(user_id, content, data) {
    this.head += 1;
    const { epoch, head: offset } = this;
    const message = { id: `${epoch}-${offset}`, room_id: "", user_id, content, inserted_at: Date.now(), epoch, offset };
    if (data !== undefined) message.data = data;
    this.messages.push(message);
    this.said.push(message);
    if (this.messages.length > this.kept) this.messages.shift();
    return message;
  }

  knows(key) {
    return this.keys.has(key) && Date.now() - this.keys.get(key).at < KEY_MS;
  }

  /** Its next life is another stream, and nothing is known of this one. */
  begin(epoch) {
    this.epoch = epoch;
    this.head = 0;
    this.messages = [];
    this.keys.clear();
  }
}

export class FakeServer {
  /** Handshakes: `{url, protocols}` of each. */
  handshakes = [];
  /** Frames that came, of every connection. */
  frames = [];
  sockets = new Set();
  /** What is done to the next handshakes: `refuse`, `hang`. */
  handshakeFaults = [];
  /** What is done to the next frames of an event: `event → [fault]`; a fault is a refusal, `lose`, `unanswered`, `hold`, `crash`. */
  faults = new Map();
  /** Answers that are held back. */
  held = [];
  most = 1000;
  heartbeats = true;
  /** Contents that a resume leaves out, though it says that it has all. */
  skips = new Set();
  #rooms = new Map();

  room(id) {
    if (!this.#rooms.has(id)) this.#rooms.set(id, new Room());
    return this.#rooms.get(id);
  }

  /** Publishes, and tells everybody. */
  say(id, content, user_id = "server", data) {
    const message = this.room(id).publish(user_id, content, data);
    this.tell(id, message);
    return message;
  }

  tell(id, message) {
    for (const socket of this.sockets) if (socket.joins.has(id)) socket.give([null, null, `room:${id}`, "new_message", message]);
  }

  fault(event, ...faults) {
    this.faults.set(event, [...(this.faults.get(event) ?? []), ...faults]);
  }

  release() {
    for (const give of this.held.splice(0)) give();
  }

  /** Cuts every connection. */
  cut(code = 1006) {
    for (const socket of [...this.sockets]) socket.end(code);
  }

  of(event) {
    return this.frames.filter((frame) => frame[3] === event);
  }

  get WebSocket() {
    const server = this;
    return class {
      readyState = 0;
      joins = new Map();
      constructor(url, protocols) {
        server.handshakes.push({ url, protocols });
        const fault = server.handshakeFaults.shift();
        if (fault === "hang") return;
        queueMicrotask(() => {
          if (fault === "refuse") return this.end(1006);
          if (this.readyState !== 0) return;
          this.readyState = 1;
          server.sockets.add(this);
          this.onopen?.();
        });
      }
      send(text) {
        const frame = JSON.parse(text);
        server.frames.push(frame);
        queueMicrotask(() => server.take(this, frame));
      }
      close() {
        server.sockets.delete(this);
        this.readyState = 3;
      }
      end(code) {
        this.close();
        this.onclose?.({ code });
      }
      give(frame) {
        if (this.readyState === 1) this.onmessage?.({ data: JSON.stringify(frame) });
      }
    };
  }

  /** Long-polling: `polls` counts sessions, `pollFault` is what each request is answered with instead. */
  polls = 0;
  pollFault = null;
  #sessions = new Map();
  fetch = async (url, { method, headers, body, signal }) => {
    const respond = (fields, status = 200) => ({ status, headers: new Map([["retry-after", this.retryAfter]]), json: async () => fields });
    if (this.pollFault !== null) return this.pollFault === "fail" ? Promise.reject(new Error("no network")) : respond(this.pollFault);
    const session = this.#sessions.get(headers["x-phoenix-longpoll-token"]);
    if (session === undefined) {
      this.polls += 1;
      const opened = { joins: new Map(), out: [], readyState: 1, wake: () => {} };
      Object.assign(opened, {
        give: (frame) => (opened.out.push(JSON.stringify(frame)), opened.wake()),
        close: () => (this.sockets.delete(opened), this.#sessions.delete(`s${this.polls}`)),
        end: () => (opened.close(), opened.wake()),
      });
      this.sockets.add(opened);
      this.#sessions.set(`s${this.polls}`, opened);
      return respond({ status: 410, token: `s${this.polls}`, messages: [] });
    }
    if (method === "POST") {
      for (const line of body.split("\n")) {
        this.frames.push(JSON.parse(line));
        queueMicrotask(() => this.take(session, JSON.parse(line)));
      }
      return respond({ status: 200 });
    }
    if (session.out.length === 0)
      await new Promise((wake) => {
        session.wake = wake;
        signal.onabort = () => (session.close(), wake());
        setTimeout(wake, 10_000);
      });
    if (!this.sockets.has(session)) return respond({ status: 410, messages: [] });
    const messages = session.out.splice(0);
    return respond({ status: messages.length ? 200 : 204, token: headers["x-phoenix-longpoll-token"], messages });
  };

  take(socket, [joinRef, ref, topic, event, payload]) {
    const fault = this.faults.get(event)?.shift();
    if (fault === "unanswered") return;
    if (fault === "lose") return socket.end(1006);
    const answer = (status, response) => {
      if (fault === "crash") [status, response] = ["error", { code: "room_unavailable", reason: "rebuilt", retryable: true }];
      const give = () => socket.give([joinRef, ref, topic, "phx_reply", { status, response }]);
      if (fault === "hold") this.held.push(give);
      else if (fault === "cut") socket.end(1006);
      else give();
    };
    if (topic === "phoenix") return this.heartbeats ? answer("ok", {}) : undefined;
    const id = topic.slice("room:".length);
    const room = this.room(id);
    // What is refused for good was not published before: keys are looked at first, and then the epoch.
    if (event === "new_message" && !room.knows(payload.key) && (payload.epoch ?? room.epoch) !== room.epoch)
      return answer("error", { code: "epoch_changed", reason: "begun anew", retryable: false });
    if (typeof fault === "object" && (fault.retryable || !room.keys.has(payload.key))) return answer("error", fault);
    if (event === "phx_join") return this.#join(socket, id, room, payload, joinRef, answer);
    if (event === "phx_leave") return socket.joins.delete(id);
    if (!socket.joins.has(id)) return answer("error", { code: "unmatched_topic", reason: "unmatched topic", retryable: false });
    if (event === "history") return this.#history(room, payload, answer);
    if (event === "new_message") this.#message(id, room, payload, answer);
  }

  #join(socket, id, room, { epoch, offset }, joinRef, answer) {
    const place = { epoch: room.epoch, offset: room.head };
    socket.joins.set(id, joinRef);
    if (epoch === undefined) return answer("ok", { ...place, recovered: false });
    const missed = room.messages.filter((message) => message.offset > offset);
    let reason;
    if (epoch !== room.epoch) reason = "epoch_changed";
    else if (room.head - offset > this.most) reason = "too_many";
    else if (missed.length < room.head - offset) reason = "too_old";
    if (reason) return answer("ok", { ...place, recovered: false, reason });
    answer("ok", { ...place, recovered: true });
    for (const message of missed) if (!this.skips.has(message.content)) socket.give([null, null, `room:${id}`, "new_message", message]);
  }

  #history(room, { limit = 50, before, after }, answer) {
    const all = room.messages.filter(({ offset }) => (before ? offset < before.offset : after ? offset > after.offset : true));
    const messages = after ? all.slice(0, limit) : all.slice(-limit);
    answer("ok", { messages, more: messages.length < all.length });
  }

  #message(id, room, { content, data, key }, answer) {
    const duplicate = room.knows(key);
    const message = duplicate ? room.keys.get(key).message : room.publish("me", content, data);
    if (!duplicate) room.keys.set(key, { message, at: Date.now() });
    if (!duplicate) this.tell(id, message);
    const { epoch, offset, inserted_at } = message;
    answer("ok", { id: message.id, epoch, offset, inserted_at, ...(duplicate ? { duplicate } : {}) });
  }
}

/** A storage as a page has one. */
export class FakeStorage {
  items = new Map();
  full = false;
  get length() {
    return this.items.size;
  }
  key(index) {
    return [...this.items.keys()][index] ?? null;
  }
  getItem(name) {
    return this.items.get(name) ?? null;
  }
  setItem(name, value) {
    if (this.full) throw new Error("quota");
    this.items.set(name, value);
  }
  removeItem(name) {
    this.items.delete(name);
  }
}
