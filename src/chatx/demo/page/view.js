/** The page around the message list: the way in, the bar, the composer with its notice, and who is here. */

import { MessageLog, element, initial, tint } from "/static/log.js";
import { FLOOD, SHOUT, counterWords, idProblem, oneKindOfLineBreak, plural, refusalWords, statusWords } from "/static/words.js";

/** Faces shown in the list; the number of the others follows. */
const PEOPLE_LIMIT = 200;
const COMPOSER_MAX_PX = 200;

const byId = (id) => document.getElementById(id);

export class View {
  #log = null;
  #roomId = "";
  #me = "";
  #unread = 0;
  #stopStatusCount = () => {};
  #stopNoticeCount = () => {};
  #actions;

  /**
   * @param {{join: (name: string, room: string) => void, leave: () => void, send: (text: string) => void,
   *   retry: (key: string) => void, take: (key: string) => string, earlier: () => void, reconnect: () => void}} actions
   */
  constructor(actions) {
    this.#actions = actions;
    this.#listenLobby();
    this.#listenChat();
    this.#listenComposer();
  }

  /** Shows the way in. `problem` says why the last way out was not chosen. */
  showLobby({ name, room, problem = "" }) {
    this.#log?.close();
    this.#log = null;
    this.#stopStatusCount();
    this.clearNotice();
    document.title = "chatx";
    byId("chat").hidden = true;
    byId("lobby").hidden = false;
    byId("name").value = name;
    byId("room").value = room;
    byId("join-error").textContent = problem;
    byId("name").focus();
    byId("name").select();
  }

