"use strict";

// The filter builder: forms over the JSON that is sent. Without this script the JSON alone is there.
(() => {
  const text = document.getElementById("filter");
  const builder = document.getElementById("builder");
  const template = document.getElementById("condition");
  if (!text || !builder || !template) return;
  const known = JSON.parse(document.getElementById("known").textContent);
  const make = (name, props, ...children) => {
    const made = Object.assign(document.createElement(name), props);
    made.append(...children);
    return made;
  };

  const join = make("select", {},
    make("option", { value: "$and", textContent: "all of these ($and)" }),
    make("option", { value: "$or", textContent: "any of these ($or)" }));
  const joined = make("label", { className: "field joined" }, "Documents must pass", join);
  const list = make("div", {});
  const add = make("button", { type: "button", textContent: "Add condition" });
  const told = make("p", { className: "note warn", hidden: true });
  told.setAttribute("role", "status");
  builder.append(joined, list, add, told);
  builder.hidden = false;

  const part = (row, name) => row.querySelector(`[data-part=${name}]`);
  const numeric = new Set(["$gt", "$gte", "$lt", "$lte"]);
  let ids = 0;

  // What is typed, as the value that it is: a number, true or false, or else text; "42" in quotes is text.
  function valueOf(typed) {
    const trimmed = typed.trim();
    try {
      const value = JSON.parse(trimmed);
      if (["number", "boolean", "string"].includes(typeof value)) return value;
    } catch { /* text, then */ }
    return typed;
  }

  function valuesOf(typed) {
    if (typed.trim().startsWith("[")) {
      try { return JSON.parse(typed); } catch { /* a list that is being typed */ }
    }
    return typed.split(",").map((one) => valueOf(one.trim())).filter((one) => one !== "");
  }

  function typedOf(value) {
    if (typeof value !== "string") return JSON.stringify(value);
    return valueOf(value) === value ? value : JSON.stringify(value);
  }

  function typedOfAll(values) {
    const plain = values.map(typedOf);
    return plain.some((one) => one.includes(",")) ? JSON.stringify(values) : plain.join(", ");
  }

  function row(of = { not: false, field: "", operator: "$eq", value: "" }) {
    const made = template.content.firstElementChild.cloneNode(true);
    part(made, "not").checked = of.not;
    part(made, "field").value = of.field;
    part(made, "operator").value = of.operator;
    part(made, "value").value = of.value;
    const values = make("datalist", { id: `values-${ids += 1}` });
    made.append(values);
    part(made, "value").setAttribute("list", values.id);
    const suggest = () => {
      const some = known[part(made, "field").value] || [];
      values.replaceChildren(...some.map((one) => make("option", { value: typedOf(one) })));
      const near = part(made, "operator").value === "$near";
      part(made, "value").placeholder = near ? "lat,lng,radiusMeters" : "";
    };
    suggest();
    made.addEventListener("input", () => { suggest(); write(); });
    part(made, "remove").addEventListener("click", () => { made.remove(); write(); add.focus(); });
    list.append(made);
    number();
    return made;
  }

  function number() {
    [...list.children].forEach((one, at) => {
      one.querySelector("legend").textContent = `Condition ${at + 1}`;
      part(one, "remove").setAttribute("aria-label", `Remove condition ${at + 1}`);
    });
    joined.hidden = list.children.length < 2;
  }

  // A condition on one line; what is in quotes keeps its commas and colons as they are.
  function spaced(condition) {
    return JSON.stringify(condition, null, 1).replace(/\n */g, (_, at, all) => (/[[{]/.test(all[at - 1]) || /^\n *[\]}]/.test(all.slice(at)) ? "" : " "));
  }

  function fit() {
    text.rows = Math.min(14, Math.max(3, text.value.split("\n").length));
  }

  function write() {
    const all = [...list.children].filter((one) => part(one, "field").value).map((one) => {
      const operator = part(one, "operator").value;
      const typed = part(one, "value").value;
      let value = valueOf(typed);
      if (operator === "$in" || operator === "$nin") value = valuesOf(typed);
      else if (operator === "$near") value = typed.trim();
      else if (numeric.has(operator) && typeof value !== "number") value = typed;
      const condition = { field: part(one, "field").value, condition: { [operator]: value } };
      return part(one, "not").checked ? { $not: condition } : condition;
    });
    text.value = all.length < 2 ? all.map(spaced).join("") : `{"${join.value}": [\n  ${all.map(spaced).join(",\n  ")}\n]}`;
    told.hidden = true;
    fit();
    number();
  }

  // A condition as a row shows it, or undefined where it is more than that.
  function simple(raw, not = false) {
    if (raw && !not && raw.$not && Object.keys(raw).length === 1) return simple(raw.$not, true);
    if (!raw || typeof raw.field !== "string" || typeof raw.condition !== "object" || raw.condition === null) return undefined;
    const operators = Object.keys(raw.condition);
    const known = [...template.content.querySelectorAll("option")].map((one) => one.value);
    if (operators.length !== 1 || !known.includes(operators[0]) || Object.keys(raw).length !== 2) return undefined;
    const value = raw.condition[operators[0]];
    if (value === null || (typeof value === "object" && !Array.isArray(value))) return undefined;
    return { not, field: raw.field, operator: operators[0], value: Array.isArray(value) ? typedOfAll(value) : operators[0] === "$near" ? value : typedOf(value) };
  }

  function read() {
    let raw;
    fit();
    try {
      raw = text.value.trim() ? JSON.parse(text.value) : null;
    } catch {
      told.textContent = "This is not JSON yet.";
      told.hidden = false;
      return;
    }
    const name = raw && ["$and", "$or"].find((one) => Array.isArray(raw[one]));
    const rows = (name ? raw[name] : raw === null ? [] : [raw]).map((one) => simple(one));
    if (rows.includes(undefined) || (name && Object.keys(raw).length > 1)) {
      told.textContent = "This filter is more than these fields can show; it is sent as the JSON says.";
      told.hidden = false;
      list.replaceChildren();
      number();
      return;
    }
    told.hidden = true;
    if (name) join.value = name;
    list.replaceChildren();
    rows.forEach((one) => row(one));
    number();
  }

  add.addEventListener("click", () => { part(row(), "field").focus(); });
  join.addEventListener("input", write);
  text.addEventListener("input", read);
  read();
})();

// How many documents are chosen, on the button that deletes them.
(() => {
  const button = document.querySelector("button.danger[data-counts]");
  if (!button) return;
  const boxes = [...document.querySelectorAll("input[name=id][type=checkbox]")];
  const count = () => {
    const chosen = boxes.filter((one) => one.checked).length;
    button.textContent = chosen ? `Delete ${chosen} chosen ${chosen === 1 ? "document" : "documents"}…` : "Delete chosen documents…";
    button.disabled = chosen === 0;
  };
  boxes.forEach((one) => one.addEventListener("change", count));
  window.addEventListener("pageshow", count);
  count();
})();

// Times are told in UTC; the reader's own beside them.
for (const one of document.querySelectorAll("time[datetime]")) {
  one.title = new Date(one.dateTime).toLocaleString();
}
