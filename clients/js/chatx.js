/**
 * The client of chatx, for browsers and for Node 20 or newer: rooms that lose nothing, and say so where something is lost.
 *
 *     import { Chat } from "/socket/chatx.js";
 *     const room = new Chat("/socket").room("general");
 *     room.on("message", ({ content }) => console.log(content));
 *     await room.join();
 *     await room.send("Hello");
 *
 * Rules:
 * 1. A room's messages are told once, in the order of its stream; what is missing is told by a `gap` at its place.
 * 2. A room's sends go one at a time, each under one idempotency key for life, and each has one outcome.
 * 3. Replies are taken by callbacks, not by promises: what follows a reply must not be read before it.
 *
 * @module
 */

/** Milliseconds between two heartbeats; the server closes who is silent for 60 s. */
const BEAT_MS = 30_000;
/** Milliseconds to wait for a reply before asking whether anybody is there, and then for that to be answered. */
const REPLY_MS = 10_000;
/** So many times `REPLY_MS` is the most that a request waits while heartbeats are answered. */
const LOOKS = 6;
/** Milliseconds for a connection to open; for a WebSocket before any was heard on. */
const OPEN_MS = 10_000;
const UNPROVED_MS = 4_000;
/** The longest pause before the first attempt to come back, and any. */
const FIRST_PAUSE_MS = 1_000;
const MOST_PAUSE_MS = 30_000;
/** Seconds of a pause that a server may ask for. */
const MOST_HINT_S = 3_600;
/** Whoever was joined for so long begins with short pauses anew. */
const STABLE_MS = 3_000;
/** How long to poll before a WebSocket is tried again: at first, and at most. */
const POLLING_MS = 30_000;
const MOST_POLLING_MS = 600_000;
/** A poll is lost without an answer in this time; the server answers within 10 s. */
const POLL_MS = 20_000;
/** One post: messages and characters. */
const POST_MESSAGES = 100;
const POST_LENGTH = 60_000;
/** Bytes of a frame that the server takes. */
const FRAME_BYTES = 65_536;
/** Messages in a page of history. */
const PAGE = 200;
/** Live messages kept while the history is loaded; what follows is asked for again. */
const DEFERRED = 1_000;
/** Calls of `history` that may wait in a room. */
const READS = 16;
/** Streams whose newest place is remembered, and messages whose sender is. */
const EPOCHS = 16;
const RECENT = 64;

/** What travels with a message. @typedef {Record<string, unknown>} Data */
/** A place in a room's stream. @typedef {{epoch: string, offset: number}} Place */
/**
 * A message as it is on the wire; `inserted_at` is in milliseconds since the epoch.
 * @typedef {Place & {id: string, room_id: string, user_id: string, content: string, inserted_at: number, data?: Data}} Message
 */
/**
 * What became of a send, with the content as it was sent. `duplicate` says that an earlier attempt was published, `stored`
 * that the server's log has it.
 * @typedef {Omit<Message, "user_id"> & {key: string, duplicate?: boolean, stored?: boolean}} Sent
 */
/**
 * Messages that are missing behind `after`, if there was anything; what follows is behind `offset` of `epoch`. `reason` is
 * `epoch_changed`, `too_old`, `too_many`, `missing`, or the code of a refused history; `missed` is null where nobody knows.
 * @typedef {Place & {room_id: string, reason: string, missed: number | null, after: Place | null}} Gap
 */
/** One connection of a user in a room. @typedef {{phx_ref: string, online_at: number}} Meta */
/** Who is in a room: users and their connections. @typedef {Map<string, Meta[]>} Members */
/**
 * `waiting` is for the next attempt; `refused` may not join; `stopped` is a chat that was closed, or whose user was shut out.
 * @typedef {"idle" | "joining" | "joined" | "waiting" | "refused" | "stopped"} State
 */
/** Why a state is, and when the next attempt comes (milliseconds). @typedef {{error?: ChatError, at?: number}} StateDetail */
/** A send that waits. @typedef {{key: string, room_id: string, content: string, data?: Data, created: number}} Pending */
/**
 * What a room tells.
 * @typedef {object} RoomEvents
 * @property {(message: Message) => void} message
 * @property {(gap: Gap) => void} gap
 * @property {(members: Members) => void} presence
 * @property {(state: State, detail: StateDetail) => void} state
 * @property {(error: ChatError, send: Pending) => void} held refused for now, and goes again
 * @property {(sent: Sent) => void} sent of a send of an earlier page or process, which has no promise any more
 * @property {(error: ChatError, send: Pending) => void} failed likewise
 */
/** @typedef {Pick<Storage, "length" | "key" | "getItem" | "setItem" | "removeItem">} StorageLike */
/** @typedef {new (url: string, protocols: string[]) => any} SocketClass */
/**
 * How many sends, bytes of JSON and milliseconds may wait, over all rooms, and how long a key is trusted to be known.
 * @typedef {{messages?: number, bytes?: number, ageMs?: number, keyMs?: number}} OutboxBounds
 */
/**
 * Options of a `Chat`.
 * @typedef {object} Options
 * @property {() => string | null | Promise<string | null>} [token] asked for each connection
 * @property {Record<string, string> | (() => Record<string, string> | Promise<Record<string, string>>)} [params] of the query
 * @property {SocketClass | null} [WebSocket] where there is none, as in Node 20: that of `ws`; null is to poll only
 * @property {typeof globalThis.fetch | null} [fetch] for long-polling; null is never to poll
 * @property {StorageLike} [storage] keeps the sends that wait, such as `sessionStorage`
 * @property {string} [name] whose sends these are in the storage: the user's id, where it has several people's
 * @property {OutboxBounds} [outbox]
 * @property {() => number} [random]
 */
/** @typedef {{status: string, response: any}} Reply */

/** A beginning whose history is loaded. @typedef {{from: Place | null, reason: string, page: Message[], live: Message[], cut: boolean}} Loading */

/** Why something was not done. */
export class ChatError extends Error {
  /**
   * @param {string} code the server's, or one of the client's: `closed`, `expired`, `outbox_full`, `unknown`, `refused`, ...
   * @param {string} reason what was wrong, and what to do
   * @param {{retryable?: boolean, retryAfter?: number | null, cause?: unknown}} [more]
   */
  constructor(code, reason, { retryable = false, retryAfter = null, cause } = {}) {
    super(`${code}: ${reason}`, cause === undefined ? undefined : { cause });
    this.name = "ChatError";
    this.code = code;
    this.reason = reason;
    /** Whether the same may succeed later. */
    this.retryable = retryable;
    /** Seconds after which it may, or null where that is not known. */
    this.retryAfter = typeof retryAfter === "number" && retryAfter >= 0 ? Math.min(retryAfter, MOST_HINT_S) : null;
  }
}

/** @param {any} response of an error reply */
function refusal(response) {
  const { code, reason, retryable, retry_after_ms: ms } = response ?? {};
  return new ChatError(typeof code === "string" ? code : "refused", `${reason ?? "The server refused it."}`, {
    retryable: retryable === true,
    retryAfter: typeof ms === "number" ? ms / 1000 : null,
  });
}

