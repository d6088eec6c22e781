/**
 * What we wrote, from the composer until it is in the room: the words and buttons beside it are made of this.
 *
 * The client sends it, once, across every cut. An entry leaves by its message, by going back to the composer, or by the
 * person's hand; never by itself.
 */

export class Sends {
  /**
   * Entries `{key, text, userId, state, error, writtenAt, held, id, twin}`: `state` is waiting or failed; `held` says that
   * it has waited, for a connection or behind others: its author no longer expects it back in the composer. `id` is its
   * message's once it is acknowledged, and `twin` the message that it probably is until then.
   */
  entries = [];

  #userId;
  #send;
  #onSent;
  #onRefusal;
  #onChange;
  #joined = false;
  #last = 0;

  /**
   * @param {object} options
   * @param {string} options.userId
   * @param {(text: string) => Promise<object>} options.send
   * @param {(sent: object, entry: object) => boolean} options.onSent returns whether its message is on screen already
   * @param {(refusal: {entry: object, error: Error, alone: boolean}) => boolean} options.onRefusal returns whether the
   *   text was taken back for the person to change; `alone` says that it is the only one, fresh from the composer
   * @param {() => void} options.onChange
   */
  constructor({ userId, send, onSent, onRefusal, onChange }) {
    this.#userId = userId;
    this.#send = send;
    this.#onSent = onSent;
    this.#onRefusal = onRefusal;
    this.#onChange = onChange;
  }

  add(text) {
    this.#last += 1;
    const entry = {
      key: `entry ${this.#last}`,
      text,
      userId: this.#userId,
      state: "waiting",
      error: null,
      writtenAt: Date.now(),
      held: !this.#joined || this.entries.some(({ state }) => state !== "failed"),
      id: null,
      twin: null,
    };
    this.entries.push(entry);
    this.#onChange();
    this.#go(entry);
  }

  /** Whether the room is joined now; what waits while it is not goes out later. */
  joined(joined) {
    this.#joined = joined;
    if (!joined) for (const entry of this.entries) entry.held = true;
  }

  retry(key) {
    const entry = this.#find(key);
    if (entry?.state !== "failed") return;
    entry.state = "waiting";
    entry.error = null;
    this.#onChange();
    this.#go(entry);
  }

  /** Removes an entry and returns its text. */
  take(key) {
    const entry = this.#find(key);
    if (entry !== undefined) this.entries.splice(this.entries.indexOf(entry), 1);
    this.#onChange();
    return entry?.text ?? "";
  }

  /**
   * Gives a new message of ours the key of the entry that it is, or probably is until that is acknowledged.
   *
   * A message may come before what says that it is ours; without this it would be on screen twice for a moment.
   */
  recognise(message) {
    if (message.user_id !== this.#userId) return;
    const known = this.entries.find(({ id }) => id === message.id);
    const entry =
      known ??
      this.entries.find(({ state, id, twin, text }) => state !== "failed" && id === null && twin === null && text === message.content);
    if (entry === undefined) return;
    message.key = entry.key;
    if (known === undefined) entry.twin = message;
    else this.take(entry.key);
  }

  #find(key) {
    return this.entries.find((entry) => entry.key === key);
  }

  async #go(entry) {
    try {
      const sent = await this.#send(entry.text);
      entry.id = sent.id;
      if (entry.twin !== null && entry.twin.id !== sent.id) entry.twin.key = null;
      if (this.#onSent(sent, entry)) this.take(entry.key);
      else entry.twin = null;
    } catch (error) {
      if (entry.twin !== null) entry.twin.key = null;
      entry.twin = null;
      const alone = this.entries.length === 1 && !entry.held;
      if (this.#onRefusal({ entry, error, alone })) {
        this.take(entry.key);
      } else {
        entry.state = "failed";
        entry.error = error;
      }
    }
    this.#onChange();
  }
}
