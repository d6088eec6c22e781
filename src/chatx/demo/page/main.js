/** Joins the parts: who we are and where (address, storage), the connection, the room, what we send, the view. */

import { Outbox } from "/static/outbox.js";
import { People } from "/static/people.js";
import { Room } from "/static/room.js";
import { Channel } from "/static/socket.js";
import { View } from "/static/view.js";
import { denialWords, idProblem } from "/static/words.js";

const DEFAULT_ROOM = "general";

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
  send: (text) => session?.outbox.add(text),
  retry: (key) => session?.outbox.retry(key),
  take: (key) => session?.outbox.take(key) ?? "",
  earlier: () => session?.room.loadEarlier(),
  reconnect: () => session?.channel.retryNow(),
});

function enter(name, roomId) {
  tabName.set(name);
  lastName.set(name);
  const address = new URL(location.href);
  address.search = new URLSearchParams({ room: roomId }).toString();
  address.hash = "";
  history.replaceState(null, "", address);

  const people = new People();
  let connected = false;
  let everJoined = false;
  let drawing = false;

  const draw = () => {
    if (drawing) return;
    drawing = true;
    const frame = () => {
      drawing = false;
      if (session?.channel === channel) view.render(room, outbox, people, connected);
    };
    // A hidden page gets no animation frames, and must not come back to a pile of work.
    if (document.hidden) setTimeout(frame, 100);
    else requestAnimationFrame(frame);
  };

  const channel = new Channel({
    url: socketAddress(name),
    topic: `room:${roomId}`,
    joinParams: () => room.position,
    onStatus: (status) => {
      connected = status.state === "connected";
      if (!connected) outbox.pause();
      if (status.state === "denied" && !status.error.retryable && !everJoined) {
        leave(denialWords(status.error));
        return;
      }
      view.status(status);
      tell("status", status);
      draw();
    },
    onJoin: (response) => {
      everJoined = true;
      tell("joined", response);
      people.expectState();
      room.joined(response);
      outbox.resume();
    },
    onEvent: (event, payload) => {
      tell("event", event, payload);
      if (event === "new_message") {
        const message = room.live(payload);
        if (message !== null && message.user_id !== name) view.noteNew();
      } else if (event === "presence_state") {
        people.state(payload);
      } else if (event === "presence_diff") {
        people.diff(payload);
      }
      draw();
    },
  });

  const room = new Room({
    history: (payload) => channel.push("history", payload),
    onChange: draw,
    onInsert: (message) => outbox.recognise(message),
  });

  const outbox = new Outbox({
    userId: name,
    push: (payload) => channel.push("new_message", payload),
    onAck: (ack, entry) => {
      tell("acknowledged", ack);
      room.acknowledged(ack, entry);
    },
    onRefusal: ({ entry, error, alone }) => {
      const goesBack = alone && view.composerIsFree;
      if (goesBack) view.giveBack(entry.text);
      const waits = error.retryable && error.retryAfterMs !== null;
      view.refusal(error, entry.text, goesBack ? "composer" : waits ? "queue" : "list");
      return goesBack;
    },
    onChange: draw,
  });

  session = { channel, room, outbox };
  view.showChat(roomId, name);
  tell("entered", entrance(name, roomId));
  channel.start();
}

/**
 * Has a listener told of what goes on on this page.
 *
 * @param {{entered: (entrance: {name: string, roomId: string, push: (event: string, payload: object) => Promise<object>})
 *   => void, left: () => void, status: (status: object) => void, joined: (response: object) => void,
 *   event: (event: string, payload: object) => void, acknowledged: (ack: object) => void}} watcher
 */
export function watch(watcher) {
  watchers.push(watcher);
  if (session !== null) watcher.entered(entrance(tabName.get(), roomInAddress()));
}

function entrance(name, roomId) {
  const { channel } = session;
  return { name, roomId, push: (event, payload) => channel.push(event, payload) };
}

function tell(what, ...details) {
  for (const watcher of watchers) watcher[what](...details);
}

function leave(problem = "") {
  const unsent = session?.outbox.entries.length ?? 0;
  if (problem === "" && unsent > 0 && !confirm("Something you wrote has not been sent yet. Leave without it?")) return;
  session?.channel.leave();
  session?.outbox.close();
  session = null;
  tell("left");
  const name = tabName.get();
  tabName.set("");
  view.showLobby({ name, room: roomInAddress(), problem });
}

function roomInAddress() {
  return new URLSearchParams(location.search).get("room") ?? DEFAULT_ROOM;
}

function socketAddress(name) {
  const address = new URL("/socket/websocket", location.href);
  address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  address.search = new URLSearchParams({ vsn: "2.0.0", user_id: name }).toString();
  return address.href;
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
  if (session !== null && session.outbox.entries.length > 0) event.preventDefault();
});

const room = roomInAddress();
const name = tabName.get();
if (idProblem(name, "") === "" && idProblem(room, "") === "" && new URLSearchParams(location.search).has("room")) {
  enter(name, room);
} else {
  view.showLobby({ name: name || lastName.get(), room });
}
