// What a test does with the client of chatx, in Node and in Chromium: commands in, reports out. tests/clients/proof/drivers.py
// is the other end.
//
// A client may be spoiled, to show that the proof finds it: `keyless` sends its messages without their keys, `forgetful` does
// not know where it stood when it comes back, `disorderly` tells what it hears a little later, each as long as it likes.
const keyless = (WebSocket) =>
  class extends WebSocket {
    send(text) {
      const frame = JSON.parse(text);
      if (frame[3] === "new_message") delete frame[4].key;
      super.send(JSON.stringify(frame));
    }
  };

export class Drivers {
  #Chat;
  #report;
  #WebSocket;
  #rooms = new Map();

  constructor(Chat, report, WebSocket) {
    this.#Chat = Chat;
    this.#report = report;
    this.#WebSocket = WebSocket;
  }

  do({ command, ...fields }) {
    this[command](fields);
  }

  join({ client, url, rooms, history, polls, spoiled }) {
    const sockets = { WebSocket: polls ? null : this.#WebSocket };
    if (spoiled === "keyless") Object.assign(sockets, { WebSocket: keyless(this.#WebSocket), fetch: null });
    const chat = new this.#Chat(url, { params: { user_id: client }, outbox: { messages: 1000 }, ...sockets });
    for (const id of rooms) {
      const report = (fields) => this.#report({ client, room: id, ...fields });
      const room = chat.room(id, { history });
      this.#rooms.set(`${client} ${id}`, { room, report });
      room.on("message", (message) => {
        if (spoiled === "disorderly") setTimeout(() => report({ message }), Math.random() * 1000);
        else report({ message });
      });
      room.on("gap", (gap) => report({ gap }));
      room.on("state", (state, { error }) => {
        report({ state, why: error && `${error}` });
        if (spoiled === "forgetful" && state === "waiting")
          queueMicrotask(() => {
            room.leave();
            room.join().catch(() => {});
          });
      });
      room.join().catch((error) => report({ refused: `${error}` }));
    }
  }

  send({ client, room: id, content }) {
    const { room, report } = this.#rooms.get(`${client} ${id}`);
    room.send(content).then(
      ({ id, epoch, offset }) => report({ sent: { content, id, epoch, offset } }),
      ({ code }) => report({ failed: { content, code, published: code === "unknown" ? null : false } }),
    );
  }
}
