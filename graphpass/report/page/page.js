"use strict";
// One page about a run. All text comes from a model or a report and goes in as text, never as HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const MOST_VISIBLE = 400; // boxes in one picture; more take the browser seconds
const FIRST_VISIBLE = 45;
const LABEL = 12; // pixels above the boxes of an open group, for its name

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  return fill(element, attributes, children);
}
function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}
function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return element;
}
function shortened(text, length) {
  return text.length <= length ? text : text.slice(0, length / 2 - 1) + "…" + text.slice(-length / 2);
}
function table(target, header, rows, numbers = []) {
  const cell = (tag, value, index) =>
    make(tag, numbers.includes(index) ? { class: "number" } : {}, value);
  target.append(make("thead", {}, make("tr", {}, ...header.map((v, i) => cell("th", v, i)))));
  target.append(make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((v, i) => cell("td", v, i))))));
}
function hideUnless(condition, id) {
  if (!condition) $(id).hidden = true;
}

// ------------------------------------------------------------------------------------ the graphs

/** A graph as a tree of groups over its nodes; groups of both sides share what is open. */
class Side {
  constructor(graph, kind, touched) {
    this.graph = graph;
    this.kind = kind;
    this.touched = touched; // label -> numbers of rewrites
    this.root = { path: "", name: "", groups: new Map(), nodes: [], count: 0, marks: 0 };
    this.maker = new Map();
    graph.nodes.forEach((node, index) => {
      node.index = index;
      node.marks = touched.get(node.label) || [];
      let group = this.root;
      this.counted(group, node);
      for (const name of node.group) {
        const path = group.path + "/" + name;
        if (!group.groups.has(name)) {
          group.groups.set(name, { path, name, groups: new Map(), nodes: [], count: 0, marks: 0, parent: group });
        }
        group = group.groups.get(name);
        this.counted(group, node);
      }
      group.nodes.push(node);
      node.parent = group;
      for (const tensor of node.outputs) this.maker.set(tensor, node);
    });
    this.byLabel = new Map(graph.nodes.map((node) => [node.label, node]));
    this.scroll = make("div", { class: "scroll" });
    this.element = make("figure", {}, make("figcaption", {}, `${kind}: ${graph.nodes.length.toLocaleString("en")} nodes`), this.scroll);
  }
  counted(group, node) {
    group.count += 1;
    if (node.marks.length) group.marks += 1; // how many nodes inside a rewrite touched
  }
  /** What stands for `node` in the picture: itself, or the outermost closed group around it. */
  shown(node, open) {
    let found = node;
    for (let group = node.parent; group.parent; group = group.parent) {
      if (!open.has(group.path)) found = group;
    }
    return found;
  }
  visibleCount(open) {
    const count = (group) =>
      group.nodes.length + [...group.groups.values()].reduce((sum, inner) => sum + (open.has(inner.path) ? count(inner) : 1), 0);
    return count(this.root);
  }
  render(open, selected) {
    const layout = new dagre.graphlib.Graph({ compound: true, multigraph: false });
    layout.setGraph({ ranksep: 30, nodesep: 16, marginx: 10, marginy: 10 });
    layout.setDefaultEdgeLabel(() => ({}));
    const key = (item) => (item.index === undefined ? "g" + item.path : "n" + item.index);
    const items = new Map();
    const place = (group, parent) => {
      for (const inner of group.groups.values()) {
        const id = key(inner);
        items.set(id, inner);
        if (open.has(inner.path)) {
          layout.setNode(id, { label: inner.name });
          place(inner, id);
        } else {
          layout.setNode(id, { width: 150, height: 36 });
        }
        if (parent) layout.setParent(id, parent);
      }
      for (const node of group.nodes) {
        const id = key(node);
        items.set(id, node);
        layout.setNode(id, { width: 150, height: node.shape ? 36 : 24 });
        if (parent) layout.setParent(id, parent);
      }
    };
    place(this.root, null);
    const end = (name, kind) => {
      const id = kind + name;
      if (!items.has(id)) {
        items.set(id, { end: name });
        layout.setNode(id, { width: 130, height: 24 });
      }
      return id;
    };
    const inputs = new Map(this.graph.inputs.map((value) => [value[0], value[1]]));
    for (const node of this.graph.nodes) {
      const to = key(this.shown(node, open));
      for (const tensor of node.inputs) {
        const source = this.maker.get(tensor);
        if (source) {
          const from = key(this.shown(source, open));
          if (from !== to) layout.setEdge(from, to);
        } else if (inputs.has(tensor)) {
          layout.setEdge(end(tensor, "i"), to);
        }
      }
    }
    for (const [name] of this.graph.outputs) {
      const source = this.maker.get(name);
      if (source) layout.setEdge(key(this.shown(source, open)), end(name, "o"));
    }
    dagre.layout(layout);
    const size = layout.graph();
    const [width, height] = [size.width || 10, size.height || 10];
    this.width = width;
    const picture = draw("svg", {
      width: width * view.zoom, height: height * view.zoom, viewBox: `0 0 ${width} ${height}`,
      role: "img", "aria-label": `graph ${this.kind}`,
    });
    const ids = layout.nodes().sort((a, b) => (open.has(items.get(a)?.path) ? 0 : 1) - (open.has(items.get(b)?.path) ? 0 : 1));
    for (const edge of layout.edges()) {
      picture.append(draw("path", { class: "edge", d: curve(layout.edge(edge).points) }));
    }
    for (const id of ids) {
      const box = this.box(items.get(id), layout.node(id), open, selected);
      if (box) picture.append(box);
    }
    const [left, top] = [this.scroll.scrollLeft, this.scroll.scrollTop];
    this.scroll.replaceChildren(picture);
    const chosen = picture.querySelector(".selected");
    if (chosen) {
      const [x, y] = chosen.dataset.at.split(",").map((at) => Number(at) * view.zoom);
      this.scroll.scrollTo(x - this.scroll.clientWidth / 2, y - this.scroll.clientHeight / 2);
    } else if (left || top) {
      this.scroll.scrollTo(left, top);
    } else {
      const first = layout.nodes().find((id) => items.get(id)?.end !== undefined);
      const x = first === undefined ? width / 2 : layout.node(first).x;
      this.scroll.scrollTo(x * view.zoom - this.scroll.clientWidth / 2, 0);
    }
  }
  box(item, at, open, selected) {
    const corner = { x: at.x - at.width / 2, y: at.y - at.height / 2 };
    const rect = draw("rect", { x: corner.x, y: corner.y, width: at.width, height: at.height, rx: 6 });
    if (item.end !== undefined) {
      const text = draw("text", { x: at.x, y: at.y + 4, "text-anchor": "middle" }, shortened(item.end, 20));
      return draw("g", { class: "end" }, rect, text);
    }
    const isGroup = item.index === undefined;
    if (isGroup && open.has(item.path)) {
      rect.setAttribute("y", corner.y - LABEL);
      rect.setAttribute("height", at.height + LABEL);
      const text = draw("text", { x: corner.x + 6, y: corner.y + 1 }, "▾ " + shortened(item.name, Math.floor(at.width / 7)));
      const close = () => view.toggle(item.path);
      return draw("g", { class: "cluster", onclick: close }, rect, text);
    }
    const marked = isGroup ? item.marks > 0 : item.marks.length > 0;
    const kind = isGroup ? "group" : item.kind;
    const names = ["node", kind, marked ? "touched " + this.kind : "", !isGroup && item.label === selected ? "selected" : ""];
    const second = isGroup ? `${item.count} nodes${item.marks ? `, ${item.marks} ${data.alone ? "only here" : "rewritten"}` : ""}` : item.shape;
    const title = isGroup ? "▸ " + shortened(item.name, 22) : item.op;
    const act = () => (isGroup ? view.toggle(item.path) : view.select(item.label));
    const box = draw("g", {
      class: names.filter(Boolean).join(" "), tabindex: 0, role: "button", "data-at": `${at.x},${at.y}`,
      onclick: act, onkeydown: (event) => { if (event.key === "Enter") act(); },
    }, draw("title", {}, isGroup ? item.path.slice(1) : item.label), rect);
    box.append(draw("text", { x: at.x, y: second ? at.y - 2 : at.y + 4, "text-anchor": "middle" }, title));
    if (second) box.append(draw("text", { class: "soft", x: at.x, y: at.y + 12, "text-anchor": "middle" }, shortened(second, 26)));
    return box;
  }
}

