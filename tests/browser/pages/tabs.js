// Feeds by name, and what each was told, with the moment.
var feeds = {}, events = {}, states = {}, resets = {}, ends = {}, shows = [], errors = [];

onerror = function (message) { errors.push(message); };
addEventListener("pageshow", function (event) { shows.push(event.persisted); });

function start(name, url, options) {
  var feed = feeds[name] = SSE(url, options);
  events[name] = [];
  states[name] = [];
  resets[name] = [];
  ends[name] = [];
  feed.on("sse.event", function (event) { events[name].push([Date.now(), event.channel, event.json, event.id]); });
  feed.on("sse.reset", function (reset) { resets[name].push(reset); });
  feed.on("sse.end", function (end) { ends[name].push([end.channel, end.reason, end.id]); });
  feed.on("sse.state", function (told) {
    states[name].push([Date.now(), told.state, told.reason, told.transport, told.shared, told.tabs]);
  });
}

// Whether this tab holds the lock of those that share: a lock of its own for a moment tells which client it is.
function leads() {
  return navigator.locks.request("who am I " + Math.random(), function (own) {
    return navigator.locks.query().then(function (locks) {
      var me = locks.held.filter(function (lock) { return lock.name === own.name; })[0].clientId;
      return locks.held.some(function (lock) { return lock.clientId === me && lock.name.indexOf("sse ") === 0; });
    });
  });
}

function burn(milliseconds) {
  var end = performance.now() + milliseconds;
  while (performance.now() < end);
}
