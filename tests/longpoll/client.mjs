// The phoenix client as it is published, told what to do by lines of JSON, and telling what happens in the same way.
//
//     node client.mjs <address of the socket> <user id> [fallback]
//
// With `fallback` it begins with a WebSocket that cannot connect.

import { createInterface } from "node:readline";
import { LongPoll, Presence, Socket } from "../npm/node_modules/phoenix/priv/static/phoenix.mjs";

const [address, userId, fallback] = process.argv.slice(2);
const tell = (what, more = {}) => process.stdout.write(`${JSON.stringify({ what, ...more })}\n`);
console.log = console.error; // phoenix logs what it cannot read

class BlockedWebSocket {
  constructor() {
    this.readyState = 0;
    setTimeout(() => this.onerror("blocked"), 0);
  }

  close() {
    this.readyState = 3;
  }
}

const socket = new Socket(address, {
  ...(fallback ? { transport: BlockedWebSocket, longPollFallbackMs: 2000 } : { transport: LongPoll }),
  params: () => ({ user_id: userId, token: "the application's own" }),
  authToken: () => `secret of ${userId}`,
});
socket.onOpen(() => tell("open", { transport: socket.transport.name }));
socket.onClose(({ code }) => tell("close", { code }));

const channels = {};

function join(topic) {
  let seen = {};
  const channel = socket.channel(topic, () => seen);
  const presence = new Presence(channel);
  presence.onSync(() => tell("presence", { topic, users: presence.list((id) => id).sort() }));
  channel.on("new_message", (message) => {
    seen = { epoch: message.epoch, offset: message.offset };
    tell("message", { topic, ...message });
  });
  channel
    .join()
    .receive("ok", (head) => {
      if (!head.recovered) seen = { epoch: head.epoch, offset: head.offset };
      tell("joined", { topic, ...head });
    })
    .receive("error", (refusal) => tell("refused", { topic, ...refusal }));
  channels[topic] = channel;
}

function push(topic, event, payload) {
  channels[topic]
    .push(event, payload)
    .receive("ok", (response) => tell("ok", { topic, response }))
    .receive("error", (response) => tell("error", { topic, response }))
    .receive("timeout", () => tell("timeout", { topic }));
}

const commands = {
  connect: () => socket.connect(),
  disconnect: () => socket.disconnect(() => tell("disconnected")),
  join: ({ topic }) => join(topic),
  leave: ({ topic }) => channels[topic].leave().receive("ok", () => tell("left", { topic })),
  push: ({ topic, event, payload }) => push(topic, event, payload),
  pushes: ({ topic, count }) => {
    for (let number = 0; number < count; number++) push(topic, "new_message", { content: `${number}` });
  },
};

createInterface({ input: process.stdin })
  .on("line", (line) => {
    const command = JSON.parse(line);
    commands[command.do](command);
  })
  .on("close", () => process.exit(0));