function curve(points) {
  let path = `M${points[0].x},${points[0].y}`;
  for (let i = 1; i < points.length - 1; i++) {
    const [here, next] = [points[i], points[i + 1]];
    const end = i === points.length - 2 ? next : { x: (here.x + next.x) / 2, y: (here.y + next.y) / 2 };
    path += `Q${here.x},${here.y} ${end.x},${end.y}`;
  }
  if (points.length === 2) path += `L${points[1].x},${points[1].y}`;
  return path;
}

const view = {
  open: new Set(),
  selected: null,
  sides: [],
  zoom: 0.85,
  zoomBy(factor) {
    this.zoom = Math.min(3, Math.max(0.2, this.zoom * factor));
    this.render();
  },
  start(graphs) {
    const labels = (which) => {
      const found = new Map((data.alone ? data.alone[which === "before" ? 0 : 1] : []).map((label) => [label, [0]]));
      for (const rewrite of data.rewrites) {
        for (const label of rewrite[which]) {
          if (!found.has(label)) found.set(label, []);
          found.get(label).push(rewrite.number);
        }
      }
      return found;
    };
    this.sides = graphs.map((graph, i) => new Side(graph, ["before", "after"][i], labels(["before", "after"][i])));
    $("graphs").append(...this.sides.map((side) => side.element));
    this.openFirst();
    this.render();
    this.fit(0.7, this.zoom);
  },
  /** Zoom so that the wider graph fits its frame, as far as it stays readable. */
  fit(least, most) {
    const ratio = (side) => side.scroll.clientWidth / side.width;
    this.zoom = Math.min(most, Math.max(least, Math.min(...this.sides.map(ratio))));
    for (const side of this.sides) side.scroll.scrollTo(0, 0);
    this.render();
  },
  openFirst() {
    // breadth first, as long as the picture stays readable
    const queue = this.sides.flatMap((side) => [...side.root.groups.values()].map((group) => [side, group]));
    while (queue.length) {
      const [side, group] = queue.shift();
      if (this.open.has(group.path)) continue;
      this.open.add(group.path);
      if (this.sides.some((s) => s.visibleCount(this.open) > FIRST_VISIBLE)) {
        this.open.delete(group.path);
        continue;
      }
      queue.push(...[...group.groups.values()].map((inner) => [side, inner]));
    }
  },
  fits(open) {
    return this.sides.every((side) => side.visibleCount(open) <= MOST_VISIBLE);
  },
  toggle(path) {
    if (this.open.has(path)) {
      for (const other of [...this.open]) if (other === path || other.startsWith(path + "/")) this.open.delete(other);
    } else {
      const wider = new Set([...this.open, path]);
      if (!this.fits(wider)) {
        $("found").value = `more than ${MOST_VISIBLE} boxes: close a group first`;
        return;
      }
      this.open = wider;
    }
    this.render();
  },
  reveal(node) {
    if (!node) return;
    const path = [];
    for (let group = node.parent; group.parent; group = group.parent) path.push(group.path);
    const wider = new Set([...this.open, ...path]);
    this.open = this.fits(wider) ? wider : new Set(path);
  },
  select(label) {
    this.selected = label;
    const nodes = this.sides.map((side) => side.byLabel.get(label));
    nodes.forEach((node) => this.reveal(node));
    this.render();
    detail(nodes.find(Boolean));
  },
  showRewrite(rewrite) {
    const [before, after] = this.sides;
    const first = [...rewrite.before.map((l) => before.byLabel.get(l)), ...rewrite.after.map((l) => after.byLabel.get(l))].filter(Boolean);
    first.forEach((node) => this.reveal(node));
    this.selected = first.length ? first[0].label : null;
    this.render();
    detailOfRewrite(rewrite);
    $("graphs-section").scrollIntoView({ behavior: "smooth" });
  },
  showTouched() {
    for (const side of this.sides) {
      for (const node of side.graph.nodes) {
        if (!node.marks.length) continue;
        const wider = new Set(this.open);
        for (let group = node.parent; group.parent; group = group.parent) wider.add(group.path);
        if (this.fits(wider)) this.open = wider;
      }
    }
    this.render();
  },
  fold() {
    this.open = new Set();
    this.selected = null;
    this.render();
  },
  render() {
    for (const side of this.sides) side.render(this.open, this.selected);
  },
};

