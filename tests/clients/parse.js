// Reads cases from standard input, a line of JSON each: the chunks of a stream's bytes, in base64. Prints for each what
// the embed script's parser gives and what the `eventsource-parser` package gives, fed in the same way.
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import vm from "node:vm";
import { createParser } from "eventsource-parser";

const window = { document: { querySelectorAll: () => [] } }; // what the script needs to load
const SSE = vm.runInNewContext(readFileSync(process.argv[2], "utf8"), { window }); // the value of its only statement

function own() {
  const result = { events: [], retries: [] };
  const decoder = new TextDecoder(); // takes one BOM off, as XMLHttpRequest's does (Encoding, "UTF-8 decode")
  const parser = new SSE.Parser(
    ({ type, data, id }) => result.events.push([type, data, id]),
    (milliseconds) => result.retries.push(milliseconds),
  );
  return { result, feed: (bytes) => parser.feed(decoder.decode(bytes, { stream: true })) };
}

function theirs() {
  const result = { events: [], retries: [] };
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true }); // this parser takes the BOM off by itself
  let last = "";
  const parser = createParser({
    // Its events have the id of their own block only. The standard's id buffer lasts from block to block, and a block
    // without data changes it too (WHATWG HTML 9.2.6, "dispatch the event", steps 1 and 2): onId tells of both.
    onId: (id) => (last = id),
    onEvent: ({ event, data }) => result.events.push([event ?? "message", data, last]),
    onRetry: (milliseconds) => result.retries.push(milliseconds),
  });
  return { result, feed: (bytes) => parser.feed(decoder.decode(bytes, { stream: true })) };
}

for await (const line of createInterface({ input: process.stdin })) {
  const parsers = [own(), theirs()];
  for (const chunk of JSON.parse(line)) parsers.forEach((parser) => parser.feed(Buffer.from(chunk, "base64")));
  console.log(JSON.stringify(parsers.map((parser) => parser.result)));
}
