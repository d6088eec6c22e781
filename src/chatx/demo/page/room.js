/**
 * What is known of one room's stream: its messages in order, and the position to resume from.
 *
 * Rules this file keeps:
 * - A message is known by its id and is in the list once, whether it came live, from history or from our own ack.
 * - The order is the stream's: by epoch in the order the epochs followed each other, then by offset.
 * - The cursor moves by live messages, and by the reply of a join that starts anew; never by a recovered join or an ack.
 * - After a join that starts anew the history is owed until it has arrived, however often the connection breaks.
 * - What is on screen stays, save the oldest beyond `MESSAGE_LIMIT`; where continuity is not proven, it says so.
 */

import { ReplyError } from "/static/socket.js";

export const MESSAGE_LIMIT = 1000;
const PAGE = 100;
/** How many pages are fetched to close a hole before it is shown as one. */
const CATCH_UP_PAGES = 5;

export class Room {
  messages = [];
  /** Whether the history is being loaded. */
  loading = false;
  /** Whether the first history has arrived or has failed. */
  loaded = false;
  historyFailed = false;

  #history;
  #onChange;
  #onInsert;
  #byId = new Map();
  #epochs = [];
  #cursor = null;
  #anchor = null;
  #owesHistory = false;
  #unprovenNext = false;
  #more = false;
  #trimmed = false;

  /**
   * @param {object} options
   * @param {(payload: object) => Promise<{messages: object[], more: boolean}>} options.history
   * @param {() => void} options.onChange
   * @param {(message: object) => void} options.onInsert called for each message that was not known
   */
  constructor({ history, onChange, onInsert }) {
    this.#history = history;
    this.#onChange = onChange;
    this.#onInsert = onInsert;
  }

  /** The params of the next join: where to resume, or nothing for a fresh one. */
  get position() {
    return this.#cursor ?? {};
  }

  /** Whether older messages were let go because the page keeps only so many. */
  get full() {
    return this.#trimmed || (this.#more && this.messages.length >= MESSAGE_LIMIT);
  }

  get canLoadEarlier() {
    return this.#more && !this.full;
  }

  joined({ epoch, offset, recovered }) {
    if (this.#cursor === null || recovered !== true) {
      if (this.#cursor !== null && this.messages.length > 0) this.#anchor ??= this.#cursor;
      this.#cursor = { epoch, offset };
      this.#noteEpoch(epoch);
      this.#owesHistory = true;
    }
    if (this.#owesHistory) this.#loadLatest();
  }

  /** Takes a broadcast in. Returns the message when it is new, else null. */
  live(message) {
    if (!isMessage(message)) return null;
    const { epoch, offset } = message;
    if (this.#cursor === null || this.#cursor.epoch !== epoch || offset > this.#cursor.offset) {
      this.#cursor = { epoch, offset };
    }
    const isNew = !this.#byId.has(message.id);
    const known = this.#insert(message);
    this.#onChange();
    return isNew ? known : null;
  }

  /** Takes our own message in as the ack tells of it; its broadcast may have come already or may still come. */
  acknowledged({ id, epoch, offset, inserted_at }, { userId, text, key }) {
    const message = { id, user_id: userId, content: text, inserted_at, epoch, offset };
    if (!isMessage(message)) return;
    const known = this.#byId.get(id);
    if (known === undefined) this.#insert(message, key);
    else known.key = key;
    this.#onChange();
  }

  /** Loads the page before the oldest message; with none on screen, the newest page. */
  async loadEarlier() {
    if (this.loading) return;
    const before = this.messages[0] ?? null;
    await this.#whileLoading(async () => {
      const page = await this.#page(before, Math.min(PAGE, MESSAGE_LIMIT - this.messages.length));
      this.#merge(page.messages, before);
      this.#more = page.more;
    });
  }

