/**
 * A Phoenix Channels v2 client for one topic on one WebSocket.
 *
 * It connects, joins, beats, and comes back by itself after every loss. It knows nothing of chat: what to say at a
 * join is asked from `joinParams` each time, so that a rejoin can resume where the last one ended.
 */

const HEARTBEAT_MS = 30_000;
const REPLY_MS = 10_000;
/** Longer than a join's bound: a send may wait for several slow checks on the server. */
const PUSH_MS = 20_000;
const BACKOFF_BASE_MS = 1_000;
const BACKOFF_LIMIT_MS = 30_000;
/** The pace against a server that answers but does not let us in. */
const REFUSED_MS = 20_000;
/** A join that lasted this long proves the server well; a shorter one must not reset the backoff. */
const STABLE_MS = 3_000;

/**
 * Why a push or a join did not succeed.
 *
 * `code` is the server's, or one of ours: `interrupted` (the connection went, the outcome is unknown) and `timeout`
 * (no reply, the outcome is unknown). `retryAfterMs` is null where the server named none.
 */
export class ReplyError extends Error {
  constructor({ code, reason, retryable, retry_after_ms: retryAfterMs } = {}) {
    super(typeof reason === "string" ? reason : "");
    this.code = typeof code === "string" ? code : "unknown";
    this.retryable = retryable !== false;
    this.retryAfterMs = Number.isFinite(retryAfterMs) ? Math.max(0, retryAfterMs) : null;
  }
}

/** Whether the server answers plain HTTP: a browser hides the status of a refused WebSocket handshake. */
async function serverAnswers() {
  try {
    const response = await fetch("/", { method: "HEAD", cache: "no-store", signal: AbortSignal.timeout(5_000) });
    return response.status < 500;
  } catch {
    return false;
  }
}

export class Channel {
  #url;
  #topic;
  #joinParams;
  #onStatus;
  #onJoin;
  #onEvent;

  #socket = null;
  #opened = false;
  #joinRef = null;
  #joined = false;
  #joinedAt = 0;
  #lastRef = 0;
  #replies = new Map();
  #timer = 0;
  #beatTimer = 0;
  #beatDeadline = 0;
  #beatRef = null;
  #attempt = 0;
  #refusals = 0;
  #turn = 0;
  #stopped = true;
  #ended = false;

  /**
   * @param {object} options
   * @param {string} options.url the WebSocket address, with its parameters
   * @param {string} options.topic the one topic to join
   * @param {() => object} options.joinParams asked at every join
   * @param {(status: {state: string, at: number|null, error: ReplyError|null}) => void} options.onStatus
   *   `state` is connecting, connected, waiting, offline, refused (no WebSocket), denied (no join) or ended (the server
   *   asked us not to come back); `at` is when the next attempt comes (ms since the epoch), null when none is planned
   * @param {(response: object) => void} options.onJoin called before any event of that join
   * @param {(event: string, payload: object) => void} options.onEvent
   */
  constructor({ url, topic, joinParams, onStatus, onJoin, onEvent }) {
    this.#url = url;
    this.#topic = topic;
    this.#joinParams = joinParams;
    this.#onStatus = onStatus;
    this.#onJoin = onJoin;
    this.#onEvent = onEvent;
  }