function detail(node) {
  if (!node) return;
  const lines = [make("h3", {}, node.label)];
  if (node.type) lines.push(make("p", {}, "gives " + node.type));
  if (node.weights.length) lines.push(make("p", {}, "weights: " + node.weights.join(", ")));
  if (node.attributes.length) lines.push(make("p", {}, node.attributes.join(", ")));
  for (const number of node.marks) {
    const rewrite = data.rewrites.find((r) => r.number === number);
    if (rewrite) lines.push(make("p", {}, ...told(rewrite)));
  }
  for (const group of data.refusals) {
    if (group.nodes.includes(node.label)) {
      lines.push(make("p", {}, `stays: ${group.reason}`, ...(group.advice ? [make("span", { class: "advice" }, ` — ${group.advice}`)] : [])));
    }
  }
  $("detail").replaceChildren(...lines);
}
function detailOfRewrite(rewrite) {
  $("detail").replaceChildren(
    make("h3", {}, `${rewrite.number}. ${rewrite.pass}: ${rewrite.rule}`),
    make("p", { class: "law" }, rewrite.law),
    make("p", {}, `${rewrite.before.join(", ")} → ${rewrite.after.join(", ") || "nothing"}`),
    make("p", {}, proof(rewrite)),
  );
}
function proof(rewrite) {
  return rewrite.exact ? `${ran(rewrite)}; in exact arithmetic: ${rewrite.exact}` : ran(rewrite);
}
function ran(rewrite) {
  if (rewrite.status === "not run") return `not run on its own: ${rewrite.reason || "nothing was validated"}`;
  if (rewrite.equal) return "run on its own: equal to the bit";
  return `run on its own: off by ${rewrite.error}, ${rewrite.allowed} allowed`;
}
function told(rewrite) {
  const show = () => view.showRewrite(rewrite);
  const link = make("button", { class: "site", type: "button", onclick: show }, `${rewrite.number}. ${rewrite.rule}`);
  return [link, ` ${rewrite.before.join(", ")} → ${rewrite.after.join(", ") || "nothing"} (${proof(rewrite)})`];
}

