// The questions of a test about a page's looks: the contrast of every text and drawing, what is cut off, and what is left empty.
(function () {
  "use strict";

  const shown = (element) => element.checkVisibility() && !element.closest(".unseen, .shapes, noscript");

  // Each text that can be seen, with its element and the rectangles of its lines.
  function texts() {
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
    while (walker.nextNode()) {
      const node = walker.currentNode;
      if (!node.data.trim() || !shown(node.parentElement)) continue;
      const range = document.createRange();
      range.selectNodeContents(node);
      found.push({ text: node.data.trim(), element: node.parentElement, box: range.getBoundingClientRect() });
    }
    return found;
  }

  function parts(colour) {
    const context = new OffscreenCanvas(1, 1).getContext("2d");
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    const [red, green, blue, alpha] = context.getImageData(0, 0, 1, 1).data;
    return [red, green, blue, alpha / 255];
  }

  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);

  function behind(element) {
    const layers = [];
    for (let at = element; at; at = at.parentElement) layers.push(parts(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((below, top) => over(top, below), parts("Canvas"));
  }

  function luminance(colour) {
    const [red, green, blue] = colour.slice(0, 3).map((value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : Math.pow((share + 0.055) / 1.055, 2.4);
    });
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  }

  function ratio(one, other) {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  }

  // The texts below 4.5:1, and the canvas labels, whose strongest pixel is below it.
  function faint() {
    const found = texts().map(({ text, element }) => {
      const ground = behind(element);
      return { text, ratio: ratio(over(parts(getComputedStyle(element).color), ground), ground) };
    });
    document.querySelectorAll("canvas").forEach((canvas) => {
      const ground = behind(canvas);
      const pixels = (left, width) => canvas.getContext("2d").getImageData(left * devicePixelRatio, 0, width * devicePixelRatio, canvas.height).data;
      const plot = canvas.parentNode.querySelector(".u-over"), end = plot.offsetLeft + plot.offsetWidth;
      const name = canvas.closest("[id]").id;
      found.push({ text: "the lines of " + name, ratio: strongest(pixels(plot.offsetLeft, plot.offsetWidth), ground) });
      found.push({ text: "the axis of " + name, ratio: strongest(pixels(end, canvas.clientWidth - end), ground) });
    });
    return found.filter((told) => told.ratio < 4.5).map((told) => told.text + ": " + told.ratio.toFixed(2));
  }

  function strongest(data, ground) {
    let most = 1;
    for (let at = 0; at < data.length; at += 4) {
      most = Math.max(most, ratio(over([data[at], data[at + 1], data[at + 2], data[at + 3] / 255], ground), ground));
    }
    return most;
  }

  // The texts that leave the window sideways, or an element that does not let them be scrolled to.
  function cutOff() {
    return texts().filter(({ element, box }) => {
      for (let at = element; at; at = at.parentElement) {
        const style = getComputedStyle(at), frame = at.getBoundingClientRect();
        if (style.overflowX === "auto" && at.tabIndex === 0) return false;
        const hides = style.overflowX !== "visible" || at.matches(".card, button, .chart");
        if (hides && (box.right > frame.right + 1 || box.left < frame.left - 1)) return true;
      }
      return box.right > innerWidth || box.left < 0;
    }).map(({ text }) => text);
  }

  // The largest share of each card's height, and of its width, in which there is nothing.
  function empty() {
    const told = {};
    document.querySelectorAll(".card").forEach((card) => {
      if (!shown(card)) return;
      const frame = card.getBoundingClientRect();
      const boxes = texts().filter(({ element }) => card.contains(element)).map(({ box }) => box)
        .concat(Array.from(card.querySelectorAll("canvas"), (canvas) => canvas.getBoundingClientRect()));
      told[card.querySelector("h2").textContent] = [
        widest(boxes, "top", "bottom", frame) / frame.height, widest(boxes, "left", "right", frame) / frame.width,
      ];
    });
    return told;
  }

  function widest(boxes, from, to, frame) {
    let reached = frame[from], gap = 0;
    boxes.filter((box) => box[from] < frame[to]).sort((one, other) => one[from] - other[from]).forEach((box) => {
      gap = Math.max(gap, box[from] - reached);
      reached = Math.max(reached, box[to]);
    });
    return Math.max(gap, frame[to] - reached);
  }

  // A picture's pixels that stand out from its corner, as text: two shapes that look alike have the same.
  function mask(picture, done) {
    const image = new Image();
    image.onload = () => {
      const context = new OffscreenCanvas(image.width, image.height).getContext("2d");
      context.drawImage(image, 0, 0);
      const data = context.getImageData(0, 0, image.width, image.height).data, ground = [data[0], data[1], data[2], 1];
      let text = "";
      for (let at = 0; at < data.length; at += 4) text += ratio([data[at], data[at + 1], data[at + 2], 1], ground) >= 3 ? "#" : ".";
      done(text);
    };
    image.src = "data:image/png;base64," + picture;
  }

  window.audit = { faint, cutOff, empty, mask };
}());
