"use strict";

function make(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

function section(path, method, route) {
  const made = document.createElement("section");
  made.append(make("h2", `${method.toUpperCase()} ${path}`), make("p", route.description || ""));
  const table = document.createElement("table");
  for (const [code, answer] of Object.entries(route.responses)) {
    const row = document.createElement("tr");
    row.append(make("td", code), make("td", answer.description));
    table.append(row);
  }
  made.append(table);
  const body = route.requestBody && route.requestBody.content["application/json"];
  if (body) made.append(make("h3", "Body"), make("pre", JSON.stringify(body.schema, null, 1)));
  return made;
}

fetch("/openapi.json").then((response) => response.json()).then((description) => {
  if (!description.paths) throw new Error(description.error);
  const routes = Object.entries(description.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, route]) => section(path, method, route)));
  document.getElementById("routes").replaceChildren(...routes);
}).catch((error) => {
  document.getElementById("about").textContent = `openapi.json: ${error.message}`;
});
