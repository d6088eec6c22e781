/**
 * What is on screen of a room: its messages, in the order in which the client tells them.
 *
 * What is on screen stays, save the oldest beyond `MESSAGE_LIMIT`; where the client tells of a gap, the page says so. Where
 * the room has begun anew the client cannot know whether there was more; the history may, as the store has it.
 */

export const MESSAGE_LIMIT = 1000;
/** Messages that are shown at first, and each time that earlier ones are asked for. */
export const PAGE = 100;

export class Room {
  messages = [];
  /** Whether messages are being loaded. */
  loading = true;
  /** Whether the room was joined, and its newest messages told. */
  loaded = false;
  historyFailed = false;

  #onInsert;
  #byId = new Map();
  /** Something is missing ahead of the next message: `{closed}`, which the first message behind it has as its `hole`. */
  #hole = null;
  #more = false;
  #trimmed = false;

  /** @param {(message: object) => void} onInsert called for each message ahead of its being shown */
  constructor(onInsert) {
    this.#onInsert = onInsert;
  }

  /** Whether older messages were let go because the page keeps only so many. */
  get full() {
    return this.#trimmed || (this.#more && this.messages.length >= MESSAGE_LIMIT);
  }

  get canLoadEarlier() {
    return this.#more && !this.full;
  }

  /** The room is joined, and what was said before is told. */
  joined() {
    if (!this.loaded) this.#more = this.historyFailed || this.messages.length >= PAGE || this.messages[0]?.offset > 1;
    this.loaded = true;
    this.loading = false;
  }

  /** Takes the next message. */
  add(message) {
    this.messages.push(this.#known(message, this.#hole));
    this.#hole = null;
    if (this.messages.length <= MESSAGE_LIMIT) return;
    this.#byId.delete(this.messages.shift().id);
    this.#trimmed = true;
  }

  /**
   * Something is missing ahead of the next message, unless the history says otherwise.
   *
   * @param {{reason: string, epoch: string, offset: number}} gap
   * @param {(which: object) => Promise<object[]>} history
   */
  async gap({ reason, epoch, offset }, history) {
    if (!this.loaded) this.historyFailed = true;
    if (this.messages.length === 0) return;
    const hole = (this.#hole = { closed: false });
    if (reason !== "epoch_changed") return;
    try {
      const messages = await history({ before: { epoch, offset: offset + 1 }, limit: PAGE });
      if (!messages.some(({ id }) => this.#byId.has(id))) return;
      const missed = messages.filter(({ id }) => !this.#byId.has(id)).map((each) => this.#known(each, null));
      const place = this.messages.findIndex((each) => each.hole === hole);
      this.messages.splice(place < 0 ? this.messages.length : place, 0, ...missed);
      hole.closed = true;
    } catch {
      // It stays a hole.
    }
  }

  /** Gives the message of an acknowledgement its key; returns whether it is on screen. */
  acknowledged({ id }, key) {
    const message = this.#byId.get(id);
    if (message !== undefined) message.key = key;
    return message !== undefined;
  }

  /** Loads what was said ahead of the oldest message. @param {(limit: number) => Promise<object[]>} history */
  async loadEarlier(history) {
    if (this.loading) return;
    this.loading = true;
    try {
      const messages = await history(Math.min(PAGE, MESSAGE_LIMIT - this.messages.length));
      this.messages.unshift(...messages.filter(({ id }) => !this.#byId.has(id)).map((each) => this.#known(each, null)));
      this.#more = messages.more;
      this.historyFailed = false;
    } catch {
      this.historyFailed = true;
    } finally {
      this.loading = false;
    }
  }

  /** Whether messages are missing between the message at `index` and the one before it. */
  holeBefore(index) {
    return index > 0 && this.messages[index].hole?.closed === false;
  }

  #known({ id, user_id, content, inserted_at, epoch, offset, data }, hole) {
    const message = { id, user_id, content, inserted_at, epoch, offset, hole, key: null, counts: data?.number !== undefined };
    this.#byId.set(id, message);
    this.#onInsert(message);
    return message;
  }
}
