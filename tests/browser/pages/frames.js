// Makes ?count frames with one feed each, with the attribute `sandbox` if ?sandbox says how, and reports what each hears.
(function () {
  var given = page.parameters, query = "?script=" + encodeURIComponent(given.script) + "&url=" + encodeURIComponent(given.url);

  function add(number) {
    var frame = document.createElement("iframe");
    page.state[number] = {};
    page.logs[number + " events"] = [];
    page.logs[number + " states"] = [];
    if (given.sandbox) frame.setAttribute("sandbox", given.sandbox);
    frame.src = "frame.html" + query + "&number=" + number;
    document.documentElement.appendChild(frame);
  }

  addEventListener("message", function (event) {
    var told = JSON.parse(event.data), log = page.logs[told.number + " " + told.kind];
    if (told.kind === "error") page.logs.errors.push(told.what);
    else log.push(told.what);
    if (told.kind === "states") page.state[told.number] = told.what;
  });

  // A request to the service's host beside those of the feeds: it needs a connection of its own.
  page.commands.request = function (url) {
    var xhr = new XMLHttpRequest();
    page.state.answered = false;
    xhr.open("GET", url);
    xhr.onloadend = function () {
      page.state.answered = true;
    };
    xhr.send();
  };

  for (var number = 0; number < given.count; number += 1) add(number);
})();
