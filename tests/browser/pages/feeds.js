// The commands of a test: feeds by name, {name: {url, channels, …}}; a browser's own EventSource by name, {name: url};
// and rounds: so many times this page is left for away.html and come back to, each time as soon as all feeds deliver.
// The logs have each event's data by its name, and when it came. ?without=EventSource: this browser has none.
(function () {
  var feeds = {}, natives = [], left = 0;

  if (page.parameters.without) window[page.parameters.without] = undefined;
  page.logs.shows = [];
  addEventListener("pageshow", function (event) {
    page.logs.shows.push(event.persisted);
  });

  function log(name) {
    var events = page.logs[name] = [], times = page.logs[name + " times"] = [], began = Date.now();
    return function (event) {
      events.push(JSON.parse(event.data));
      times.push((Date.now() - began) / 1000);
    };
  }

  function delivers(name) {
    return feeds[name].state === "live" || feeds[name].state === "polling";
  }

  page.commands.start = function (given) {
    Object.keys(given).forEach(function (name) {
      var states = page.logs[name + " states"] = [], resets = page.logs[name + " resets"] = [];
      feeds[name] = SSE(given[name].url, given[name]);
      feeds[name].on("sse.event", log(name));
      feeds[name].on("sse.state", function (told) {
        states.push([told.state, told.reason, told.transport]);
      });
      feeds[name].on("sse.reset", function (reset) {
        resets.push(reset);
      });
    });
  };

  page.commands.native = function (given) {
    Object.keys(given).forEach(function (name) {
      natives.push(new EventSource(given[name]));
      natives[natives.length - 1].addEventListener("message", log(name));
    });
  };

  page.commands.close = function () {
    Object.keys(feeds).forEach(function (name) {
      feeds[name].close();
    });
    natives.forEach(function (source) {
      source.close();
    });
    feeds = {};
    natives = [];
  };

  page.commands.rounds = function (count) {
    left = count;
  };

  setInterval(function () {
    var settled = Object.keys(feeds).every(delivers);
    page.state = {ready: true, rounds: left, settled: settled};
    if (!left || !settled) return;
    left -= 1;
    location.href = "away.html";
  }, 100);
})();
