// What a test of the client has: a clock, a server, and a client whose events are written down.
import { test } from "node:test";

import { Chat } from "../../../clients/js/chatx.js";
import { Clock } from "./clock.mjs";
import { FakeServer, FakeStorage } from "./fake_server.mjs";

export const REFUSED = { code: "blocked", reason: "not that", retryable: false };
export const LIMITED = { code: "rate_limited", reason: "slowly", retryable: true, retry_after_ms: 5_000 };

const clock = new Clock().install();

export class World {
  clock = clock;
  server = new FakeServer();
  storage = new FakeStorage();
  reported = [];
  #chats = [];

  chat(options = {}) {
    const { WebSocket } = this.server;
    const chat = new Chat("ws://host/socket", { WebSocket, fetch: null, random: () => 0.5, ...options });
    this.#chats.push(chat);
    return chat;
  }

  /** A room with its `events`: names and what was told. */
  room(options = {}, chat = this.chat()) {
    const room = chat.room(options.id ?? "a", options);
    const events = [];
    for (const name of ["message", "gap", "presence", "state", "held", "sent", "failed"])
      room.on(name, (...values) => events.push([name, ...values]));
    return Object.assign(room, {
      events,
      told: () => events.filter(([name]) => name === "message").map(([, { content }]) => content),
      all: (name) => events.filter((event) => event[0] === name).map((event) => event.slice(1)),
    });
  }

  async joined(options, chat) {
    const room = this.room(options, chat);
    const joined = room.join();
    await clock.settle();
    await joined;
    return room;
  }

  /** What became of a send, once it is settled: `ok`, or the code of the error; `waits` before. */
  outcome(promise) {
    const outcome = { is: "waits" };
    promise.then(
      (sent) => Object.assign(outcome, { is: "ok", sent }),
      (error) => Object.assign(outcome, { is: error.code, error }),
    );
    return outcome;
  }

  end() {
    for (const chat of this.#chats) chat.close();
  }
}

/** Declares a test with a world of its own. */
export function chatTest(name, act) {
  test(name, async () => {
    const world = new World();
    globalThis.reportError = (error) => world.reported.push(error);
    try {
      await act(world);
    } finally {
      world.end();
    }
  });
}