// -------------------------------------------------------------------------------- error chart

function chart() {
  const rows = data.rewrites.filter((rewrite) => rewrite.status !== "not run");
  hideUnless(rows.length, "errors-section");
  if (!rows.length) return;
  const [width, height, left, bottom] = [Math.max(280, $("errors").clientWidth), 200, 48, 24];
  const low = -6; // decades below the bound; what is equal lies on the ground
  const y = (ratio) => (ratio > 0 ? 10 + (height - bottom - 10) * Math.min(1, -Math.log10(ratio) / -low) : height - bottom);
  const x = (i) => left + ((width - left - 10) * (i + 0.5)) / rows.length;
  const picture = draw("svg", { width, height, role: "img", "aria-label": "error over bound of each rewrite" });
  for (const decade of [0, -1, -2, -3, -4, -5]) {
    const at = y(10 ** decade);
    picture.append(draw("line", { class: decade ? "axis" : "bound", x1: left, x2: width, y1: at, y2: at }));
    picture.append(draw("text", { class: "soft", x: left - 6, y: at + 4, "text-anchor": "end" }, decade ? `1e${decade}` : "bound"));
  }
  picture.append(draw("text", { class: "soft", x: left - 6, y: height - bottom + 4, "text-anchor": "end" }, "equal"));
  picture.append(draw("text", { class: "soft", x: left, y: height - 6 }, `${rows.length} rewrites, in their order`));
  rows.forEach((rewrite, i) => {
    const ratio = rewrite.equal ? 0 : rewrite.ratio;
    const names = ["dot", rewrite.equal || !ratio ? "equal" : "", ratio > 1 ? "over" : ""].filter(Boolean).join(" ");
    picture.append(draw("circle", { class: names, cx: x(i), cy: y(ratio), r: 4, onclick: () => view.showRewrite(rewrite) },
      draw("title", {}, `${rewrite.number}. ${rewrite.rule} at ${rewrite.site}: ${proof(rewrite)}`)));
  });
  $("errors").replaceChildren(picture);
}

