// Reads a script on standard input and prints, a line each, what browsers of 2012 (IE 10, PhantomJS) lack of it.
import { readFileSync } from "node:fs";
import { parse } from "acorn";

// ECMA-262 5.1, 15.1: the globals, of which the script may use these; the page's own is `window`.
const GLOBALS = new Set(
  "Array Boolean Date Error Infinity JSON Math Number Object RegExp String TypeError decodeURIComponent encodeURIComponent undefined window".split(" "),
);
// Members of `root` that IE 10 has, and newer ones, each with the functions that ask for it or are behind that question.
const OLD = new Set(
  "SSE XMLHttpRequest addEventListener atob clearInterval clearTimeout console document localStorage navigator performance removeEventListener setInterval setTimeout".split(" "),
);
const NEW = {
  EventSource: ["open", "openEventSource"],
  BroadcastChannel: ["canShare", "Member"],
  AbortController: ["canShare", "Member"],
  Promise: ["Member", "elect"],
  locks: ["canShare", "Member", "elect"],
  content: ["getSource"],
  reportError: ["call"],
  currentScript: [],
  dataset: [],
  sendBeacon: [],
};
// Methods of ES2015 and later, of DOM 4 and later, and PhantomJS's missing `bind`.
const METHODS = new Set(
  ("bind includes startsWith endsWith padStart padEnd repeat codePointAt normalize matchAll replaceAll trimStart trimEnd at find findIndex " +
    "findLast copyWithin entries values flat flatMap assign fromEntries from of is getOwnPropertySymbols setPrototypeOf isInteger isNaN " +
    "isFinite parseFloat trunc sign allSettled closest matches prepend append remove replaceWith toggleAttribute getAttributeNames fetch").split(" "),
);

const program = parse(readFileSync(0, "utf8"), { ecmaVersion: 5, sourceType: "script", locations: true });
const faults = [];
const say = (node, text) => faults.push(`${node.loc.start.line}: ${text}`);

function children(node) {
  return Object.values(node).flat().filter((child) => child && typeof child.type === "string");
}

// ECMA-262 5.1, 10.5: what a function's code declares, wherever in it.
function declared(node, names) {
  if (node.type === "VariableDeclarator") names.add(node.id.name);
  if (node.type === "FunctionDeclaration") names.add(node.id.name);
  if (!node.type.startsWith("Function")) children(node).forEach((child) => declared(child, names));
  return names;
}

function scopeOf(node) {
  const names = new Set(["arguments", ...node.params.map((parameter) => parameter.name)]);
  if (node.id) names.add(node.id.name);
  children(node.body).forEach((child) => declared(child, names));
  return names;
}

function identifier(node, scopes) {
  if (scopes.some((names) => names.has(node.name)) || GLOBALS.has(node.name)) return;
  say(node, `${node.name} is neither declared nor of ES5`);
}

function assigned(target, scopes) {
  if (target.type === "Identifier" && !scopes.some((names) => names.has(target.name))) say(target, `${target.name} becomes a global`);
}

function member(node, owners) {
  const name = node.property.name;
  if (node.computed || node.object.name === "SSE") return; // SSE.EventSource is our own
  const ofRoot = node.object.type === "Identifier" && (node.object.name === "root" || node.object.name === "window");
  if (Object.hasOwn(NEW, name)) {
    if (!owners.some((owner) => NEW[name].includes(owner))) say(node, `${name} is used where nothing has asked for it`);
  } else if (ofRoot && !OLD.has(name)) say(node, `root.${name} is newer than 2012`);
}

function walk(node, scopes, owners, strict) {
  switch (node.type) {
    case "FunctionDeclaration":
    case "FunctionExpression":
      strict = strict || node.body.body.some((statement) => statement.directive === "use strict");
      if (!strict) say(node, "a function is not strict");
      walk(node.body, [...scopes, scopeOf(node)], [...owners, node.id?.name], strict);
      return;
    case "CatchClause":
      walk(node.body, [...scopes, new Set([node.param.name])], owners, strict);
      return;
    case "CallExpression":
      if (node.callee.type === "MemberExpression" && METHODS.has(node.callee.property.name)) {
        say(node, `.${node.callee.property.name}() is newer than ES5`);
      }
      break;
    case "AssignmentExpression":
      assigned(node.left, scopes);
      break;
    case "UpdateExpression":
      assigned(node.argument, scopes);
      break;
    case "ForInStatement":
      assigned(node.left, scopes);
      break;
    case "Identifier":
      identifier(node, scopes);
      return;
    case "MemberExpression":
      member(node, owners);
      walk(node.object, scopes, owners, strict);
      if (node.computed) walk(node.property, scopes, owners, strict);
      return;
    case "Property":
      walk(node.value, scopes, owners, strict);
      return;
    case "LabeledStatement":
      walk(node.body, scopes, owners, strict);
      return;
    case "BreakStatement":
    case "ContinueStatement":
      return;
  }
  children(node).forEach((child) => walk(child, scopes, owners, strict));
}

// At the top, every declaration would be a global: none is allowed.
program.body.forEach((statement) => declared(statement, new Set()).forEach((name) => say(statement, `${name} is a global`)));
walk(program, [], [], false);
faults.forEach((fault) => console.log(fault));