/** @param {unknown} error */
function report(error) {
  if (typeof globalThis.reportError === "function") globalThis.reportError(error);
  else
    setTimeout(() => {
      throw error;
    });
}

/** @param {string} text */
const utf8 = (text) => new TextEncoder().encode(text);

/** @param {string} text */
const latin1 = (text) => Array.from(utf8(text), (byte) => String.fromCharCode(byte)).join("");

/** 128 random bits; a page that came by plain HTTP has no `randomUUID`. */
function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** With full jitter. @param {() => number} random @param {number} attempt from 0 */
const pause = (random, attempt) => random() * Math.min(MOST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** Math.min(attempt, 10));

/** @param {any} value @returns {value is Place} */
const isPlace = (value) => typeof value?.epoch === "string" && Number.isSafeInteger(value.offset) && value.offset >= 0;

/** @param {any} value @returns {value is Message} */
const isMessage = (value) =>
  typeof value?.id === "string" && typeof value.user_id === "string" && typeof value.content === "string" && isPlace(value);

/** @param {Place} place @returns {Place} */
const placeOf = ({ epoch, offset }) => ({ epoch, offset });

/**
 * What a line tells.
 * @typedef {object} LineHandlers
 * @property {() => void} opened
 * @property {(text: string) => void} received
 * @property {(code: number, error?: ChatError) => void} closed
 */

/** A connection over a WebSocket. */
class SocketLine {
  polls = false;
  /** @type {any} */
  #socket;

