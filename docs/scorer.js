/* How the search of the site ranks pages. These are Sphinx's own numbers, but for `score`, which decides between
   equals: somebody who searches mostly has a problem, and looks for figures or for the source by their names only. */
var PREFERENCES = [[/^docs\/troubleshooting$/, 4], [/^deploy\//, 2], [/benchmarks|CONTRIBUTING|architecture/, -2]];
var Scorer = {
  score: ([page, , , , score]) =>
    PREFERENCES.reduce((sum, [pages, preference]) => (pages.test(page) ? sum + preference : sum), score),
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
