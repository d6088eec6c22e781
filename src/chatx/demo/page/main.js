/** Joins the parts: who we are and where (address, storage), the client, the room, what we send, the view. */

import { Chat } from "/socket/chatx.js";
import { PAGE, Room } from "/static/room.js";
import { Sends } from "/static/sends.js";
import { View } from "/static/view.js";
import { denialWords, idProblem } from "/static/words.js";

const DEFAULT_ROOM = "general";
/** What a room's states are called here. */
const STATES = { idle: "connecting", joining: "connecting", joined: "connected", refused: "denied", stopped: "ended" };

/** This tab's name: two tabs can be two people. */
const tabName = stored(() => sessionStorage, "chatx.name");
/** The last name used in this browser, offered to the next tab. */
const lastName = stored(() => localStorage, "chatx.last-name");

let session = null;
/** Who else is told of what goes on; see `watch`. */
const watchers = [];

const view = new View({
  join: (name, room) => enter(name, room),
  leave: () => leave(),
  send: (text) => session?.sends.add(text),
  retry: (key) => session?.sends.retry(key),
  take: (key) => session?.sends.take(key) ?? "",
  earlier: () => session?.earlier(),
  reconnect: () => session?.chat.retry(),
});

function enter(name, roomId) {
  tabName.set(name);
  lastName.set(name);
  const address = new URL(location.href);
  address.search = new URLSearchParams({ room: roomId }).toString();
  address.hash = "";
  history.replaceState(null, "", address);

  const chat = new Chat("/socket", { params: { user_id: name } });
  const joining = chat.room(roomId, { history: PAGE });
  let connected = false;
  let drawing = false;

  const draw = () => {
    if (drawing) return;
    drawing = true;
    const frame = () => {
      drawing = false;
      if (session?.chat === chat) view.render(room, sends, joining.members.keys(), connected);
    };
    // A hidden page gets no animation frames, and must not come back to a pile of work.
    if (document.hidden) setTimeout(frame, 100);
    else requestAnimationFrame(frame);
  };

  const room = new Room((message) => sends.recognise(message));

  const sends = new Sends({
    userId: name,
    send: (text) => joining.send(text),
    onSent: (sent, { key }) => {
      tell("acknowledged", sent);
      return room.acknowledged(sent, key);
    },
    onRefusal: ({ entry, error, alone }) => {
      if (session?.chat !== chat) return true;
      const goesBack = alone && view.composerIsFree;
      if (goesBack) view.giveBack(entry.text);
      view.refusal(error, entry.text, goesBack ? "composer" : "list");
      return goesBack;
    },
    onChange: draw,
  });

  joining.on("state", (state, detail) => {
    if (session?.chat !== chat) return;
    connected = state === "joined";
    sends.joined(connected);
    if (state === "refused" && !room.loaded) {
      leave(denialWords(detail.error));
      return;
    }
    if (connected) room.joined();
    const status = statusOf(state, detail);
    view.status(status);
    tell("status", status);
    draw();
  });
  joining.on("message", (message) => {
    const isNews = room.loaded && message.user_id !== name;
    room.add(message);
    if (isNews) view.noteNew();
    tell("message", message);
    draw();
  });
  joining.on("gap", (gap) => {
    room.gap(gap, (which) => joining.history(which)).then(draw);
    tell("gap", gap);
    draw();
  });
  joining.on("presence", (members) => {
    tell("presence", members);
    draw();
  });
  joining.on("held", (error, { content }) => {
    if (error.retryAfter !== null) view.refusal(error, content, "queue");
  });

  const earlier = async () => {
    const loaded = room.loadEarlier((limit) => joining.history({ limit }));
    draw();
    await loaded;
    draw();
  };
  session = { chat, sends, earlier, entrance: { name, roomId, room: joining } };
  view.showChat(roomId, name);
  tell("entered", session.entrance);
  joining.join().catch(() => {}); // the state says it
}

/** The state of a room as `words.js` has words for it. */
function statusOf(state, { error = null, at = null }) {
  if (state !== "waiting") return { state: STATES[state], error, at };
  if (!navigator.onLine) return { state: "offline", error, at };
  return { state: error?.code === "refused" ? "refused" : "waiting", error, at };
}

/**
 * Has a listener told of what goes on on this page.
 *
 * @param {{entered: (entrance: {name: string, roomId: string, room: object}) => void, left: () => void,
 *   status: (status: object) => void, message: (message: object) => void, gap: (gap: object) => void,
 *   presence: (members: Map<string, object[]>) => void, acknowledged: (sent: object) => void}} watcher
 */
export function watch(watcher) {
  watchers.push(watcher);
  if (session !== null) watcher.entered(session.entrance);
}

function tell(what, ...details) {
  for (const watcher of watchers) watcher[what](...details);
}

function leave(problem = "") {
  const unsent = session?.sends.entries.length ?? 0;
  if (problem === "" && unsent > 0 && !confirm("Something you wrote has not been sent yet. Leave without it?")) return;
  const left = session;
  session = null;
  left?.chat.close();
  tell("left");
  const name = tabName.get();
  tabName.set("");
  view.showLobby({ name, room: roomInAddress(), problem });
}

function roomInAddress() {
  return new URLSearchParams(location.search).get("room") ?? DEFAULT_ROOM;
}

/** One value in the browser's storage, which a visitor may have switched off. */
function stored(area, key) {
  return {
    get() {
      try {
        return area().getItem(key) ?? "";
      } catch {
        return "";
      }
    },
    set(value) {
      try {
        if (value === "") area().removeItem(key);
        else area().setItem(key, value);
      } catch {
        // Without storage the page works; it only asks for the name again.
      }
    },
  };
}

addEventListener("beforeunload", (event) => {
  if (session !== null && session.sends.entries.length > 0) event.preventDefault();
});

const room = roomInAddress();
const name = tabName.get();
if (idProblem(name, "") === "" && idProblem(room, "") === "" && new URLSearchParams(location.search).has("room")) {
  enter(name, room);
} else {
  view.showLobby({ name: name || lastName.get(), room });
}