  /** Whether messages may be missing between the message at `index` and the one before it. */
  holeBefore(index) {
    if (index === 0) return false;
    const previous = this.messages[index - 1];
    const message = this.messages[index];
    if (message.unproven) return true;
    if (this.#owesHistory || previous.epoch !== message.epoch) return false;
    // Our own ack may be ahead of others' broadcasts: only what the cursor has passed can be called missing.
    const passed = message.epoch !== this.#cursor.epoch || message.offset <= this.#cursor.offset;
    return passed && message.offset > previous.offset + 1;
  }

  async #loadLatest() {
    const head = this.#cursor;
    await this.#whileLoading(async () => {
      const anchor = this.#anchor;
      const wasEmpty = this.messages.length === 0;
      const reaches = ({ epoch, offset }) => epoch === anchor.epoch && offset <= anchor.offset + 1;
      let proven = anchor === null || (head.epoch === anchor.epoch && head.offset === anchor.offset);
      let oldest = null;
      let more = true;
      for (let count = 0; count === 0 || (!proven && more && count < CATCH_UP_PAGES); count += 1) {
        const page = await this.#page(oldest, PAGE);
        this.#merge(page.messages, oldest);
        proven ||= page.messages.some(reaches);
        oldest = page.messages[0] ?? oldest;
        more = page.more && page.messages.length > 0;
      }
      if (wasEmpty || oldest?.id === this.messages[0]?.id) this.#more = more;
      if (!proven) this.#markUnproven(oldest);
      this.#anchor = null;
      this.#owesHistory = false;
    });
  }

  async #whileLoading(load) {
    this.loading = true;
    this.historyFailed = false;
    this.#onChange();
    try {
      await load();
      this.loaded = true;
    } catch (error) {
      if (!(error instanceof ReplyError)) throw error;
      if (error.code !== "interrupted") {
        this.historyFailed = true;
        this.loaded = true;
        this.#more = true;
        if (this.#anchor !== null) this.#markUnproven(null);
        this.#anchor = null;
        this.#owesHistory = false;
      }
    } finally {
      this.loading = false;
      this.#onChange();
    }
  }

  async #page(before, limit) {
    const payload = { limit };
    if (before !== null) payload.before = { epoch: before.epoch, offset: before.offset };
    const { messages, more } = await this.#history(payload);
    return { messages: Array.isArray(messages) ? messages.filter(isMessage) : [], more: more === true };
  }

  #markUnproven(message) {
    const known = message === null ? undefined : this.#byId.get(message.id);
    if (known === undefined) this.#unprovenNext = true;
    else known.unproven = true;
  }

  /** Adds a page, oldest first, that ends right before the message `before` (null: at the head of the stream). */
  #merge(page, before) {
    let follower = before?.epoch;
    for (const { epoch } of [...page].reverse()) {
      this.#noteEpoch(epoch, follower);
      follower = epoch;
    }
    for (const message of page) this.#insert(message);
  }

  /** Gives an epoch its place: before `follower` where that is known, else after all others. */
  #noteEpoch(epoch, follower) {
    if (this.#epochs.includes(epoch)) return;
    const place = this.#epochs.indexOf(follower);
    this.#epochs.splice(place < 0 ? this.#epochs.length : place, 0, epoch);
  }

  #insert({ id, user_id, content, inserted_at, epoch, offset, data }, key = null) {
    const known = this.#byId.get(id);
    if (known !== undefined) {
      // What was broadcast counts: the server may have changed the content that our ack was shown with.
      known.content = content;
      return known;
    }
    this.#noteEpoch(epoch);
    const message = { id, user_id, content, inserted_at, epoch, offset, key, counts: data?.number !== undefined };
    let place = this.messages.length;
    while (place > 0 && this.#compare(this.messages[place - 1], message) > 0) place -= 1;
    if (this.#unprovenNext && place === this.messages.length) {
      message.unproven = true;
      this.#unprovenNext = false;
    }
    this.messages.splice(place, 0, message);
    this.#byId.set(id, message);
    this.#onInsert(message);
    if (this.messages.length > MESSAGE_LIMIT) {
      this.#byId.delete(this.messages.shift().id);
      this.#trimmed = true;
    }
    return message;
  }

  #compare(a, b) {
    return this.#epochs.indexOf(a.epoch) - this.#epochs.indexOf(b.epoch) || a.offset - b.offset;
  }
}

function isMessage(value) {
  return (
    typeof value?.id === "string" &&
    typeof value.user_id === "string" &&
    typeof value.content === "string" &&
    typeof value.epoch === "string" &&
    Number.isSafeInteger(value.offset) &&
    Number.isFinite(value.inserted_at)
  );
}
