// For browsers that know no modules, in their language (ES5): the state, the messages, and why there is no more.
(function () {
  "use strict";

  var words = { connecting: "Connecting", live: "Live", polling: "Polling", waiting: "Waiting", closed: "Closed" };
  var heard = 0, feed;

  function byId(id) {
    return document.getElementById(id);
  }

  function show() {
    byId("state").textContent = words[feed.state] || "Connecting";
    byId("reason").textContent = feed.reason || "–";
    byId("tabs").textContent = feed.shared ? feed.tabs + " share one connection" : "each on its own";
  }

  function hear(event) {
    var item;
    heard += 1;
    byId("count").textContent = heard;
    byId("last").textContent = feed.lastEventId;
    if (event.channel !== "demo/hello") return;
    item = document.createElement("li");
    item.textContent = event.data;
    byId("events").removeAttribute("hidden");
    byId("events").insertBefore(item, byId("events").firstChild);
  }

  byId("old").removeAttribute("hidden");
  ["breaks", "changes", "machine", "copy"].forEach(function (id) {
    byId(id).setAttribute("hidden", "");
  });
  ["delay", "reconnects", "missed", "repeated", "resets"].forEach(function (id) {
    byId(id).parentNode.setAttribute("hidden", "");
  });
  byId("command").textContent = 'curl -d "hello" -H "Authorization: Bearer $THROUGHLINE_KEY" ' +
    location.href.replace(/[^\/]*([?#].*)?$/, "") + "sse/publish/demo/hello";
  if (!window.SSE) {
    byId("state").textContent = "sse/sse.js has not been loaded";
    return;
  }
  feed = SSE("sse", { channels: ["demo/machine", "demo/hello"], replay: 50, heartbeat: 5 });
  feed.on("sse.state", show);
  feed.on("sse.event", hear);
}());