// ------------------------------------------------------------------------------ cost by layer

const FIRST_LAYERS = 25;
function costs() {
  const layers = data.cost.layers;
  hideUnless(layers.length, "cost-section");
  if (!layers.length) return;
  const most = (kind) => Math.max(1, ...layers.map((layer) => Math.max(layer[kind][0] || 0, layer[kind][1] || 0)));
  const scale = { adds: most("adds"), bytes: most("bytes") };
  const bars = (layer, kind, told) => make("div", { class: "bars" },
    make("span", { class: "told" }, told),
    ...["before", "after"].map((side, i) => make("i", { class: side, style: `width:${(100 * (layer[kind][i] || 0)) / scale[kind]}%` })));
  const line = (layer) => {
    const show = () => { view.select(layer.label); $("graphs-section").scrollIntoView({ behavior: "smooth" }); };
    const name = layer.label
      ? make("button", { class: "site", type: "button", title: layer.name, onclick: show }, shortened(layer.name, 60))
      : make("span", { title: layer.name }, shortened(layer.name, 60));
    return make("div", { class: "layer", role: "row" }, make("div", { class: "who" }, name, make("small", {}, layer.operator)),
      bars(layer, "adds", layer.told[0]), bars(layer, "bytes", layer.told[1]));
  };
  const weight = (layer, kind) => Math.max(layer[kind][0] || 0, layer[kind][1] || 0);
  const orders = {
    graph: () => 0,
    adds: (one, two) => weight(two, "adds") - weight(one, "adds"),
    bytes: (one, two) => weight(two, "bytes") - weight(one, "bytes"),
    change: (one, two) => change(two) - change(one),
  };
  const change = (layer) => ["adds", "bytes"].reduce((sum, kind) => sum + Math.abs((layer[kind][0] || 0) - (layer[kind][1] || 0)) / scale[kind], 0);
  let all = false;
  const fillIn = () => {
    const sorted = [...layers].sort(orders[$("cost-order").value]);
    $("cost").replaceChildren(...(all ? sorted : sorted.slice(0, FIRST_LAYERS)).map(line));
    $("cost-all").hidden = all || layers.length <= FIRST_LAYERS;
  };
  $("cost-order").value = layers.length > FIRST_LAYERS ? "adds" : "graph";
  $("cost-order").addEventListener("change", fillIn);
  $("cost-all").textContent = `show all ${layers.length.toLocaleString("en")} layers`;
  $("cost-all").addEventListener("click", () => { all = true; fillIn(); });
  if (data.cost.fed) $("cost-fed").textContent = `in one run with ${data.cost.fed}`;
  fillIn();
}

