// Tells the page's origin every 300 ms what the page sees, and does what the answer asks for. ES5: every engine runs it.
// page.state: an object; page.logs: arrays by name that only grow; page.commands: functions by name.
var page = {state: {}, logs: {errors: []}, commands: {}, parameters: {}};

location.search.slice(1).split("&").forEach(function (pair) {
  var parts = pair.split("=");
  page.parameters[decodeURIComponent(parts[0])] = decodeURIComponent((parts[1] || "").replace(/\+/g, " "));
});

window.onerror = function (message, file, line) {
  page.logs.errors.push(message + " (" + file + ":" + line + ")");
};

(function () {
  var told = {};

  function report() {
    var xhr = new XMLHttpRequest(), logs = {}, reached = {};
    Object.keys(page.logs).forEach(function (name) {
      var start = told[name] || 0;
      logs[name] = [start, page.logs[name].slice(start)];
      reached[name] = page.logs[name].length;
    });
    xhr.open("POST", "/report");
    xhr.timeout = 5000;
    xhr.onloadend = function () {
      setTimeout(report, 300);
    };
    xhr.onload = function () {
      told = reached;
      JSON.parse(xhr.responseText).forEach(function (command) {
        page.commands[command[0]](command[1]);
      });
    };
    xhr.send(JSON.stringify({name: page.parameters.name, state: page.state, logs: logs}));
  }

  setTimeout(report, 0);
})();
