// Collects in `heard` each text that enters a live region, in order: a screen reader says these by itself.
(function () {
  "use strict";

  const LIVE = "[aria-live]:not([aria-live=off]), [role=status], [role=alert], [role=log]";
  window.heard = [];
  new MutationObserver((changes) => {
    changes.forEach((change) => {
      const element = change.target.nodeType === 1 ? change.target : change.target.parentElement;
      if (!element || !element.closest(LIVE)) return;
      const added = change.type === "characterData" ? [change.target] : Array.from(change.addedNodes);
      added.filter((node) => node.textContent.trim()).forEach((node) => window.heard.push(node.textContent.trim()));
    });
  }).observe(document, { childList: true, characterData: true, subtree: true });
}());
