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

async function load() {
  const token = document.getElementById("token").value;
  const response = await fetch("/openapi.json", token ? { headers: { authorization: `Bearer ${token}` } } : {});
  const description = await response.json();
  if (response.status === 401) {
    document.getElementById("access").hidden = false;
    document.getElementById("access").open = true;
  }
  if (!description.paths) throw new Error(description.error);
  const routes = Object.entries(description.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, route]) => section(path, method, route)));
  document.getElementById("about").textContent = "The description below is made from openapi.json.";
  document.getElementById("routes").replaceChildren(...routes);
}

const attempt = () => load().catch((error) => {
  document.getElementById("about").textContent = `openapi.json: ${error.message}`;
});
document.getElementById("token").addEventListener("change", attempt);
attempt();
