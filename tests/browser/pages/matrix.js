// One feed for each cell, {name: url}, from the moment that `start` is commanded. ?without=EventSource: this browser has none.
(function () {
  var missing = page.parameters.without, script = document.createElement("script");
  if (missing) {
    delete window[missing];
    if (window[missing]) window[missing] = undefined;
  }
  script.onload = function () {
    page.state.ready = true;
    page.state.without = window[missing] ? "" : missing;
  };
  script.src = page.parameters.script;
  document.documentElement.appendChild(script);

  function follow(name, url) {
    var began = Date.now(), cell = page.state[name] = {first: null, transport: "", state: "", reason: ""};
    var feed = SSE(url, {channels: ["matrix"], replay: 1});
    page.logs[name + " events"] = [];
    page.logs[name + " states"] = [];
    page.logs[name + " resets"] = [];
    feed.on("sse.event", function (event) {
      if (cell.first === null) cell.first = Date.now() - began;
      page.logs[name + " events"].push([event.type, event.data]);
    });
    feed.on("sse.state", function (state) {
      ["state", "reason", "transport"].forEach(function (key) {
        cell[key] = feed[key];
      });
      page.logs[name + " states"].push([Date.now() - began, state.state, state.transport, state.reason]);
    });
    feed.on("sse.reset", function (reset) {
      page.logs[name + " resets"].push(reset);
    });
  }

  page.commands.start = function (cells) {
    Object.keys(cells).forEach(function (name) {
      follow(name, cells[name]);
    });
  };
})();
