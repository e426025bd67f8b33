// One feed, which tells the page around it what it hears.
(function () {
  var given = {}, script = document.createElement("script");

  location.search.slice(1).split("&").forEach(function (pair) {
    var at = pair.indexOf("=");
    given[pair.slice(0, at)] = decodeURIComponent(pair.slice(at + 1));
  });

  function tell(kind, what) {
    parent.postMessage(JSON.stringify({number: given.number, kind: kind, what: what}), "*");
  }

  window.onerror = function (message) {
    tell("error", message);
  };

  script.onload = function () {
    var feed = SSE(given.url, {channels: ["frames"], replay: 1});
    feed.on("sse.event", function (event) {
      tell("events", event.json);
    });
    feed.on("sse.state", function (told) {
      tell("states", {state: told.state, reason: told.reason, transport: told.transport, shared: told.shared});
    });
  };
  script.src = given.script;
  document.documentElement.appendChild(script);
})();
