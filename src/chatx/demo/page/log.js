/**
 * The message list on screen.
 *
 * It is drawn anew as a whole, but node by node only where something changed: each message keeps its node from the
 * moment it is written, through its ack, until it leaves. Text goes into text nodes, and a link's address is one of http.
 */

import { MESSAGE_LIMIT } from "/static/room.js";
import { spans } from "/static/spans.js";
import { plural, refusalWords } from "/static/words.js";

/** Messages of one person stand together for so long; then the name is there again. */
const GROUP_MS = 5 * 60_000;
/** A reader this close to the end, in pixels, is following the conversation. */
const FOLLOW_PX = 60;
const TINTS = 8;

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const moment = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "medium" });
const dayName = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long" });
const dayNameWithYear = new Intl.DateTimeFormat(undefined, { dateStyle: "long" });

export class MessageLog {
  #list;
  #newer;
  #me;
  #actions;
  #nodes = new Map();
  /** The content that each message's paragraph was made from. */
  #drawn = new WeakMap();
  #following = true;
  #unseen = 0;
  #resize;

  /**
   * @param {HTMLElement} list
   * @param {HTMLButtonElement} newer shown when something new is below what is read
   * @param {string} me our own user id
   * @param {{retry: (key: string) => void, edit: (key: string) => void, discard: (key: string) => void,
   *   earlier: () => void}} actions
   */
  constructor(list, newer, me, actions) {
    this.#list = list;
    this.#newer = newer;
    this.#me = me;
    this.#actions = actions;
    list.replaceChildren();
    let lastTop = 0;
    list.onscroll = () => {
      const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < FOLLOW_PX;
      // Only a reader moves up; being away from the end can also come from a message or a composer that grew.
      if (atEnd || list.scrollTop < lastTop) this.#following = atEnd;
      lastTop = list.scrollTop;
      if (atEnd) this.#sawAll();
    };
    this.#sawAll();
    // A phone's keyboard, or a taller composer, must not cover what was just said.
    this.#resize = new ResizeObserver(() => {
      if (this.#following) this.toEnd();
    });
    this.#resize.observe(list);
  }

  close() {
    this.#resize.disconnect();
    this.#list.onscroll = null;
  }

  toEnd() {
    this.#following = true;
    this.#list.scrollTop = this.#list.scrollHeight;
    this.#sawAll();
  }

  /** A message of somebody else came in live. */
  noteNew() {
    if (this.#following) return;
    this.#unseen += 1;
    this.#newer.textContent = plural(this.#unseen, "new message");
    this.#newer.hidden = false;
  }

  /** Draws the room and what waits to be sent; `connected` changes the words beside the latter. */
  render(room, sends, connected) {
    const list = this.#list;
    list.setAttribute("aria-busy", String(room.loading));
    const following = this.#following;
    const anchor = following ? null : this.#firstVisible();
    const anchorTop = anchor?.offsetTop;

    const used = new Set();
    let cursor = list.firstChild;
    const place = (key, make, update) => {
      let node = this.#nodes.get(key);
      if (node === undefined) {
        node = make();
        this.#nodes.set(key, node);
      }
      update?.(node);
      used.add(key);
      if (node === cursor) cursor = cursor.nextSibling;
      else list.insertBefore(node, cursor);
    };

    this.#placeTop(room, place);
    let previous = null;
    let numbers = null;
    room.messages.forEach((message, index) => {
      const hole = room.holeBefore(index);
      if (message.counts) {
        // What a page sends to count whether all of it arrives is one line, however many there are.
        if (numbers === null || hole) numbers = { key: `numbers ${message.id}`, count: 0 };
        if (hole) place(`hole ${message.id}`, () => divider("hole", "Some messages may be missing here"));
        this.#placeDay(message.inserted_at, previous?.at, place);
        numbers.count += 1;
        const words = `${plural(numbers.count, "numbered message")}, sent to count them`;
        const next = room.messages[index + 1];
        if (next === undefined || !next.counts || room.holeBefore(index + 1)) {
          place(numbers.key, () => divider("note", ""), (node) => setText(node.firstChild, words));
        }
        previous = { author: null, at: message.inserted_at };
        return;
      }
      numbers = null;
      const newDay = this.#placeDay(message.inserted_at, previous?.at, place);
      if (hole) place(`hole ${message.id}`, () => divider("hole", "Some messages may be missing here"));
      const item = {
        id: message.id,
        author: message.user_id,
        text: message.content,
        at: message.inserted_at,
      };
      group(item, hole || newDay ? null : previous);
      const key = message.key ?? message.id;
      place(key, () => this.#make(key), (node) => this.#update(node, item));
      previous = item;
    });
    for (const entry of sends.entries) {
      if (entry.twin !== null) continue;
      const newDay = this.#placeDay(entry.writtenAt, previous?.at, place);
      const item = {
        id: null,
        author: entry.userId,
        text: entry.text,
        at: entry.writtenAt,
        entry,
        connected,
      };
      group(item, newDay ? null : previous);
      place(entry.key, () => this.#make(entry.key), (node) => this.#update(node, item));
      previous = item;
    }

    for (const [key, node] of this.#nodes) {
      if (used.has(key)) continue;
      node.remove();
      this.#nodes.delete(key);
    }
    if (following) this.toEnd();
    else if (anchor?.isConnected) list.scrollTop += anchor.offsetTop - anchorTop;
  }

  #placeTop(room, place) {
    if (room.full) {
      const words = `Only the newest ${MESSAGE_LIMIT.toLocaleString("en")} messages are kept on this page`;
      place("top full", () => divider("note", words));
    } else if (room.historyFailed) {
      place("top failed", () => divider("note", "Earlier messages could not be loaded"));
    }
    if (room.canLoadEarlier) {
      place(
        "top earlier",
        () => {
          const row = element("div", "earlier");
          row.append(button("Show earlier messages", "button-quiet", () => this.#actions.earlier()));
          return row;
        },
        (row) => {
          row.firstChild.disabled = room.loading;
        },
      );
    }
    if (!room.loaded) {
      place("top loading", () => divider("note", "Loading messages…"));
    } else if (room.messages.length === 0 && !room.historyFailed) {
      place("top empty", () => divider("empty", "Nothing has been said here yet. Say hello!"));
    }
  }

  #placeDay(at, before, place) {
    const day = new Date(at).toDateString();
    if (before !== undefined && new Date(before).toDateString() === day) return false;
    place(`day ${day}`, () => divider("day", ""), (node) => setText(node.firstChild, dayWords(at)));
    return true;
  }

  #firstVisible() {
    const top = this.#list.scrollTop;
    for (const node of this.#list.children) {
      if (node.offsetTop + node.offsetHeight > top) return node;
    }
    return null;
  }

  #sawAll() {
    this.#unseen = 0;
    this.#newer.hidden = true;
  }

  #make(key) {
    const article = element("article", "message");
    const avatar = element("span", "avatar");
    avatar.setAttribute("aria-hidden", "true");
    const head = element("header", "message-head");
    const author = element("bdi", "message-author");
    const you = element("span", "message-you");
    const time = element("time", "message-time");
    head.append(author, you, " ", time);
    const text = element("p", "message-text");
    text.dir = "auto";
    const state = element("div", "message-state");
    article.append(avatar, head, text, state);
    article.dataset.key = key;
    return article;
  }

  #update(article, { id, author, text, at, lead, entry, connected }) {
    const [avatar, head, paragraph, state] = article.children;
    const [authorNode, you, time] = head.children;
    const own = author === this.#me;
    article.classList.toggle("own", own);
    article.classList.toggle("lead", lead);
    if (id === null) {
      article.dataset.pending = "";
    } else {
      article.dataset.messageId = id;
      delete article.dataset.pending;
    }
    setText(avatar, initial(author));
    setText(authorNode, author);
    authorNode.hidden = own;
    setText(you, own ? "you" : "");
    avatar.dataset.tint = tint(author);
    authorNode.dataset.tint = avatar.dataset.tint;
    const date = new Date(at);
    if (time.dateTime !== date.toISOString()) {
      time.dateTime = date.toISOString();
      time.title = moment.format(date);
      setText(time, clock.format(date));
    }
    if (this.#drawn.get(paragraph) !== text) {
      this.#drawn.set(paragraph, text);
      paragraph.replaceChildren(...spans(text).map(marked));
    }
    this.#updateState(article, state, entry, connected);
  }

  #updateState(article, state, entry, connected) {
    const failed = entry?.state === "failed";
    article.classList.toggle("failed", failed);
    let words = "";
    if (failed) words = refusalWords(entry.error, entry.text);
    else if (entry !== undefined) words = connected ? "Sending…" : "Will be sent once connected";
    if (state.dataset.words === words) return;
    state.dataset.words = words;
    state.replaceChildren();
    if (words === "") return;
    const sentence = element("span", "message-state-words");
    sentence.textContent = words;
    state.append(sentence);
    if (!failed) return;
    const { key } = entry;
    const buttons = element("span", "message-state-buttons");
    buttons.append(
      button("Retry", "button-text", () => this.#actions.retry(key)),
      button("Edit", "button-text", () => this.#actions.edit(key)),
      button("Discard", "button-text", () => this.#actions.discard(key)),
    );
    state.append(" ", buttons);
  }
}

/** The colour of a person, the same on every page. */
export function tint(name) {
  let hash = 7;
  for (const character of name) hash = (hash * 31 + character.codePointAt(0)) % 65_521;
  return String(hash % TINTS);
}

/** The first character of a name with its accents. */
export function initial(name) {
  const [first] = name.match(/^.\p{M}*/su) ?? [""];
  return first.toLocaleUpperCase();
}

export function element(tag, className) {
  const node = document.createElement(tag);
  node.className = className;
  return node;
}

function button(label, className, action) {
  const node = element("button", className);
  node.type = "button";
  node.textContent = label;
  node.onclick = action;
  return node;
}

function divider(kind, words) {
  const node = element("div", `divider divider-${kind}`);
  const label = element("span", "divider-label");
  label.textContent = words;
  node.append(label);
  return node;
}

/** Says whether an item leads a group, whose time `since` is that of its first message; null begins one. */
function group(item, previous) {
  const together = previous?.author === item.author && item.at - previous.since < GROUP_MS;
  item.lead = !together;
  item.since = together ? previous.since : item.at;
}

function marked([kind, part]) {
  if (kind === "text") return document.createTextNode(part);
  const node = document.createElement(kind === "link" ? "a" : "code");
  node.textContent = part;
  if (kind === "link") {
    node.href = part;
    node.target = "_blank";
    node.rel = "noopener noreferrer";
    // From left to right, whatever stands around it.
    node.dir = "ltr";
  } else {
    node.dir = "auto";
  }
  return node;
}

function dayWords(at) {
  const date = new Date(at);
  const today = new Date();
  const yesterday = new Date(today.getFullYear(), today.getMonth(), today.getDate() - 1);
  if (date.toDateString() === today.toDateString()) return "Today";
  if (date.toDateString() === yesterday.toDateString()) return "Yesterday";
  return (date.getFullYear() === today.getFullYear() ? dayName : dayNameWithYear).format(date);
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
