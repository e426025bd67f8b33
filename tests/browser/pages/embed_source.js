// A page's own script as it is written for EventSource. It is told which constructor to take, and logs what it sees.
function follow(Source, url, log) {
  var source = new Source(url, {withCredentials: true});

  function note(event) {
    log.push({
      type: event.type,
      data: event.data,
      places: event.lastEventId ? event.lastEventId.split("~").sort() : event.lastEventId,
      first: event.lastEventId && event.lastEventId.split("~")[0],
      origin: event.origin,
      targets: [event.target === source, event.currentTarget === source, this === source],
      readyState: source.readyState
    });
  }

  function removed() {
    log.push("a removed listener is called");
  }

  log.push([source.CONNECTING, source.OPEN, source.CLOSED, Source.CONNECTING, Source.OPEN, Source.CLOSED]);
  log.push([source.readyState, source.url, source.withCredentials, source instanceof Source]);
  log.push([source.onopen, source.onmessage, source.onerror]);
  source.onopen = function () {
    log.push("open " + source.readyState);
  };
  source.onerror = function () {
    log.push("error " + source.readyState);
  };
  source.onmessage = function (event) {
    note.call(this, event);
    if (event.data === "throw") throw new Error("thrown by a handler");
  };
  source.addEventListener("message", function (event) {
    log.push("second listener: " + event.data);
  });
  source.addEventListener("created", note);
  source.addEventListener("created", note); // once is enough
  source.addEventListener("sse.reset", note);
  source.addEventListener("created", removed);
  source.removeEventListener("created", removed);
  source.removeEventListener("created", follow); // was never there
  source.addEventListener("created", {
    handleEvent: function (event) {
      log.push("object: " + event.data);
    }
  });
  source.addEventListener("message", function (event) {
    log.push("once: " + event.data);
  }, {once: true});
  source.addEventListener("open", function (event) {
    log.push("listener of " + event.type);
  });
  source.addEventListener("error", function (event) {
    log.push("listener of " + event.type);
  });
  return source;
}
