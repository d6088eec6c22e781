// Drivers in Node: commands on standard input, reports on standard output, one JSON object a line. Each names its peer, a
// number; a driver begins with its first command, and ends with `forget`.
import { createInterface } from "node:readline";
import WebSocket from "ws";

import { Driver } from "./driver.mjs";

const drivers = new Map();

function driverOf(peer) {
  if (!drivers.has(peer)) {
    // Node has no WebSocket of its own before version 22.
    drivers.set(peer, new Driver((report) => console.log(JSON.stringify({ peer, ...report })), WebSocket));
  }
  return drivers.get(peer);
}

createInterface({ input: process.stdin })
  .on("line", (line) => {
    const { peer, ...command } = JSON.parse(line);
    if (command.command === "forget") {
      drivers.get(peer)?.do({ command: "disconnect" });
      drivers.delete(peer);
    } else {
      driverOf(peer).do(command);
    }
  })
  .on("close", () => process.exit());
