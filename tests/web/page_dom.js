// Runs the page's script on as much of a browser as it needs: `node page_dom.js page.js`, answers on stdin as
// {path: body}; prints {id of an element: its text, cells by "|", rows by lines}.
"use strict";
const fs = require("fs");
const vm = require("vm");

class Element {
  constructor(tag) { this.tag = tag; this.children = []; this.own = ""; this.dataset = {}; this.hidden = false; }
  set textContent(text) { this.own = text; this.children = []; }
  get textContent() { return this.own + this.children.map((child) => child.textContent).join(this.tag === "tr" ? "|" : this.tag === "tbody" ? "\n" : " "); }
  get innerHTML() { return this.textContent; }
  append(...more) { this.children.push(...more); }
  replaceChildren(...all) { this.own = ""; this.children = all; }
  setAttribute() {}
  addEventListener() {}
}

const answers = JSON.parse(fs.readFileSync(0, "utf8"));
const found = {};
const document = {
  hidden: false, title: "",
  createElement: (tag) => new Element(tag),
  getElementById: (id) => (found[id] ??= new Element(["workers", "services", "jobs", "processes"].includes(id) ? "tbody" : "div")),
  querySelectorAll: () => [],
  addEventListener() {},
};
const fetch = async (path) => ({ ok: true, json: async () => answers[path.split("?")[0]] });
// Drawn once: what would come again after a second is told instead.
const setTimeout = () => {
  const texts = Object.fromEntries(Object.entries(found).map(([id, one]) => [id, one.textContent]));
  process.stdout.write(JSON.stringify({ ...texts, title: document.title }));
};
vm.runInNewContext(fs.readFileSync(process.argv[2], "utf8"), { document, fetch, setTimeout, console });
