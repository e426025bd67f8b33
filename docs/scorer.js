/* How the search of the site ranks pages. These are Sphinx's own numbers, but for `score`, which decides between equals:
   somebody who searches mostly has a problem, and looks for figures or for the source only by their names. */
var Scorer = {
  score: ([page, , , , score]) =>
    score + (page === "docs/troubleshooting" ? 4 : /^deploy\//.test(page) ? 2 : /benchmarks|CONTRIBUTING|architecture/.test(page) ? -2 : 0),
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
