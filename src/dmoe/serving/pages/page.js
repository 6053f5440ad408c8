"use strict";

const element = (id) => document.getElementById(id);
let model = null;
let answered = null;

function headers(more) {
  const token = element("token").value;
  return token ? { ...more, authorization: `Bearer ${token}` } : more;
}

async function call(path, options = {}) {
  const response = await fetch(path, { ...options, headers: headers(options.headers || {}) });
  const body = await response.json();
  if (response.status === 401) {
    element("access").hidden = false;
    element("access").open = true;
  }
  if (!response.ok) throw new Error(body.error || `status ${response.status}`);
  return body;
}

async function attempt(action) {
  element("error").textContent = "";
  try {
    await action();
  } catch (error) {
    element("error").textContent = error.message;
  }
}

function make(tag, text, className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = className;
  return made;
}

async function load() {
  const models = await call("/v2");
  model = await call(`/v2/models/${models.models[0]}`);
  element("about").textContent =
    `Model ${model.name}, version ${model.versions[0]}, ${model.inputs.length} inputs, experts: ${model.experts.join(", ")}.`;
  element("fields").replaceChildren(...model.inputs.map((input, index) => {
    const label = make("label", input.name);
    const box = document.createElement("input");
    box.id = `field-${index}`;
    box.placeholder = "no value";
    if (input.datatype === "FP64") box.inputMode = "decimal";
    label.append(box);
    return label;
  }));
  // With several labels the name of each probability goes on: probability.click, probability.click+watch.
  element("labels").hidden = probabilities().length < 2;
  element("shown").replaceChildren(...probabilities().map((name) => new Option(inWords(name), name)));
}

const probabilities = () => model.outputs.map((one) => one.name).filter((name) => /^probability(\.|$)/.test(name));
const rest = (name) => name.slice("probability".length);
const inWords = (name) => {
  const chain = rest(name).slice(1).split("+");
  const label = (model.labels || []).find((one) => one.name === chain[0]);
  if (chain.length > 1) return chain.join(" and ");
  return label && label.given ? `${label.name}, given ${label.given}` : chain[0];
};
// The gate of a chain is that of its last label.
const gateOf = (name) => `gate_weights${name.includes("+") ? `.${name.split("+").pop()}` : rest(name)}`;

const box = (index) => element(`field-${index}`);

function fill(values) {
  model.inputs.forEach((input, index) => {
    const value = values[index];
    box(index).value = value === null || value === undefined ? "" : String(value);
  });
}

function fromText() {
  const text = element("paste").value.trim();
  if (!text) throw new Error("there is no text to fill in from");
  if (text.startsWith("{")) {
    const row = JSON.parse(text);
    const known = new Set(model.inputs.map((input) => input.name));
    const unknown = Object.keys(row).filter((name) => !known.has(name));
    fill(model.inputs.map((input) => row[input.name]));
    if (unknown.length) throw new Error(`no inputs of the model, left out: ${unknown.join(", ")}`);
    return;
  }
  const values = text.split(text.includes("\t") ? "\t" : ",");
  if (values.length !== model.inputs.length) {
    throw new Error(`the text holds ${values.length} values, the model has ${model.inputs.length} inputs`);
  }
  fill(values);
}

// The row itself, and then the row without the value of one field after another that has one.
async function score() {
  const values = model.inputs.map((_, index) => box(index).value || null);
  const given = values.flatMap((value, index) => (value === null ? [] : [index]));
  const inputs = model.inputs.map((input, index) => {
    const data = [values[index], ...given.map((without) => (without === index ? null : values[index]))];
    return { name: input.name, datatype: "BYTES", shape: [data.length], data };
  });
  const outputs = [...new Set(probabilities().flatMap((name) => [name, gateOf(name)]))].map((name) => ({ name }));
  const answer = await call(`/v2/models/${model.name}/infer`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ inputs, outputs }),
  });
  answered = { output: Object.fromEntries(answer.outputs.map((one) => [one.name, one])), given, values };
  showAll();
}

// Every label's probability, and the experts and fields of the one that was chosen.
function showAll() {
  const { output, given, values } = answered;
  element("scores").replaceChildren(...probabilities().map((name) => {
    const row = document.createElement("tr");
    const [probability] = output[name].data;
    row.append(make("td", inWords(name)), meter(inWords(name), probability), make("td", probability.toFixed(4), "number"));
    return row;
  }));
  const name = element("shown").value;
  if (probabilities().length > 1) element("of").textContent = `probability of ${inWords(name)}`;
  show(output[name].data, output[gateOf(name)], given, values);
}

function meter(name, value) {
  const bar = document.createElement("meter");
  bar.value = value;
  bar.title = `${name} ${value.toFixed(3)}`;
  const cell = document.createElement("td");
  cell.append(bar);
  return cell;
}

function show(scores, gate, given, values) {
  const [probability, ...without] = scores;
  element("result").hidden = false;
  element("probability").textContent = probability.toFixed(4);
  element("gate").hidden = gate.shape[1] < 2;
  element("weights").replaceChildren(...model.experts.map((expert, index) => {
    const row = document.createElement("tr");
    const weight = gate.data[index];
    row.append(make("td", expert), meter(expert, weight), make("td", weight.toFixed(3), "number"));
    return row;
  }));
  const moves = given.map((field, index) => ({ field, change: probability - without[index] }));
  moves.sort((one, other) => Math.abs(other.change) - Math.abs(one.change));
  element("moves").replaceChildren(...moves.map(({ field, change }) => {
    const row = document.createElement("tr");
    const size = Math.abs(change).toFixed(4);
    const text = Number(size) === 0 ? size : `${change < 0 ? "−" : "+"}${size}`;
    row.append(
      make("td", model.inputs[field].name),
      make("td", values[field]),
      make("td", text, `number ${change < 0 ? "down" : "up"}`),
    );
    return row;
  }));
}

element("fill").addEventListener("click", () => attempt(fromText));
element("example").addEventListener("click", () => attempt(() => fill(model.inputs.map((input) => input.example))));
element("clear").addEventListener("click", () => attempt(() => fill([])));
element("shown").addEventListener("change", () => attempt(showAll));
element("token").addEventListener("change", () => attempt(load));
element("row").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(async () => {
    if (!model) await load();
    await score();
  });
});
attempt(load);
