/**
 * The messages we wrote that the server has not yet acknowledged, sent one at a time in the order they were written.
 *
 * Every entry keeps one idempotency key for life, so that sending it again after a broken connection cannot double it.
 * An entry leaves by an ack, by going back to the composer, or by the person's hand; never by itself.
 */

import { ReplyError } from "/static/socket.js";

/** The server remembers keys for 5 minutes; past this, sending again could double a message. */
const KEY_MEMORY_MS = 4 * 60_000;
/** How far the clocks of page and server may differ when a broadcast is matched with what we sent. */
const CLOCK_SLACK_MS = 30_000;

export class Outbox {
  /**
   * Entries `{key, text, userId, state, error, writtenAt, sentAt, held, twin}`: `state` is queued, sending or failed;
   * `sentAt` is null while the outcome is not in doubt; `held` says that it has waited, for a connection or
   * behind others: its author no longer expects it back in the composer.
   */
  entries = [];

  #userId;
  #push;
  #onAck;
  #onRefusal;
  #onChange;
  #open = false;
  #busy = false;
  #heldUntil = 0;
  #holdTimer = 0;

  /**
   * @param {object} options
   * @param {string} options.userId
   * @param {(payload: object) => Promise<object>} options.push
   * @param {(ack: object, entry: object) => void} options.onAck
   * @param {(refusal: {entry: object, error: ReplyError, alone: boolean}) => boolean} options.onRefusal returns whether
   *   the text was taken back for the person to change; `alone` says that it is the only one, fresh from the composer
   * @param {() => void} options.onChange
   */
  constructor({ userId, push, onAck, onRefusal, onChange }) {
    this.#userId = userId;
    this.#push = push;
    this.#onAck = onAck;
    this.#onRefusal = onRefusal;
    this.#onChange = onChange;
  }

  add(text) {
    this.entries.push({
      key: newKey(),
      text,
      userId: this.#userId,
      state: "queued",
      error: null,
      writtenAt: Date.now(),
      sentAt: null,
      held: !this.#open || this.entries.some(({ state }) => state !== "failed"),
      twin: null,
    });
    this.#onChange();
    this.#drain();
  }

  /** The room is joined: send what waits. */
  resume() {
    this.#open = true;
    this.#drain();
  }

  /** The room is gone: what is unanswered waits for the next join. */
  pause() {
    this.#open = false;
    for (const entry of this.entries) entry.held = true;
  }

  /** Stops for good. */
  close() {
    this.#open = false;
    clearTimeout(this.#holdTimer);
  }

  retry(key) {
    const entry = this.entries.find((candidate) => candidate.key === key);
    if (entry?.state !== "failed") return;
    entry.state = "queued";
    entry.error = null;
    entry.sentAt = null;
    this.#onChange();
    this.#drain();
  }

  /** Removes an entry and returns its text. */
  take(key) {
    const index = this.entries.findIndex((candidate) => candidate.key === key);
    const [entry] = index < 0 ? [] : this.entries.splice(index, 1);
    this.#onChange();
    return entry?.text ?? "";
  }

  /**
   * Pairs a new message of ours with the entry it probably is, until the ack says so for certain.
   *
   * A broadcast may come before its ack; without this the person would see their message twice for a moment. Another
   * tab of the same person may have sent the same words, so an entry that can still be acknowledged stays.
   */
  recognise(message) {
    if (message.user_id !== this.#userId || message.key !== null) return;
    const entry = this.entries.find(
      ({ text, sentAt, twin }) =>
        twin === null && sentAt !== null && text === message.content && message.inserted_at > sentAt - CLOCK_SLACK_MS,
    );
    if (entry === undefined) return;
    if (entry.state === "failed") {
      this.take(entry.key);
      return;
    }
    entry.twin = message;
    message.key = entry.key;
  }

  async #drain() {
    clearTimeout(this.#holdTimer);
    if (!this.#open || this.#busy) return;
    const entry = this.entries.find(({ state }) => state === "queued");
    if (entry === undefined) return;
    const wait = this.#heldUntil - Date.now();
    if (wait > 0) {
      this.#holdTimer = setTimeout(() => this.#drain(), wait);
      return;
    }
    if (entry.sentAt !== null && Date.now() - entry.sentAt > KEY_MEMORY_MS) {
      this.#settleForgotten(entry);
    } else {
      this.#busy = true;
      await this.#send(entry);
      this.#busy = false;
    }
    this.#onChange();
    this.#drain();
  }

  async #send(entry) {
    entry.state = "sending";
    entry.sentAt ??= Date.now();
    this.#onChange();
    try {
      const ack = await this.#push({ content: entry.text, key: entry.key });
      if (entry.twin !== null && entry.twin.id !== ack.id) entry.twin.key = null;
      this.take(entry.key);
      this.#onAck(ack, entry);
    } catch (error) {
      if (!(error instanceof ReplyError)) throw error;
      this.#refused(entry, error);
    }
  }

  #refused(entry, error) {
    if (!this.entries.includes(entry)) return;
    entry.state = "queued";
    if (error.code === "interrupted") return;
    if (error.code === "timeout") {
      if (entry.twin !== null) return;
      entry.state = "failed";
      entry.error = error;
      return;
    }
    // A refusal is certain: nothing was recorded under this key, and no broadcast can be this entry's.
    entry.sentAt = null;
    if (entry.twin !== null) entry.twin.key = null;
    entry.twin = null;
    const alone = this.entries.length === 1 && !entry.held;
    if (this.#onRefusal({ entry, error, alone })) {
      this.take(entry.key);
    } else if (error.retryable && error.retryAfterMs !== null) {
      this.#heldUntil = Date.now() + error.retryAfterMs;
    } else {
      entry.state = "failed";
      entry.error = error;
    }
  }

  #settleForgotten(entry) {
    if (entry.twin !== null) {
      this.take(entry.key);
      return;
    }
    entry.state = "failed";
    entry.error = new ReplyError({ code: "unconfirmed" });
  }
}

/** 128 random bits as text. `crypto.randomUUID` is absent on a page served by plain HTTP to another machine. */
function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
