/* How the search of the site ranks pages. These are Sphinx's own numbers, but for `score`, which decides between
   equals: somebody who searches mostly has a problem, and looks for figures or for the source by their names only. */
var PREFERENCES = [[/^docs\/troubleshooting$/, 4], [/^deploy\//, 2], [/benchmarks|CONTRIBUTING|architecture/, -2]];

/* The heading of a section. Sphinx shows the title of the page alone for a section that one of its phrases has found. */
function headingOf(file, anchor) {
  return Object.keys(Search._index.alltitles).find((title) =>
    Search._index.alltitles[title].some(([index, id]) => Search._index.filenames[index] === file && `#${id}` === anchor),
  );
}

var Scorer = {
  score: (result) => {
    const [page, title, anchor, , score, file, kind] = result;
    const heading = kind === "index" && headingOf(file, anchor);
    if (heading) result[1] = `${title} > ${heading}`;
    return PREFERENCES.reduce((sum, [pages, preference]) => (pages.test(page) ? sum + preference : sum), score);
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