  /** @param {URL} base @param {string | null} token @param {Options} options @param {LineHandlers} handlers */
  constructor(base, token, options, handlers) {
    const url = new URL(base.href.replace(/^http/, "ws"));
    url.pathname += "/websocket";
    url.searchParams.set("vsn", "2.0.0");
    const protocols = ["phoenix"];
    if (token !== null) {
      const text = btoa(latin1(token)).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
      protocols.push(`base64url.bearer.phx.${text}`);
    }
    const socket = (this.#socket = new /** @type {SocketClass} */ (options.WebSocket)(`${url}`, protocols));
    socket.onopen = () => handlers.opened();
    socket.onmessage = (/** @type {{data: unknown}} */ { data }) => handlers.received(`${data}`);
    socket.onerror = () => {}; // a close follows
    socket.onclose = (/** @type {{code: number}} */ { code }) => handlers.closed(code);
  }

  /** @param {string} text */
  send(text) {
    if (this.#socket.readyState === 1) this.#socket.send(text);
  }

  close() {
    const socket = this.#socket;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close();
    // `ws` waits 30 s for an answer, and Node for `ws`.
    if (socket.terminate) /** @type {any} */ (setTimeout(() => socket.terminate?.(), 1_000)).unref?.();
  }
}

/** A connection by requests: each poll waits for messages, each post carries some. */
class PollingLine {
  polls = true;
  #url;
  #token;
  #fetch;
  #handlers;
  /** @type {string | null} */
  #session = null;
  /** @type {string[]} */
  #unposted = [];
  #posting = false;
  #ended = false;
  /** @type {Set<AbortController>} */
  #requests = new Set();

  /** @param {URL} base @param {string | null} token @param {Options} options @param {LineHandlers} handlers */
  constructor(base, token, options, handlers) {
    const url = new URL(base);
    url.pathname += "/longpoll";
    url.searchParams.set("vsn", "2.0.0");
    this.#url = `${url}`;
    this.#token = token;
    this.#fetch = /** @type {typeof fetch} */ (options.fetch);
    this.#handlers = handlers;
    this.#run();
  }

  /** @param {string} text */
  send(text) {
    this.#unposted.push(text);
    if (!this.#posting) this.#post();
  }

  close() {
    this.#ended = true;
    for (const request of this.#requests) request.abort();
  }

  async #run() {
    // The same token is answered with the same messages, a few times.
    for (let failures = 0; !this.#ended; ) {
      const answer = await this.#ask("GET");
      if (this.#ended) return;
      if (answer === null) {
        failures += 1;
        if (this.#session === null || failures > 2) return this.#end();
        continue;
      }
      failures = 0;
      const { status, token, messages } = answer;
      if (status === 410 && this.#session === null && typeof token === "string") {
        this.#session = token;
        this.#handlers.opened();
      } else if ((status === 200 || status === 204) && typeof token === "string") {
        this.#session = token;
        for (const each of Array.isArray(messages) ? messages : []) if (!this.#ended) this.#handlers.received(each);
      } else {
        return this.#end(status, answer.after);
      }
    }
  }

  async #post() {
    this.#posting = true;
    await null; // what is pushed in one go is one request
    while (this.#unposted.length > 0 && !this.#ended) {
      let count = 0;
      for (let length = 0; count < Math.min(this.#unposted.length, POST_MESSAGES); count += 1) {
        length += this.#unposted[count].length;
        if (count > 0 && length > POST_LENGTH) break;
      }
      const lines = this.#unposted.splice(0, count);
      const answer = await this.#ask("POST", lines.join("\n"));
      // They were taken or not: what had no reply goes again on the next connection.
      if (answer?.status !== 200) return this.#end(answer?.status, answer?.after);
    }
    this.#posting = false;
  }

  /**
   * @param {string} method @param {string} [body]
   * @returns {Promise<{status: number, token?: string, messages?: string[], after?: number} | null>} null without an answer
   */
  async #ask(method, body) {
    /** @type {Record<string, string>} */
    const headers = body === undefined ? {} : { "content-type": "application/x-ndjson" };
    if (this.#session !== null) headers["x-phoenix-longpoll-token"] = this.#session;
    else if (this.#token !== null) headers["x-phoenix-authtoken"] = latin1(this.#token);
    const request = new AbortController();
    this.#requests.add(request);
    const timer = setTimeout(() => request.abort(), POLL_MS);
    try {
      const fetch = this.#fetch;
      const response = await fetch(this.#url, { method, headers, body, cache: "no-store", signal: request.signal });
      const after = parseInt(response.headers.get("retry-after") ?? "");
      return { ...(await response.json()), after };
    } catch {
      return null;
    } finally {
      clearTimeout(timer);
      this.#requests.delete(request);
    }
  }

  /** @param {number} [status] @param {number} [after] seconds */
  #end(status, after) {
    if (this.#ended) return;
    this.close();
    const code = status === 403 ? "refused" : "lost";
    const reason = status === 403 ? "Refused: look at the token and the origin." : "No answer.";
    this.#handlers.closed(1006, new ChatError(code, reason, { retryable: true, retryAfter: after }));
  }
}

/**
 * What a connection tells a room.
 * @typedef {object} RoomHandlers
 * @property {Room} room
 * @property {() => boolean} active whether it is to be joined
 * @property {() => void} opened
 * @property {(joinRef: string | null, event: string, payload: any) => void} received
 * @property {(state: "joining" | "waiting", detail: StateDetail) => void} lost
 * @property {(error: ChatError) => void} stopped
 */

/** The one connection of a chat, which comes back by itself. */
class Connection {
  /** @type {Map<string, RoomHandlers>} by topic */
  rooms = new Map();
  closed = false;
  up = false;
  options;
  random;
  /** @type {URL} */
  #base;
  /** @type {SocketLine | PollingLine | null} */
  #line = null;
  #turn = 0;
  #refs = 0;
  /** @type {Map<string, {joinRef: string | null, done: (reply: Reply | null) => void, timer: any, looks: number}>} */
  #replies = new Map();
  /** @type {any} */
  #timer;
  /** @type {any} */
  #beats;
  #beating = false;
  #waiting = false;
  #attempt = 0;
  #upAt = 0;
  #expiredAt = -Infinity;
  #notBefore = 0;
  #failedSockets = 0;
  #proved = false;
  #heard = false;
  #pollUntil = 0;
  #pollMs = POLLING_MS;
  #polledLast = false;

  /** @param {string | URL} url @param {Options} options */
  constructor(url, options) {
    this.random = options.random ?? Math.random;
    let base;
    try {
      base = new URL(url, globalThis.location?.href);
    } catch (cause) {
      throw new TypeError(`${url} is no address; outside of a page give a whole one, as wss://host/socket`, { cause });
    }
    if (!/^(ws|http)s?:$/.test(base.protocol)) throw new TypeError(`${url} is neither of ws:, wss:, http: nor https:`);
    // A URL's protocol cannot be set from one to the other everywhere.
    this.#base = new URL(base.href.replace(/^ws/, "http"));
    this.#base.pathname = base.pathname.replace(/\/+$/, "");
    this.#base.hash = "";
    const { WebSocket = globalThis.WebSocket, fetch = globalThis.fetch } = options;
    this.options = { ...options, WebSocket, fetch };
    if (!WebSocket && !fetch) throw new TypeError("there is neither a WebSocket nor a fetch; pass one");
  }

  /** The query may hold secrets. */
  get name() {
    return this.#base.host + this.#base.pathname;
  }

  /** Connects, unless that is done or under way. */
  start() {
    if (this.#line !== null || this.#waiting || this.#timer !== undefined) return;
    globalThis.addEventListener?.("online", this.hurry);
    globalThis.addEventListener?.("pageshow", this.hurry);
    globalThis.document?.addEventListener("visibilitychange", this.hurry);
    this.#connect();
  }

  /** Ends; with an error for good, until a room is joined anew. @param {ChatError} [error] */
  stop(error) {
    globalThis.removeEventListener?.("online", this.hurry);
    globalThis.removeEventListener?.("pageshow", this.hurry);
    globalThis.document?.removeEventListener("visibilitychange", this.hurry);
    this.#drop();
    this.#attempt = 0;
    if (error) for (const room of [...this.rooms.values()]) room.stopped(error);
  }

  ref() {
    this.#refs += 1;
    return `${this.#refs}`;
  }

  /**
   * Pushes, and calls `done` with the reply, or with null where the connection ended before it.
   * @param {string | null} joinRef @param {string} topic @param {string} event @param {unknown} payload
   * @param {(reply: Reply | null) => void} done @param {string} [ref]
   */
  request(joinRef, topic, event, payload, done, ref = this.ref()) {
    if (!this.up) return done(null);
    const look = () => {
      if ((waits.looks += 1) >= LOOKS) return this.#lost(new ChatError("timeout", "The server did not answer."));
      this.#beat();
      waits.timer = setTimeout(look, REPLY_MS);
    };
    const waits = { joinRef, done, looks: 0, timer: setTimeout(look, REPLY_MS) };
    this.#replies.set(ref, waits);
    this.#line?.send(JSON.stringify([joinRef, ref, topic, event, payload]));
  }

  /** Waits no longer for replies to a membership that is over. @param {string} joinRef */
  forget(joinRef) {
    this.#settle((each) => each.joinRef === joinRef);
  }

  /** A room has been joined. */
  proved() {
    this.#upAt ||= performance.now();
  }

  hurry = () => {
    if (globalThis.document?.hidden) return;
    if (this.up) this.#beat();
    else if (this.#waiting) {
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.#connect(), Math.max(0, this.#notBefore - Date.now()));
    }
  };

  async #connect() {
    const turn = (this.#turn += 1);
    this.#waiting = false;
    clearTimeout(this.#timer);
    for (const room of [...this.rooms.values()]) room.lost("joining", {});
    if (turn !== this.#turn) return; // a listener has ended it
    this.#timer = setTimeout(() => this.#lost(new ChatError("timeout", "The token did not come.")), OPEN_MS);
    const base = new URL(this.#base);
    let token;
    try {
      const { params } = this.options;
      const [asked, more] = await Promise.all([this.options.token?.(), typeof params === "function" ? params() : params]);
      token = asked ?? null;
      for (const [name, value] of Object.entries(more ?? {})) base.searchParams.set(name, value);
    } catch (cause) {
      if (turn === this.#turn) this.#lost(new ChatError("no_token", `The token could not be had: ${cause}`, { cause }));
      return;
    }
    if (turn !== this.#turn) return;
    const polls = this.#shouldPoll();
    this.#polledLast = polls;
    this.#heard = false;
    const limit = polls || this.#proved || !this.options.fetch ? OPEN_MS : UNPROVED_MS;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#lost(new ChatError("timeout", "The connection did not open.")), limit);
    /** @param {(...args: any[]) => void} act @returns {(...args: any[]) => void} */
    const current =
      (act) =>
      (...args) => {
        if (turn === this.#turn) act(...args);
      };
    const Line = polls ? PollingLine : SocketLine;
    try {
      this.#line = new Line(base, token, this.options, {
        opened: current(() => this.#opened()),
        received: current((text) => this.#received(text)),
        closed: current((code, error) => this.#closed(code, error)),
      });
    } catch (cause) {
      this.#lost(new ChatError("lost", `The connection could not be made: ${cause}`, { cause }));
    }
  }

  /** Whether to poll: where that works, or once WebSockets have failed; then in turns. */
  #shouldPoll() {
    if (!this.options.WebSocket || !this.options.fetch) return !this.options.WebSocket;
    if (performance.now() < this.#pollUntil) return true;
    return !this.#polledLast && this.#failedSockets > (this.#proved && this.#pollMs === POLLING_MS ? 2 : 0);
  }

  #opened() {
    clearTimeout(this.#timer);
    this.up = true;
    this.#upAt = 0;
    if (this.#line?.polls) {
      const now = performance.now();
      if (now >= this.#pollUntil) {
        this.#pollUntil = now + this.#pollMs;
        this.#pollMs = Math.min(this.#pollMs * 2, MOST_POLLING_MS);
      }
      const retry = () => {
        this.#pollUntil = 0;
        this.#lost(new ChatError("upgrade", "A WebSocket is tried again."), true);
      };
      if (this.options.WebSocket) this.#beats = setTimeout(retry, this.#pollUntil - now);
    } else this.#beats = setInterval(() => this.#beat(), BEAT_MS);
    for (const room of [...this.rooms.values()]) room.opened();
  }

  /** @param {string} text */
  #received(text) {
    let frame;
    try {
      frame = JSON.parse(text);
    } catch {
      return;
    }
    if (!Array.isArray(frame)) return;
    if (!this.#line?.polls) [this.#proved, this.#failedSockets, this.#pollMs] = [true, 0, POLLING_MS];
    this.#heard = true;
    const [joinRef, ref, topic, event, payload] = frame;
    const waits = event === "phx_reply" ? this.#replies.get(ref) : undefined;
    try {
      if (waits === undefined) return this.rooms.get(topic)?.received(joinRef, event, payload);
      clearTimeout(waits.timer);
      this.#replies.delete(ref);
      waits.done({ status: payload?.status, response: payload?.response ?? {} });
    } catch (error) {
      report(error); // what came is not what it says it is
    }
  }

  /** Asks whether anybody is there; without an answer the connection is dead. A poll that is not answered is. */
  #beat() {
    if (this.#beating || this.#line?.polls) return;
    this.#beating = true;
    const turn = this.#turn;
    const dead = setTimeout(() => {
      if (turn === this.#turn) this.#lost(new ChatError("timeout", "The server is not heard any more."));
    }, REPLY_MS);
    this.request(null, "phoenix", "heartbeat", {}, () => {
      clearTimeout(dead);
      this.#beating = false;
    });
  }

  /** @param {number} code @param {ChatError} [error] */
  #closed(code, error) {
    if (code === 4003) {
      this.stop(new ChatError("revoked", "The user was shut out; join again only where the person asks for it."));
    } else if (code === 4001) {
      const again = performance.now() - this.#expiredAt < REPLY_MS;
      this.#expiredAt = performance.now();
      this.#lost(new ChatError("expired", "The token has expired."), !again);
    } else {
      this.#lost(error ?? new ChatError("lost", `The connection was closed with ${code}.`, { retryable: true }));
    }
  }

  /** @param {ChatError} error @param {boolean} [atOnce] */
  #lost(error, atOnce = false) {
    if (!this.#heard && this.#line !== null && !this.#line.polls) {
      this.#failedSockets += 1;
      // The network may let no WebSocket through: whether it lets requests through is found out at once.
      atOnce ||= !!this.options.fetch && (this.#pollMs > POLLING_MS || (!this.#proved && this.#failedSockets === 1));
    } else if (this.#line?.polls && !this.#heard) {
      this.#pollUntil = 0;
      this.#pollMs = POLLING_MS;
    }
    if (this.#upAt && performance.now() - this.#upAt > STABLE_MS) this.#attempt = 0;
    this.#drop();
    const hint = (error.retryAfter ?? 0) * 1000;
    const delay = atOnce ? 0 : hint + pause(this.random, this.#attempt);
    if (!atOnce) this.#attempt += 1;
    const at = Date.now() + delay;
    this.#notBefore = Date.now() + hint;
    this.#waiting = true;
    this.#timer = setTimeout(() => this.#connect(), delay);
    for (const room of [...this.rooms.values()]) room.lost("waiting", { error, at });
  }

  #drop() {
    const line = this.#line;
    this.#turn += 1;
    this.#line = null;
    this.up = this.#waiting = this.#beating = false;
    this.#upAt = 0;
    clearTimeout(this.#timer);
    this.#timer = undefined;
    clearInterval(this.#beats);
    line?.close();
    this.#settle(() => true);
  }

  /** @param {(waits: {joinRef: string | null}) => boolean} which */
  #settle(which) {
    for (const [ref, waits] of [...this.#replies]) {
      if (!which(waits)) continue;
      clearTimeout(waits.timer);
      this.#replies.delete(ref);
      waits.done(null);
    }
  }
}

/**
 * One send. `sent` is when the first attempt was made of which nobody knows what became of it, `ticks` the same by a clock
 * that nobody sets.
 * @typedef {Pending & {
 *   bytes: number, number: number, sent: number | null, ticks: number | null, epoch: string | null, twin: Message | null,
 *   restored: boolean, resolve: (sent: Sent) => void, reject: (error: ChatError) => void
 * }} Entry
 */

/** What waits to be sent, over all rooms: its bounds, and the storage that keeps it. */
class Outbox {
  ageMs;
  #messages;
  #bytes;
  #keyMs;
  #storage;
  #prefix;
  #count = 0;
  #size = 0;
  #number = 0;
  /** @type {Entry[]} what was restored, and no room has taken yet */
  #restored = [];

  /** @param {Options} options @param {string} address */
  constructor({ storage, name = "", outbox = {} }, address) {
    const { messages = 100, bytes = 262_144, ageMs = 3_600_000, keyMs = 240_000 } = outbox;
    for (const [option, value] of Object.entries({ messages, bytes, ageMs, keyMs }))
      if (!(value > 0)) throw new TypeError(`outbox.${option} is ${value}; it is a number above 0`);
    this.ageMs = ageMs;
    this.#messages = messages;
    this.#bytes = bytes;
    this.#keyMs = keyMs;
    this.#storage = storage;
    this.#prefix = `chatx:${address}:${name}:`;
    this.#restore();
  }

  /**
   * Takes a send in.
   * @param {string} roomId @param {string} content @param {Data | undefined} data
   * @param {(sent: Sent) => void} resolve @param {(error: ChatError) => void} reject
   * @returns {Entry}
   */
  add(roomId, content, data, resolve, reject) {
    if (typeof content !== "string") throw new ChatError("invalid_message", `content is ${typeof content}, not a text.`);
    let text;
    try {
      text = JSON.stringify({ content, data });
    } catch (cause) {
      throw new ChatError("invalid_message", `data is no JSON: ${cause}`, { cause });
    }
    const bytes = utf8(text).length;
    if (bytes > FRAME_BYTES - 1024)
      throw new ChatError("message_too_large", `The message has ${bytes} bytes, over ${FRAME_BYTES - 1024}.`);
    const full = this.#count >= this.#messages ? `${this.#messages} messages` : `${this.#bytes} bytes`;
    if (this.#count >= this.#messages || this.#size + bytes > this.#bytes)
      throw new ChatError("outbox_full", `${full} wait already, which is the bound. Send it later.`, { retryable: true });
    this.#number += 1;
    /** @type {Entry} */
    const entry = {
      ...JSON.parse(text), // the caller may change its data
      ...{ key: newKey(), room_id: roomId, created: Date.now(), bytes, number: this.#number },
      ...{ sent: null, ticks: null, epoch: null, twin: null, restored: false, resolve, reject },
    };
    this.#save(entry);
    this.#count += 1;
    this.#size += bytes;
    return entry;
  }

  /** An attempt is made, unless its key may be forgotten; returns whether none before is open. @param {Entry} entry @param {string} epoch */
  attempt(entry, epoch) {
    const now = { sent: Date.now(), ticks: performance.now(), epoch };
    if (entry.sent === null) {
      this.#save({ ...entry, ...now });
      Object.assign(entry, now);
      return true;
    }
    const age = now.sent - entry.sent;
    // A clock that was set back says nothing; one that stands still while the machine sleeps, too little.
    if (age < -1000 || Math.max(age, now.ticks - (entry.ticks ?? now.ticks)) > this.#keyMs) throw UNKNOWN();
    return false;
  }

  /** It surely was not published. @param {Entry} entry */
  cleared(entry) {
    entry.sent = entry.ticks = entry.epoch = entry.twin = null;
    try {
      this.#save(entry);
    } catch (error) {
      report(error);
    }
  }

  /** @param {Entry} entry */
  remove(entry) {
    this.#count -= 1;
    this.#size -= entry.bytes;
    try {
      this.#storage?.removeItem(this.#prefix + entry.key);
    } catch (error) {
      report(error); // it is told once more, by whoever reads it
    }
  }

  /** Whether another page has brought it to its end. @param {Entry} entry */
  settledElsewhere(entry) {
    if (!this.#storage) return false;
    const kept = this.#read(this.#prefix + entry.key);
    if (kept === null) return true;
    if (kept.sent !== null && (entry.sent === null || kept.sent < entry.sent)) [entry.sent, entry.epoch] = [kept.sent, kept.epoch];
    return false;
  }

  /** Hands the restored sends of a room to it. @param {string} roomId @returns {Entry[]} */
  take(roomId) {
    const taken = this.#restored.filter((entry) => entry.room_id === roomId);
    this.#restored = this.#restored.filter((entry) => entry.room_id !== roomId);
    return taken;
  }

  /** The rooms of what was restored and not taken. @returns {string[]} */
  get rooms() {
    return [...new Set(this.#restored.map(({ room_id }) => room_id))];
  }

  /** @param {Entry} entry */
  #save({ key, room_id, content, data, created, number, sent, epoch, bytes }) {
    try {
      const kept = JSON.stringify({ room_id, content, data, created, number, sent, epoch, bytes });
      this.#storage?.setItem(this.#prefix + key, kept);
    } catch (cause) {
      throw new ChatError("outbox_full", `The storage did not take the message: ${cause}`, { retryable: true, cause });
    }
  }

  /** @param {string} name @returns {any} */
  #read(name) {
    try {
      const kept = JSON.parse(this.#storage?.getItem(name) ?? "null");
      const { room_id, content, created, bytes, number } = kept;
      const sound = typeof room_id === "string" && typeof content === "string" && created > 0 && number > 0;
      return sound && bytes > 0 && bytes < FRAME_BYTES ? kept : null;
    } catch {
      return null; // it is not ours
    }
  }

  #restore() {
    const storage = this.#storage;
    /** @type {string[]} */
    const names = [];
    for (let index = 0; storage && index < storage.length; index += 1) {
      const name = storage.key(index);
      if (name?.slice(0, -32) === this.#prefix) names.push(name); // another name may begin with this one
    }
    for (const name of names) {
      const kept = this.#read(name);
      if (kept === null) continue;
      const nothing = () => {};
      const key = name.slice(this.#prefix.length);
      const entry = { ...kept, key, ticks: null, twin: null, restored: true, resolve: nothing, reject: nothing };
      this.#restored.push(entry);
      this.#count += 1;
      this.#size += entry.bytes;
      this.#number = Math.max(this.#number, entry.number);
    }
    this.#restored.sort((a, b) => a.created - b.created || a.number - b.number);
  }
}

/** A room, as this client sees it. `chat.room` makes it. */
export class Room {
  /** The room's id. @type {string} */
  id;
  #connection;
  #outbox;
  #topic;
  #wanted;
  /** @type {Map<string, Set<Function>>} */
  #listeners = new Map();
  /** @type {State} */
  #state = "idle";
  /** @type {Members} */
  #members = new Map();
  /** @type {Place | null} the newest message told, or where live ones begin */
  #cursor;
  /** @type {Place | null} */
  #oldest = null;
  /** @type {Map<string, number>} the newest place of each stream */
  #reached = new Map();
  /** @type {string | null} */
  #joinRef = null;
  #entered = false;
  /** @type {Place} */
  #head = { epoch: "", offset: 0 };
  /** @type {Loading | null} */
  #loading = null;
  /** @type {Place | null} where the server has skipped messages */
  #hole = null;
  #failures = 0;
  /** @type {any} */
  #timer;
  #upAt = Infinity;
  /** @type {{promise: Promise<void>, resolve: () => void, reject: (error: ChatError) => void} | null} while it is to be joined */
  #joined = null;
  /** @type {Set<{begin: () => void, reject: (error: ChatError) => void}>} */
  #reads = new Set();

  /** @type {Entry[]} */
  #queue;
  #flying = false;
  #heldUntil = 0;
  #holds = 0;
  /** @type {any} */
  #drainTimer;
  /** @type {any} */
  #ageTimer;
  /** @type {string | null} this user's id, once a message of ours has come back */
  #user = null;
  /** @type {Map<string, string>} the users of the newest messages by id, and ours that were acknowledged */
  #recent = new Map();
  /** @type {Set<string>} */
  #ours = new Set();

  /**
   * @param {string} id @param {Connection} connection @param {Outbox} outbox
   * @param {{history: number, after: Place | null}} options
   */
  constructor(id, connection, outbox, { history, after }) {
    this.id = id;
    this.#connection = connection;
    this.#outbox = outbox;
    this.#topic = `room:${id}`;
    this.#wanted = history;
    this.#cursor = after;
    this.#queue = outbox.take(id);
    this.#watchAge();
    this.#register();
  }

  get state() {
    return this.#state;
  }

  get members() {
    return new Map(this.#members);
  }

  /** The place to go on from, in another page or process: its `after`. */
  get place() {
    return this.#cursor && { ...this.#cursor };
  }

  /** The sends that wait, oldest first. @returns {Pending[]} */
  get pending() {
    return this.#queue.map(pendingOf);
  }

  /**
   * Calls a function at each event, and returns a function that ends this. One that throws ends nothing else.
   * @template {keyof RoomEvents} E
   * @param {E} event @param {RoomEvents[E]} listener
   */
  on(event, listener) {
    if (!EVENTS.has(event)) throw new TypeError(`a room has no event ${event}; it has ${[...EVENTS].join(", ")}`);
    if (typeof listener !== "function") throw new TypeError(`the listener of ${event} is no function`);
    const listeners = this.#listeners.get(event) ?? new Set();
    this.#listeners.set(event, listeners.add(listener));
    return () => void listeners.delete(listener);
  }

  /**
   * Joins, and stays joined until `leave`. Resolves once the history was told; rejects where the room may not be joined;
   * waits while the server is away.
   * @returns {Promise<void>}
   */
  join() {
    if (this.#connection.closed) return Promise.reject(closed());
    if ((this.#connection.rooms.get(this.#topic)?.room ?? this) !== this)
      return Promise.reject(new TypeError(`chat.room(${this.id}) is another object by now`));
    /** @type {any} */
    const joined = this.#joined ?? {};
    if (this.#joined === null) {
      this.#register();
      joined.promise = new Promise((resolve, reject) => Object.assign(joined, { resolve, reject }));
      this.#joined = joined;
      this.#tell("joining");
      if (this.#connection.up) this.#enter();
      else this.#connection.start();
    }
    return joined.promise;
  }

  /** Leaves. What waits is rejected as `left`, or as `unknown`. */
  leave() {
    if (this.#connection.rooms.get(this.#topic)?.room !== this) return;
    const ref = this.#joinRef;
    this.#connection.rooms.delete(this.#topic);
    this.#end("idle", new ChatError("left", "The room was left."));
    if (ref !== null) this.#connection.request(ref, this.#topic, "phx_leave", {}, () => {});
    if (![...this.#connection.rooms.values()].some(({ active }) => active())) this.#connection.stop();
  }

  /**
   * Sends a message, and resolves when the server has it; waits while the room is not joined. Rejects with a `ChatError`:
   * the server's, `outbox_full` at once, `expired` (surely not sent), `unknown` (nobody knows).
   * @param {string} content @param {{data?: Data}} [more]
   * @returns {Promise<Sent>}
   */
  send(content, { data } = {}) {
    return new Promise((resolve, reject) => {
      this.#check();
      this.#queue.push(this.#outbox.add(this.id, content, data, resolve, reject));
      if (this.#queue.length === 1) this.#watchAge();
      this.#drain();
    });
  }

  /**
   * Returns messages before a place, oldest first; without one, before the oldest that this room has told or returned.
   * @param {{before?: Place | null, after?: Place | null, limit?: number}} [which] `limit` is 1 to 200
   * @returns {Promise<Message[] & {more: boolean}>} `more`: there are others
   */
  history({ before, after, limit = 50 } = {}) {
    return new Promise((resolve, reject) => {
      this.#check();
      if (this.#reads.size >= READS) throw new ChatError("busy", `${READS} calls of history wait; wait for one of them.`);
      const own = !before && !after;
      const begin = () => {
        if (!this.#entered || (own && this.#oldest === null)) return; // with the next join
        const from = own ? this.#oldest : before;
        // Both at once are refused by the server.
        const payload = { limit, before: from ? placeOf(from) : undefined, after: after ? placeOf(after) : undefined };
        this.#connection.request(this.#joinRef, this.#topic, "history", payload, (reply) => {
          if (reply === null) return;
          this.#reads.delete(read);
          if (reply.status !== "ok") return reject(refusal(reply.response));
          const messages = messagesOf(reply.response);
          if (own && messages.length > 0) this.#oldest = placeOf(messages[0]);
          resolve(Object.assign(messages, { more: reply.response.more === true }));
        });
      };
      const read = { begin, reject };
      this.#reads.add(read);
      begin();
    });
  }

  #check() {
    if (this.#connection.closed) throw closed();
    const state = this.#connection.rooms.get(this.#topic)?.room === this ? this.#state : "left";
    if (["left", "stopped", "refused"].includes(state)) throw new ChatError(state, `The room is ${state}; join it first.`);
  }

  #register() {
    this.#connection.rooms.set(this.#topic, {
      room: this,
      active: () => this.#joined !== null,
      opened: () => void (this.#joined !== null && this.#enter()),
      received: (joinRef, event, payload) => this.#received(joinRef, event, payload),
      lost: (state, detail) => {
        if (this.#joined === null) return;
        this.#down();
        this.#tell(state, detail);
      },
      stopped: (error) => this.#end("stopped", error),
    });
  }

  #enter() {
    if (this.#joinRef !== null) this.#connection.forget(this.#joinRef);
    this.#down();
    const ref = (this.#joinRef = this.#connection.ref());
    this.#tell("joining");
    if (this.#joinRef !== ref) return; // a listener has left
    const from = this.#cursor;
    const entered = (/** @type {Reply | null} */ reply) => {
      if (reply === null || this.#joinRef !== ref) return;
      if (reply.status !== "ok") return this.#refused(refusal(reply.response));
      const { recovered, reason } = reply.response;
      this.#entered = true;
      this.#head = placeOf(reply.response);
      if (from !== null && recovered === true) {
        this.#oldest ??= { epoch: from.epoch, offset: from.offset + 1 };
        this.#up();
      } else this.#begin(ref, from, `${reason ?? "epoch_changed"}`);
    };
    this.#connection.request(ref, this.#topic, "phx_join", from ?? {}, entered, ref);
  }

  /** The membership is over, for now. */
  #down() {
    clearTimeout(this.#timer);
    clearTimeout(this.#drainTimer);
    if (performance.now() - this.#upAt > STABLE_MS) this.#failures = 0;
    this.#upAt = Infinity;
    this.#joinRef = this.#loading = null;
    this.#entered = this.#flying = false;
  }

  /** Joins again after a pause. @param {ChatError} error */
  #again(error) {
    if (this.#joinRef !== null) this.#connection.forget(this.#joinRef);
    this.#down();
    const delay = (error.retryAfter ?? 0) * 1000 + pause(this.#connection.random, this.#failures);
    this.#failures += 1;
    this.#timer = setTimeout(() => void (this.#connection.up && this.#enter()), delay);
    this.#tell("waiting", { error, at: Date.now() + delay });
  }

  /** @param {ChatError} error of a join */
  #refused(error) {
    if (error.retryable || GONE.has(error.code)) this.#again(error);
    else this.#end("refused", error);
  }

  /** Ends the joining, and whatever waits for it. @param {State} state @param {ChatError} error */
  #end(state, error) {
    const joined = this.#joined;
    this.#down();
    this.#joined = null;
    this.#members = new Map();
    if (state === "idle") {
      this.#cursor = this.#oldest = null;
      this.#reached.clear();
    }
    this.#state = state;
    joined?.reject(error);
    for (const { reject } of this.#reads) reject(error);
    this.#reads.clear();
    for (const entry of [...this.#queue]) this.#giveUp(entry, error);
    this.#emit("state", state, { error });
  }

  /** Messages begin behind the head; what was before is loaded, and told first. @param {string} ref @param {Place | null} from @param {string} reason */
  #begin(ref, from, reason) {
    this.#loading = { from, reason, page: [], live: [], cut: false };
    if (this.#wanted === 0) this.#loaded();
    else this.#load(ref, { epoch: this.#head.epoch, offset: this.#head.offset + 1 }, 0);
  }

  /** @param {string} ref @param {Place} before @param {number} failures */
  #load(ref, before, failures) {
    const loading = this.#loading;
    if (loading === null) return;
    const limit = Math.min(PAGE, this.#wanted - loading.page.length);
    this.#connection.request(ref, this.#topic, "history", { limit, before }, (reply) => {
      if (reply === null || this.#loading !== loading) return;
      if (reply.status !== "ok") {
        const error = refusal(reply.response);
        if (!error.retryable) return this.#loaded(error);
        const delay = error.retryAfter === null ? pause(this.#connection.random, failures) : error.retryAfter * 1000;
        this.#timer = setTimeout(() => this.#load(ref, before, failures + 1), delay);
        return this.#tell("joining", { error, at: Date.now() + delay });
      }
      const messages = messagesOf(reply.response);
      loading.page.unshift(...messages);
      const more = reply.response.more === true && messages.length > 0 && loading.page.length < this.#wanted;
      if (more) this.#load(ref, placeOf(messages[0]), 0);
      else this.#loaded();
    });
  }

  /** @param {ChatError} [error] */
  #loaded(error) {
    const { from, reason, page, live, cut } = /** @type {Loading} */ (this.#loading);
    const [ref, head] = [this.#joinRef, this.#head];
    this.#loading = null;
    const unseen = page.filter(
      ({ epoch, offset }) => (from === null || epoch === head.epoch) && offset > (this.#reached.get(epoch) ?? 0),
    );
    const start = unseen.length > 0 ? { epoch: unseen[0].epoch, offset: unseen[0].offset - 1 } : head;
    this.#oldest ??= { epoch: start.epoch, offset: start.offset + 1 };
    if (from !== null || error) this.#gap(error?.code ?? reason, from, start);
    else this.#cursor = start;
    for (const message of unseen) {
      if (this.#joinRef !== ref) return;
      const cursor = /** @type {Place} */ (this.#cursor);
      if (message.epoch === cursor.epoch && message.offset <= cursor.offset) continue;
      const before = { epoch: message.epoch, offset: message.offset - 1 };
      if (message.epoch === cursor.epoch && before.offset > cursor.offset) this.#gap("missing", cursor, before);
      this.#deliver(message);
    }
    if (this.#joinRef !== ref) return;
    const cursor = /** @type {Place} */ (this.#cursor);
    if (cursor.epoch === head.epoch && cursor.offset < head.offset) this.#gap("missing", cursor, head);
    this.#cursor = head;
    for (const message of live) if (this.#joinRef === ref) this.#live(message);
    if (this.#joinRef !== ref) return;
    if (cut) this.#enter();
    else this.#up();
  }

  #up() {
    const ref = this.#joinRef;
    this.#upAt = performance.now();
    this.#connection.proved();
    this.#joined?.resolve();
    this.#tell("joined");
    for (const { begin } of [...this.#reads]) if (this.#joinRef === ref) begin();
    this.#drain();
  }

  /** @param {string | null} joinRef @param {string} event @param {any} payload */
  #received(joinRef, event, payload) {
    // What comes between a join and its reply is of the membership before, and comes again.
    if (!this.#entered || (joinRef !== null && joinRef !== this.#joinRef)) return;
    if (event === "new_message" && isMessage(payload)) {
      const loading = this.#loading;
      if (loading === null) this.#live(payload);
      else if (loading.live.length < DEFERRED && !loading.cut) loading.live.push(payload);
      else loading.cut = true; // the rest is asked for again, as what was missed
    } else if (event === "presence_state") {
      this.#members = metasOf(payload);
      this.#emit("presence", this.members);
    } else if (event === "presence_diff") {
      for (const [user, metas] of metasOf(payload?.leaves)) {
        const gone = new Set(metas.map(({ phx_ref }) => phx_ref));
        const left = this.#members.get(user)?.filter(({ phx_ref }) => !gone.has(phx_ref));
        if (left?.length) this.#members.set(user, left);
        else this.#members.delete(user);
      }
      for (const [user, metas] of metasOf(payload?.joins)) this.#members.set(user, [...(this.#members.get(user) ?? []), ...metas]);
      this.#emit("presence", this.members);
    } else if (event === "phx_error" || event === "phx_close") {
      this.#again(new ChatError("room_unavailable", "The server has ended the membership.", { retryable: true }));
    }
  }

  /** @param {Message} message */
  #live(message) {
    const cursor = /** @type {Place} */ (this.#cursor);
    const { epoch, offset } = message;
    if (epoch === cursor.epoch && offset <= cursor.offset) return;
    if (epoch !== cursor.epoch || offset > cursor.offset + 1) {
      // The server says what is missing when it is asked from here; if it skips the same again, that is all there is.
      if (this.#hole !== cursor) {
        this.#hole = cursor;
        return this.#enter();
      }
      this.#gap(epoch === cursor.epoch ? "missing" : "epoch_changed", cursor, { epoch, offset: offset - 1 });
    }
    this.#deliver(message);
    if (this.#queue[0]?.sent !== null) this.#drain();
  }

  /** @param {Message} message */
  #deliver(message) {
    const { id, user_id, epoch, offset } = message;
    this.#cursor = { epoch, offset };
    this.#reached.delete(epoch);
    remember(this.#reached.set(epoch, offset), EPOCHS);
    remember(this.#recent.set(id, user_id), RECENT);
    if (this.#ours.has(id)) this.#user = user_id;
    const entry = this.#queue[0];
    if (entry !== undefined && entry.sent !== null && entry.twin === null && user_id === this.#user && !this.#ours.has(id)) {
      const same = entry.content === message.content && JSON.stringify(entry.data) === JSON.stringify(message.data);
      if (same) entry.twin = message;
    }
    this.#emit("message", message);
  }

  /** Goes on behind a place, and says what is missing. @param {string} reason @param {Place | null} after @param {Place} place */
  #gap(reason, after, place) {
    this.#cursor = placeOf(place);
    const known = after !== null && after.epoch === place.epoch && after.offset <= place.offset;
    const missed = known ? place.offset - after.offset : null;
    if (missed !== 0) this.#emit("gap", { room_id: this.id, reason, missed, after, ...placeOf(place) });
  }

  /** Sends the oldest of what waits, unless one is under way. @returns {void} */
  #drain() {
    clearTimeout(this.#drainTimer);
    const [entry] = this.#queue;
    if (entry === undefined || !this.#entered || this.#flying) return;
    const wait = this.#heldUntil - performance.now();
    if (wait > 0) {
      this.#drainTimer = setTimeout(() => this.#drain(), wait);
      return;
    }
    const [ref, head, cursor] = [this.#joinRef, this.#head, this.#cursor];
    if (this.#outbox.settledElsewhere(entry)) {
      // Whoever has done it has told it, but not to who called `send` here.
      if (entry.restored) this.#forget(entry);
      else this.#failed(entry, UNKNOWN());
      return this.#drain();
    }
    const behind = this.#loading !== null || cursor === null || (cursor.epoch === head.epoch && cursor.offset < head.offset);
    if (entry.sent !== null && behind) return; // what was missed may have it
    let first;
    try {
      first = this.#outbox.attempt(entry, head.epoch);
    } catch (error) {
      this.#giveUp(entry, /** @type {ChatError} */ (error));
      return this.#drain();
    }
    this.#flying = true;
    const { content, data, key } = entry;
    // Behind an open one it goes in that one's epoch only: another may not know the key.
    const epoch = first ? undefined : entry.epoch;
    this.#connection.request(ref, this.#topic, "new_message", { content, data, key, epoch }, (reply) => {
      if (reply === null || this.#joinRef !== ref) return; // it goes again with the next join
      this.#flying = false;
      if (this.#queue[0] === entry) this.#answered(entry, reply, first);
      this.#drain();
    });
  }

  /** @param {Entry} entry @param {Reply} reply @param {boolean} first */
  #answered(entry, { status, response }, first) {
    if (status === "ok") return this.#acknowledged(entry, response);
    const error = refusal(response);
    // A refusal may be made ahead of any look at the key: it says nothing of earlier attempts. This one says nothing at all.
    if (first && error.code !== "room_unavailable") this.#outbox.cleared(entry);
    if (GONE.has(error.code)) return this.#again(error);
    if (error.code === "epoch_changed") return this.#giveUp(entry, error);
    if (!error.retryable) return this.#failed(entry, error);
    const own = 500 + pause(this.#connection.random, this.#holds);
    this.#holds += 1;
    this.#heldUntil = performance.now() + (error.retryAfter === null ? own : error.retryAfter * 1000);
    this.#emit("held", error, pendingOf(entry));
  }

  /** @param {Entry} entry @param {any} response */
  #acknowledged(entry, { id, epoch, offset, inserted_at, duplicate, stored }) {
    this.#holds = 0;
    this.#forget(entry);
    remember(this.#ours.add(id), RECENT);
    this.#user = this.#recent.get(id) ?? this.#user;
    const { created, ...own } = pendingOf(entry);
    /** @type {Sent} */
    const sent = { ...own, id, inserted_at, epoch, offset };
    if (duplicate) sent.duplicate = true;
    if (stored) sent.stored = true;
    if (entry.restored) this.#emit("sent", sent);
    else entry.resolve(sent);
  }

  /** @param {Entry} entry @param {ChatError} error */
  #giveUp(entry, error) {
    if (entry.twin !== null) this.#acknowledged(entry, entry.twin);
    else this.#failed(entry, entry.sent === null ? error : UNKNOWN());
  }

  /** @param {Entry} entry @param {ChatError} error */
  #failed(entry, error) {
    this.#forget(entry);
    if (!entry.restored) entry.reject(error);
    else if (this.#listeners.get("failed")?.size) this.#emit("failed", error, pendingOf(entry));
    else report(error);
  }

  /** @param {Entry} entry */
  #forget(entry) {
    this.#queue.splice(this.#queue.indexOf(entry), 1);
    this.#outbox.remove(entry);
    this.#watchAge();
  }

  #watchAge() {
    clearTimeout(this.#ageTimer);
    const [entry] = this.#queue;
    if (entry === undefined) return;
    const left = Math.max(0, Math.min(entry.created + this.#outbox.ageMs - Date.now(), this.#outbox.ageMs));
    this.#ageTimer = setTimeout(
      () => {
        if (left > LONGEST_TIMER_MS) this.#watchAge();
        else this.#giveUp(entry, new ChatError("expired", "It waited for too long, and was not sent.", { retryable: true }));
      },
      Math.min(left, LONGEST_TIMER_MS),
    );
  }

  /** @param {State} state @param {StateDetail} [detail] */
  #tell(state, detail = {}) {
    if (state === this.#state && detail.error === undefined) return;
    this.#state = state;
    this.#emit("state", state, detail);
  }

  /** @template {keyof RoomEvents} E @param {E} event @param {Parameters<RoomEvents[E]>} values */
  #emit(event, ...values) {
    for (const listener of [...(this.#listeners.get(event) ?? [])]) {
      try {
        listener(...values);
      } catch (error) {
        report(error);
      }
    }
  }
}

const EVENTS = new Set(["message", "gap", "presence", "state", "held", "sent", "failed"]);
/** Not retryable as they are, but fine after the next join. */
const GONE = new Set(["unmatched_topic", "closed"]);
const LONGEST_TIMER_MS = 2 ** 31 - 1;

const closed = () => new ChatError("closed", "The chat was closed; make a new one.");
const UNKNOWN = () =>
  new ChatError("unknown", "Nobody knows whether the message was sent: its answer was lost, and it is too late to ask.");

/** @param {Entry} entry @returns {Pending} */
function pendingOf({ key, room_id, content, data, created }) {
  return data === undefined ? { key, room_id, content, created } : { key, room_id, content, data, created };
}

/** @param {any} page @returns {Message[]} */
const messagesOf = ({ messages }) => (Array.isArray(messages) ? messages.filter(isMessage) : []);

/** @param {any} users @returns {Members} */
function metasOf(users) {
  /** @type {Members} */
  const members = new Map();
  for (const [user, each] of Object.entries(users ?? {})) if (Array.isArray(each?.metas)) members.set(user, each.metas.filter(Boolean));
  return members;
}

/** Keeps the newest. @template T @param {Map<T, unknown> | Set<T>} known @param {number} most */
function remember(known, most) {
  for (const each of known.keys()) {
    if (known.size <= most) return;
    known.delete(each);
  }
}

/** One user's connection to a chat, and the rooms in it. */
export class Chat {
  #connection;
  #outbox;

  /**
   * @param {string | URL} url where the socket is mounted, such as `/socket`; outside of a page `wss://host/socket`
   * @param {Options} [options]
   */
  constructor(url, options = {}) {
    this.#connection = new Connection(url, options);
    this.#outbox = new Outbox(options, this.#connection.name);
  }

  /**
   * Returns a room, the same for the same id. To hear all of it, listen before `join`.
   * @param {string} id
   * @param {{history?: number, after?: Place | null}} [options] how many messages to tell that were there before, up to
   *   1,000; or the place to resume from
   */
  room(id, { history = 0, after = null } = {}) {
    const length = typeof id === "string" ? utf8(id).length : 0;
    if (length < 1 || length > 128) throw new TypeError(`a room's id is a text of 1 to 128 bytes, not ${String(id)}`);
    if (!Number.isInteger(history) || history < 0 || history > 1000)
      throw new TypeError(`history is ${history}; it is a number of messages from 0 to 1000`);
    if (after !== null && !isPlace(after)) throw new TypeError("after is no place {epoch, offset}");
    if (this.#connection.closed) throw closed();
    const known = this.#connection.rooms.get(`room:${id}`)?.room;
    return known ?? new Room(id, this.#connection, this.#outbox, { history, after: after && placeOf(after) });
  }

  /** The rooms for which the storage has sends of an earlier page: join them, and these go. */
  get unsent() {
    return this.#outbox.rooms;
  }

  /** Comes back now: for a button. */
  retry() {
    this.#connection.hurry();
  }

  /** Ends the connection. What waits is rejected as `closed`, or as `unknown`. */
  close() {
    if (this.#connection.closed) return;
    this.#connection.closed = true;
    this.#connection.stop(closed());
  }
}