// ------------------------------------------------------------------------------------- the page

function start() {
  document.title = `graphpass: ${data.title}`;
  $("files").textContent = data.title;
  $("verdict").textContent = data.verdict;
  $("remarks").append(...data.remarks.map((line) => make("li", {}, line)));
  for (const [label, before, after, remark] of data.facts) {
    $("facts").append(make("div", {}, make("dt", {}, label), make("dd", {}, before === after ? before : `${before} → ${after}`, ...(remark ? [make("small", {}, remark)] : []))));
  }
  table($("operators"), ["operator", "before", "after"], data.operators, [1, 2]);
  if (data.passes) table($("passes"), data.passes.header, data.passes.rows, [1, 2, 3, 4]);
  if (data.choices) table($("choices"), data.choices.header, data.choices.rows, [2, 3]);
  if (data.outputs) table($("outputs"), data.outputs.header, data.outputs.rows, [1, 2, 3, 4, 5, 6]);
  table($("run"), ["", ""], data.run);
  hideUnless(data.passes, "passes-section");
  hideUnless(data.run.length, "run-section");
  hideUnless(data.operators.length, "operators-section");
  hideUnless(data.choices && data.choices.rows.length, "choices-section");
  hideUnless(data.outputs && data.outputs.rows.length, "outputs-section");
  costs();
  const rules = new Map();
  for (const rewrite of data.rewrites) {
    const key = `${rewrite.pass}: ${rewrite.rule}`;
    if (!rules.has(key)) rules.set(key, []);
    rules.get(key).push(rewrite);
  }
  hideUnless(rules.size, "rewrites-section");
  for (const [key, rewrites] of rules) {
    const list = make("ul");
    const entry = make("details", { ontoggle: () => {
      if (!list.childElementCount) list.append(...rewrites.map((rewrite) => make("li", {}, ...told(rewrite))));
    } }, make("summary", {}, `${rewrites.length} × ${key} `, make("span", { class: "law" }, rewrites[0].law)), list);
    $("rewrites").append(entry);
  }
  hideUnless(data.refusals.length, "refusals-section");
  for (const group of data.refusals) {
    const nodes = group.nodes.slice(0, 200).map((label) =>
      make("li", {}, make("button", { class: "site", type: "button", onclick: () => { view.select(label); $("graphs-section").scrollIntoView(); } }, label)));
    $("refusals").append(make("details", {}, make("summary", {}, `${group.nodes.length} × ${group.pass}: ${group.reason}`,
      ...(group.advice ? [make("span", { class: "advice" }, ` — ${group.advice}`)] : [])), make("ul", {}, ...nodes)));
  }
  hideUnless(data.graphs.length, "graphs-section");
  if (data.graphs.length) view.start(data.graphs);
  chart();
  window.addEventListener("resize", chart);
  $("touched").addEventListener("click", () => view.showTouched());
  hideUnless(data.rewrites.length || data.alone, "touched");
  if (data.alone) $("touched").textContent = "show what differs";
  $("closer").addEventListener("click", () => view.zoomBy(1.25));
  $("farther").addEventListener("click", () => view.zoomBy(0.8));
  $("fit").addEventListener("click", () => view.fit(0.1, 1.5));
  $("fold").addEventListener("click", () => view.fold());
  $("search").addEventListener("input", (event) => search(event.target.value.trim().toLowerCase()));
}

function search(text) {
  if (text.length < 2) {
    $("found").value = "";
    return;
  }
  const labels = new Set();
  for (const side of view.sides) {
    for (const node of side.graph.nodes) {
      if (node.label.toLowerCase().includes(text) || node.outputs.some((name) => name.toLowerCase().includes(text))) labels.add(node.label);
    }
  }
  $("found").value = labels.size === 1 ? "1 node" : `${labels.size} nodes`;
  if (labels.size) view.select([...labels][0]);
}

start();