  showChat(roomId, me) {
    this.#roomId = roomId;
    this.#me = me;
    byId("lobby").hidden = true;
    byId("chat").hidden = false;
    byId("room-title").textContent = roomId;
    byId("composer").value = "";
    this.#composerChanged();
    this.#togglePeople(false);
    this.#log = new MessageLog(byId("messages"), byId("newer"), me, {
      // These buttons go with what they act on, and must not take the focus with them.
      retry: (key) => {
        this.#actions.retry(key);
        byId("composer").focus();
      },
      edit: (key) => this.#edit(key),
      discard: (key) => {
        this.#actions.take(key);
        byId("composer").focus();
      },
      earlier: () => {
        this.#actions.earlier();
        byId("messages").focus();
      },
    });
    this.#showUnread(0);
    byId("composer").focus();
  }

  /** @param {object} room @param {object} sends @param {Iterable<string>} people who is here @param {boolean} connected */
  render(room, sends, people, connected) {
    this.#log?.render(room, sends, connected);
    this.#renderPeople(people);
  }

  /** A message of somebody else came in live. */
  noteNew() {
    this.#log?.noteNew();
    if (document.hidden) this.#showUnread(this.#unread + 1);
  }

  status(status) {
    this.#stopStatusCount();
    const { text, counting } = statusWords(status);
    const line = byId("status");
    line.dataset.state = status.state;
    if (byId("status-text").textContent !== text) byId("status-text").textContent = text;
    const countdown = byId("status-countdown");
    countdown.textContent = "";
    if (counting) this.#stopStatusCount = count(status.at, (seconds) => (countdown.textContent = ` in ${seconds} s`));
    byId("reconnect").hidden = !counting && status.state !== "ended" && status.state !== "denied";
  }

  /** Whether the person has begun another text, so that a refused one has no room in the composer. */
  get composerIsFree() {
    return byId("composer").value === "";
  }

  giveBack(text) {
    const composer = byId("composer");
    composer.value = composer.value === "" ? text : `${text}\n${composer.value}`;
    this.#composerChanged();
    composer.focus();
  }

  /**
   * Says why a message was refused.
   *
   * @param {import("/socket/chatx.js").ChatError} error
   * @param {string} text what was refused
   * @param {"composer"|"queue"|"list"} fate where the text is now: back in the composer, waiting to go out by itself, or
   *   in the message list, where its own words and buttons are
   */
  refusal(error, text, fate) {
    this.#stopNoticeCount();
    const body = element("div", "notice-body");
    const words = element("p", "notice-words");
    words.textContent = fate === "list" ? "A message was not sent. It is marked above." : refusalWords(error, text);
    const wait = element("p", "notice-wait");
    wait.setAttribute("aria-hidden", "true");
    body.append(words, wait);
    body.dataset.code = error.code;
    byId("notice").replaceChildren(body);
    if (fate === "list" || error.retryAfter === null) {
      if (fate === "composer") wait.textContent = "Your text is still here.";
      return;
    }
    const lead = fate === "queue" ? "Your messages go out by themselves in" : "You can send it in";
    const tick = (seconds) => (wait.textContent = `${lead} ${plural(seconds, "second")}.`);
    this.#stopNoticeCount = count(Date.now() + error.retryAfter * 1_000, tick, () => {
      if (fate === "queue") {
        this.clearNotice();
        return;
      }
      body.dataset.code = "over";
      wait.remove();
      words.textContent = "You can send it now.";
    });
  }

  clearNotice() {
    this.#stopNoticeCount();
    byId("notice").replaceChildren();
  }

  #listenLobby() {
    const fields = [
      ["name", "a name"],
      ["room", "a room"],
    ];
    byId("join-form").addEventListener("submit", (event) => {
      event.preventDefault();
      byId("join-error").textContent = "";
      const values = fields.map(([id, what]) => {
        const input = byId(id);
        const value = input.value.normalize("NFKC").trim();
        const problem = idProblem(value, what);
        byId(`${id}-error`).textContent = problem;
        input.setAttribute("aria-invalid", String(problem !== ""));
        return { input, value, problem };
      });
      const wrong = values.find(({ problem }) => problem !== "");
      if (wrong === undefined) this.#actions.join(values[0].value, values[1].value);
      else wrong.input.focus();
    });
    for (const [id] of fields) {
      byId(id).addEventListener("input", () => {
        byId(`${id}-error`).textContent = "";
        byId(id).removeAttribute("aria-invalid");
      });
    }
  }

  #listenChat() {
    byId("leave").addEventListener("click", () => this.#actions.leave());
    byId("reconnect").addEventListener("click", () => {
      this.#actions.reconnect();
      byId("composer").focus();
    });
    byId("newer").addEventListener("click", () => {
      this.#log?.toEnd();
      byId("composer").focus();
    });
    const toggle = byId("people-toggle");
    toggle.addEventListener("click", () => this.#togglePeople(toggle.getAttribute("aria-expanded") !== "true"));
    byId("chat").addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || toggle.getAttribute("aria-expanded") !== "true") return;
      this.#togglePeople(false);
      toggle.focus();
    });
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.#showUnread(0);
    });
    // On a phone the keyboard takes part of the window without resizing the page: give the page what is left.
    const viewport = window.visualViewport;
    viewport?.addEventListener("resize", () => {
      document.documentElement.style.setProperty("--height", `${viewport.height}px`);
    });
  }

  #listenComposer() {
    const composer = byId("composer");
    composer.addEventListener("input", () => {
      this.#composerChanged();
      if (byId("notice").querySelector("[data-code=over]")) this.clearNotice();
    });
    composer.addEventListener("keydown", (event) => {
      // While a word is being composed (Japanese, Chinese, ...), Enter belongs to the input method.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
      event.preventDefault();
      this.#submit();
    });
    byId("composer-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    byId("try-shouting").addEventListener("click", () => this.#send(SHOUT));
    byId("try-flooding").addEventListener("click", () => this.#send(...FLOOD));
  }

  #submit() {
    const composer = byId("composer");
    const text = oneKindOfLineBreak(composer.value);
    composer.focus();
    if (text.trim() === "") return;
    composer.value = "";
    this.#composerChanged();
    this.#send(text);
  }

  #send(...texts) {
    this.clearNotice();
    this.#log?.toEnd();
    for (const text of texts) this.#actions.send(text);
  }

  #edit(key) {
    this.giveBack(this.#actions.take(key));
  }

  #composerChanged() {
    const composer = byId("composer");
    composer.style.height = "auto";
    composer.style.height = `${Math.min(composer.scrollHeight, COMPOSER_MAX_PX)}px`;
    const { text, over } = counterWords(composer.value);
    byId("counter").textContent = text;
    byId("counter").classList.toggle("over", over);
  }

  #renderPeople(people) {
    const collator = new Intl.Collator();
    const names = [...people].sort((a, b) => (b === this.#me) - (a === this.#me) || collator.compare(a, b));
    byId("people-count").textContent = String(names.length);
    byId("people-toggle").textContent = `${names.length} here`;
    const rest = names.length - PEOPLE_LIMIT;
    byId("people-rest").textContent = rest > 0 ? `and ${plural(rest, "other")}` : "";
    const list = byId("people");
    const shown = names.slice(0, PEOPLE_LIMIT);
    const old = [...list.children];
    if (old.length === shown.length && old.every((item, index) => item.dataset.userId === shown[index])) return;
    const known = new Map(old.map((item) => [item.dataset.userId, item]));
    list.replaceChildren(...shown.map((name) => known.get(name) ?? this.#person(name)));
  }

  #person(name) {
    const item = element("li", "person");
    item.dataset.userId = name;
    const avatar = element("span", "avatar");
    avatar.setAttribute("aria-hidden", "true");
    avatar.dataset.tint = tint(name);
    avatar.textContent = initial(name);
    const label = element("bdi", "person-name");
    label.textContent = name;
    item.append(avatar, label);
    if (name === this.#me) {
      const you = element("span", "message-you");
      you.textContent = "you";
      item.append(you);
    }
    return item;
  }

  #togglePeople(open) {
    byId("people-toggle").setAttribute("aria-expanded", String(open));
    byId("people-panel").classList.toggle("open", open);
  }

  #showUnread(unread) {
    this.#unread = unread;
    if (this.#log === null) return;
    document.title = `${unread > 0 ? `(${unread}) ` : ""}${this.#roomId} · chatx`;
  }
}

/** Calls `tick` with the whole seconds left until `at`, then `done`. Returns how to stop it. */
function count(at, tick, done = () => {}) {
  let timer = 0;
  const step = () => {
    const left = at - Date.now();
    if (left <= 0) {
      done();
      return;
    }
    tick(Math.ceil(left / 1_000));
    timer = setTimeout(step, ((left - 1) % 1_000) + 1);
  };
  step();
  return () => clearTimeout(timer);
}
