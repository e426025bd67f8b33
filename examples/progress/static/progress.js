"use strict";
const [bar, log, state, start, stop] = ["bar", "log", "state", "start", "stop"].map((id) => document.getElementById(id));
let feed;

function follow(job) {
  if (feed) feed.close();
  log.textContent = "";
  bar.value = 0;
  state.textContent = "Running…";
  feed = SSE({ view: `/jobs/${job}` });
  feed.on("text", (event) => log.append(event.data));
  feed.on("progress", ({ json }) => bar.value = json.done / json.of);
  feed.on("sse.reset", () => log.textContent = "");
  feed.on("sse.end", ({ reason }) => {
    state.textContent = `The job has ended: ${reason}.`;
    stop.disabled = true;
  });
  stop.disabled = false;
  stop.onclick = () => fetch(`/jobs/${job}/stop`, { method: "POST" });
}

start.onclick = async () => location.hash = (await (await fetch("/jobs", { method: "POST" })).json()).job;
addEventListener("hashchange", () => follow(location.hash.slice(1)));
if (location.hash) follow(location.hash.slice(1));
