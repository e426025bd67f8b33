// Writes down what a page with the embed script sees. It has to stand before the script.
var seen = {events: [], states: [], resets: [], violations: [], errors: [], globals: null};
var ran = 0; // by what an event brought: never

document.addEventListener("securitypolicyviolation", function (e) {
  seen.violations.push(e.violatedDirective + " " + e.blockedURI);
});
window.addEventListener("error", function (e) {
  seen.errors.push(e.message);
});
document.addEventListener("sse:message", function (e) {
  seen.events.push(e.detail);
});
document.addEventListener("sse:created", function (e) {
  seen.events.push(e.detail);
});
document.addEventListener("sse-state", function (e) {
  seen.states.push(e.detail);
});
document.addEventListener("sse-reset", function (e) {
  seen.resets.push(e.detail);
});

function tags() {
  return Array.from(document.querySelectorAll("script[data-channels]"));
}

function allLive() {
  return tags().every(function (tag) {
    return tag.sse && tag.sse.state === "live";
  });
}

function fail() {
  throw new Error("thrown by a listener");
}

seen.globals = Object.getOwnPropertyNames(window);