  /** Connects, and stays connected until `leave`. */
  start() {
    this.#stopped = false;
    addEventListener("online", this.#wake);
    addEventListener("offline", this.#wake);
    addEventListener("pageshow", this.#wake);
    document.addEventListener("visibilitychange", this.#wake);
    this.#connect();
  }

  /** Leaves the topic and closes the socket for good. Pushes under way reject as `interrupted`. */
  leave() {
    this.#stopped = true;
    removeEventListener("online", this.#wake);
    removeEventListener("offline", this.#wake);
    removeEventListener("pageshow", this.#wake);
    document.removeEventListener("visibilitychange", this.#wake);
    if (this.#joined) this.#transmit([this.#joinRef, this.#nextRef(), this.#topic, "phx_leave", {}]);
    this.#drop();
  }

  /** Makes the next attempt at once; does nothing while joined or on the way there. */
  retryNow() {
    if (this.#stopped || this.#joined) return;
    if (this.#socket === null) this.#connect();
    else if (this.#opened && this.#joinRef === null) this.#join();
  }

  /** Resolves with the response of an ok reply; rejects with a `ReplyError`. */
  push(event, payload) {
    return new Promise((resolve, reject) => {
      if (this.#joined) this.#request(this.#nextRef(), event, payload, PUSH_MS, resolve, reject);
      else reject(new ReplyError({ code: "interrupted" }));
    });
  }

  #wake = () => {
    if (this.#joined) this.#beat();
    else if (!document.hidden && !this.#ended && navigator.onLine) this.retryNow();
  };

  #connect() {
    clearTimeout(this.#timer);
    this.#turn += 1;
    this.#ended = false;
    this.#report("connecting");
    const socket = new WebSocket(this.#url);
    this.#socket = socket;
    this.#opened = false;
    const current = (handler) => (event) => {
      if (this.#socket === socket) handler(event);
    };
    socket.onopen = current(() => {
      clearTimeout(this.#timer);
      this.#opened = true;
      this.#refusals = 0;
      this.#beatTimer = setInterval(() => this.#beat(), HEARTBEAT_MS);
      this.#join();
    });
    socket.onmessage = current((event) => this.#receive(event.data));
    socket.onclose = current((event) => this.#closed(event.code));
    this.#timer = setTimeout(() => this.#lost(), REPLY_MS);
  }

  #join() {
    clearTimeout(this.#timer);
    this.#report("connecting");
    const ref = this.#nextRef();
    this.#joinRef = ref;
    const joined = (response) => {
      this.#joined = true;
      this.#joinedAt = Date.now();
      this.#onJoin(response);
      this.#report("connected");
    };
    const failed = (error) => {
      if (error.code === "interrupted") return;
      if (error.code === "timeout") {
        this.#lost();
        return;
      }
      this.#joinRef = null;
      const least = error.retryAfterMs ?? 0;
      // The room is on its way to another node, or coming back: that is soon over.
      if (error.code === "room_unavailable") this.#schedule("waiting", { least });
      else if (error.retryable) this.#schedule("denied", { error, least });
      else this.#report("denied", { error });
    };
    this.#request(ref, "phx_join", this.#joinParams(), REPLY_MS, joined, failed);
  }

  #request(ref, event, payload, limit, ok, failed) {
    const timer = setTimeout(() => {
      this.#replies.delete(ref);
      failed(new ReplyError({ code: "timeout" }));
    }, limit);
    this.#replies.set(ref, { ok, failed, timer });
    this.#transmit([this.#joinRef, ref, this.#topic, event, payload]);
  }

  #receive(data) {
    let frame;
    try {
      frame = JSON.parse(data);
    } catch {
      return;
    }
    if (!Array.isArray(frame) || frame.length !== 5) return;
    const [joinRef, ref, topic, event, payload] = frame;
    if (topic === "phoenix") {
      if (event === "phx_reply" && ref === this.#beatRef) this.#beatAnswered();
    } else if (topic !== this.#topic) {
      return;
    } else if (event === "phx_reply") {
      this.#settle(ref, payload);
    } else if (joinRef !== null && joinRef !== this.#joinRef) {
      return;
    } else if (event === "phx_error" || event === "phx_close") {
      this.#channelDown();
    } else if (this.#joined) {
      this.#onEvent(event, payload);
    }
  }

  #settle(ref, payload) {
    const reply = this.#replies.get(ref);
    if (reply === undefined) return;
    this.#replies.delete(ref);
    clearTimeout(reply.timer);
    const response = payload?.response ?? {};
    if (payload?.status === "ok") {
      reply.ok(response);
    } else if (response.reason === "unmatched topic" && this.#joined) {
      // The server has forgotten our join without a word: the push was not looked at, so it is safe to say again.
      reply.failed(new ReplyError({ code: "interrupted" }));
      this.#channelDown();
    } else {
      reply.failed(new ReplyError(response));
    }
  }

  #beat() {
    if (this.#beatRef !== null) return;
    this.#beatRef = this.#nextRef();
    this.#beatDeadline = setTimeout(() => this.#lost(), REPLY_MS);
    this.#transmit([null, this.#beatRef, "phoenix", "heartbeat", {}]);
  }

  #beatAnswered() {
    clearTimeout(this.#beatDeadline);
    this.#beatRef = null;
  }

  #channelDown() {
    this.#unjoin();
    this.#schedule("waiting");
  }

  async #closed(code) {
    const opened = this.#opened;
    this.#drop();
    if (code === 1000) {
      this.#ended = true;
      this.#report("ended");
      return;
    }
    if (opened) {
      this.#schedule("waiting");
      return;
    }
    const turn = this.#turn;
    const answers = await serverAnswers();
    if (this.#stopped || turn !== this.#turn) return;
    // One failure beside a working server may be a restart seen half way; two are a refusal.
    this.#refusals = answers ? this.#refusals + 1 : 0;
    this.#schedule(this.#refusals > 1 ? "refused" : "waiting");
  }

  #lost() {
    this.#drop();
    this.#schedule("waiting");
  }

  #schedule(state, { error = null, least = 0 } = {}) {
    clearTimeout(this.#timer);
    if (this.#joinedAt !== 0 && Date.now() - this.#joinedAt > STABLE_MS) this.#attempt = 0;
    this.#joinedAt = 0;
    const ceiling = state === "waiting" ? Math.min(BACKOFF_LIMIT_MS, BACKOFF_BASE_MS * 2 ** this.#attempt) : REFUSED_MS;
    const delay = Math.max(least, ceiling * (0.5 + Math.random() / 2));
    this.#attempt = Math.min(this.#attempt + 1, 10);
    this.#timer = setTimeout(() => this.retryNow(), delay);
    // A page without a network may still reach a server on its own machine, so being offline changes only the words.
    const shown = state === "waiting" && !navigator.onLine ? "offline" : state;
    this.#report(shown, { error, at: Date.now() + delay });
  }

  #drop() {
    const socket = this.#socket;
    this.#socket = null;
    this.#opened = false;
    clearTimeout(this.#timer);
    clearInterval(this.#beatTimer);
    this.#beatAnswered();
    this.#unjoin();
    socket?.close();
  }

  #unjoin() {
    this.#joined = false;
    this.#joinRef = null;
    const replies = [...this.#replies.values()];
    this.#replies.clear();
    for (const { failed, timer } of replies) {
      clearTimeout(timer);
      failed(new ReplyError({ code: "interrupted" }));
    }
  }

  #transmit(frame) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(frame));
  }

  #nextRef() {
    this.#lastRef += 1;
    return String(this.#lastRef);
  }

  #report(state, { error = null, at = null } = {}) {
    if (!this.#stopped) this.#onStatus({ state, error, at });
  }
}
