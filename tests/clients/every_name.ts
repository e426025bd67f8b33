// Uses every name that docs/embedding.md gives, and some that there are not. It is compiled, and never run.
import SSE from "throughline";

declare function show(value: string | number | boolean | null): void;

const feed: SSE.Feed = SSE("https://push.example/sse", {
  channels: ["orders"],
  token: (use) => void fetch("/ticket").then((answer) => answer.text()).then(use),
  tokenUrl: "/ticket",
  replay: 10,
  credentials: true,
  share: false,
  heartbeat: 5,
  lastEventId: "orders=5-1",
});
feed
  .on("paid", (event) => show(event.json.number))
  .on("sse.event", (event: SSE.Event) => show(event.channel + event.id + event.type + event.data))
  .on("sse.reset", (reset) => show(reset.channel + reset.id + reset.reason + (reset.missed ?? 0)))
  .on("sse.end", (end) => show(end.channel + end.id + (end.reason === "done")))
  .on("sse.source", (source) => show(source.channel + (source.state === "down")))
  .on("sse.auth", (told) => show(told.expires))
  .on("sse.state", (told) => show(told.channels[0] + told.state));
const listener = (event: SSE.Event) => show(event.data);
feed.on("paid", listener);
feed.off("paid", listener);
const states: SSE.State[] = ["connecting", "live", "polling", "waiting", "closed"];
show(states.includes(feed.state));
for (const value of [feed.reason, feed.transport, feed.shared, feed.tabs, feed.lastEventId]) show(value);
show(feed.text("orders"));
feed.close();

SSE({ view: "/inbox/events?folder=1", tokenUrl: "/ticket", share: false }).on("paid", (event) => show(event.data));
SSE("/sse", { channels: "orders stock", token: "a ticket" });
new SSE.EventSource("/sse/stream?channel=orders", { withCredentials: true }).onmessage = (event) => show(event.data);
new SSE.Parser((block) => show(block.type + block.data + block.id), (milliseconds) => show(milliseconds)).feed("data: 1\n\n");
show(SSE.version);
SSE.start();
SSE.noConflict()("/sse", { channels: "orders" });
window.SSE("/sse", { channels: "orders" });
(document.documentElement as HTMLHtmlElement).sse?.start();
const tag = document.querySelector<HTMLScriptElement>("script[data-channels]");
tag?.sse?.close();
tag?.addEventListener("sse:paid", (event) => show(event.detail.id));
tag?.addEventListener("sse-state", (event) => show(event.detail.tabs));
tag?.addEventListener("click", (event) => show(event.clientX));
document.addEventListener("sse:paid", (event) => show(event.detail.json.number));
document.addEventListener("sse-state", (event) => show(event.detail.state));
document.addEventListener("sse-reset", (event) => show(event.detail.missed));
document.addEventListener("sse-source", (event) => show(event.detail.state));
document.addEventListener("sse-end", (event) => show(event.detail.reason));
document.addEventListener("sse-auth", (event) => show(event.detail.expires));
document.addEventListener("click", (event) => show(event.clientX));

// @ts-expect-error: it is `channels`
SSE("/sse", { channel: ["orders"] });
// @ts-expect-error: they have to be named
SSE("/sse");
// @ts-expect-error: a view chooses its channels
SSE({ view: "/inbox/events", channels: ["orders"] });
// @ts-expect-error: there is no such reason
feed.on("sse.end", (end) => show(end.reason === "over"));
// @ts-expect-error: a feed is told, and does not listen
feed.state = "live";
// @ts-expect-error: there is no such state
show(feed.state === "open");
// @ts-expect-error: a reset has no data
feed.on("sse.reset", (reset) => show(reset.data));
// @ts-expect-error: nor has a state
document.addEventListener("sse-state", (event) => show(event.detail.data));
