"use strict";
const feed = SSE("/sse", { channels: ["scores/north", "scores/south"] });
const state = document.getElementById("state");
const sources = {};

feed.on("message", ({ channel, json }) => {
  const body = document.querySelector(`[data-league="${channel.split("/")[1]}"] tbody`);
  body.replaceChildren(...json.map(({ game, home, away }) => {
    const row = document.createElement("tr");
    row.append(...[game, `${home} : ${away}`].map((text) => {
      const cell = document.createElement("td");
      cell.textContent = text;
      return cell;
    }));
    return row;
  }));
});
feed.on("sse.source", ({ channel, state }) => {
  sources[channel] = state;
  tell();
});
feed.on("sse.state", tell);

function tell() {
  const down = Object.keys(sources).filter((channel) => sources[channel] === "down");
  state.textContent = down.length ? `No scores now: ${down.join(", ")}` : feed.state === "live" ? "Live" : feed.reason;
}
