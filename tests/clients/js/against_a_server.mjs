// The client in Node against a real server: node against_a_server.mjs ADDRESS; a line for each thing that was seen.
import { createInterface } from "node:readline";
import WebSocket from "../../npm/node_modules/ws/wrapper.mjs";

import { Chat } from "../../../clients/js/chatx.js";

const [address] = process.argv.slice(2);
const tell = (name, value) => console.log(JSON.stringify({ name, value }));

/** One that a network lets open, or not, and never answer. */
class Blocked {
  constructor(url, protocols) {
    Object.assign(this, { url, protocols, readyState: 0 });
  }
  close() {}
}

class Refused extends Blocked {
  constructor(...args) {
    super(...args);
    setTimeout(() => this.onclose?.({ code: 1006 }));
  }
}

for (const [name, options] of Object.entries({
  websocket: { WebSocket },
  polling: { WebSocket: null },
  refused: { WebSocket: Refused },
  blocked: { WebSocket: Blocked },
})) {
  const chat = new Chat(address, { token: async () => `geheim-ü-${name}`, ...options });
  const room = chat.room("a", { history: 10 });
  const heard = new Promise((resolve) => room.on("message", ({ content, user_id }) => content === name && resolve(user_id)));
  await room.join();
  const [sent, user] = await Promise.all([room.send(name, { data: { name } }), heard]);
  const refused = await room.send("x".repeat(5000)).catch(({ code }) => code);
  const messages = await room.history({ before: { epoch: sent.epoch, offset: sent.offset + 1 }, limit: 1 });
  tell(name, [user, messages[0].id === sent.id, messages[0].data, refused, [...room.members.keys()].includes(user)]);
  if (name === "websocket") {
    const lines = createInterface({ input: process.stdin });
    room.on("state", (state, { error }) => error && tell("state", [state, error.code]));
    tell("ready");
    for await (const line of lines) if (line === "go on") break;
  }
  chat.close();
}
const wrong = new Chat(address, { WebSocket, token: () => "wrong" }).room("a");
wrong.on("state", (state, { error }) => {
  if (error?.code !== "refused") return;
  tell("wrong", [state, error.retryable]);
  process.exit();
});
wrong.join();
