"use strict";
// The address of the page names the answer, so a reload, another tab or another device shows the same one.
const [form, output, state, stop] = ["ask", "answer", "state", "stop"].map((id) => document.getElementById(id));
const words = { done: "Done.", stopped: "Stopped.", failed: "Something went wrong.", lost: "The writer is gone.",
  interrupted: "The service was restarted." };
let feed;

function show(answer) {
  if (feed) feed.close();
  output.textContent = "";
  state.textContent = "Writing…";
  feed = SSE({ view: `/answers/${answer}` });
  feed.on("text", (event) => output.append(event.data));
  feed.on("sse.reset", () => output.textContent = "");
  feed.on("sse.end", (event) => end(words[event.reason]));
  stop.disabled = false;
  stop.onclick = () => fetch(`/answers/${answer}/stop`, { method: "POST" });
}

function end(word) {
  state.textContent = word;
  stop.disabled = true;
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const { answer } = await (await fetch("/ask", { method: "POST", body: new FormData(form) })).json();
  location.hash = answer;
});
addEventListener("hashchange", () => show(location.hash.slice(1)));
if (location.hash) show(location.hash.slice(1));
