// The drivers in Node: commands on standard input, reports on standard output, one JSON object a line; it ends with its input.
import { createInterface } from "node:readline";
import WebSocket from "../../npm/node_modules/ws/wrapper.mjs";

import { Drivers } from "./driver.mjs";

const { Chat } = await import(process.argv[2]);
const drivers = new Drivers(Chat, (report) => console.log(JSON.stringify(report)), WebSocket);

createInterface({ input: process.stdin })
  .on("line", (line) => drivers.do(JSON.parse(line)))
  .on("close", () => process.exit());
