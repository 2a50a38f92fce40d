// The console's script: keeps the cluster page fresh, sends what forms and buttons say, uploads files.
"use strict";

const REFRESH_MS = 2000;
const ANSWER_MS = 5000;

const csrf = document.querySelector('meta[name="csrf"]').content;
const problem = document.getElementById("problem");

function complain(text) {
  problem.textContent = text;
  problem.hidden = !text;
}

// ---- the cluster page ------------------------------------------------------------------------------
const live = document.getElementById("live");
let answeredAt = Date.now();

async function refresh() {
  if (document.hidden) return;
  try {
    const answer = await fetch(live.dataset.refresh, { signal: AbortSignal.timeout(ANSWER_MS) });
    if (answer.status === 401) return void location.assign("/login");
    if (!answer.ok) throw new Error((await answer.json()).message);
    live.innerHTML = await answer.text();
    answeredAt = Date.now();
    live.classList.remove("stale");
    complain("");
  } catch (error) {
    const age = Math.round((Date.now() - answeredAt) / 1000);
    live.classList.add("stale");
    complain(`This node does not answer (${error.message}). What you see is ${age} s old; try another node.`);
  }
}

async function keepFresh() {
  await refresh();
  setTimeout(keepFresh, REFRESH_MS);
}

if (live) {
  setTimeout(keepFresh, REFRESH_MS);
  document.addEventListener("visibilitychange", refresh);
}

// ---- forms and buttons: data-api="METHOD /path/{field}" ---------------------------------------------
async function send(element, fields) {
  const [method, template] = element.dataset.api.split(/ (.*)/);
  const question = element.dataset.confirm;
  if (question && !window.confirm(question)) return;
  const path = template.replace(/\{(\w+)\}/g, (_, name) => {
    const value = fields[name];
    delete fields[name];
    return encodeURIComponent(value);
  });
  const body = element.dataset.body ?? (Object.keys(fields).length ? JSON.stringify(fields) : undefined);
  complain("");
  let answer;
  try {
    answer = await fetch(path, {
      method,
      body,
      headers: { "X-CSRF-Token": csrf, ...(body ? { "Content-Type": "application/json" } : {}) },
      signal: AbortSignal.timeout(30000),
    });
  } catch (error) {
    return complain(`No answer: ${error.message}. The change may have been made; look before you repeat it.`);
  }
  if (answer.status === 401 && !path.endsWith("/login")) return void location.assign("/login");
  const text = await answer.text();
  if (!answer.ok) {
    let message = text;
    try { message = JSON.parse(text).message; } catch { /* not JSON: shown as it is */ }
    return complain(message || `${answer.status}`);
  }
  if (element.dataset.show) {
    const dialog = document.getElementById("shown");
    const shown = Object.entries(JSON.parse(text)).map(([name, value]) => `${name}  ${value}`);
    dialog.querySelector("pre").textContent = [element.dataset.show, "", ...shown].join("\n");
    dialog.addEventListener("close", () => location.reload(), { once: true });
    return void dialog.showModal();
  }
  if (element.dataset.then) location.assign(element.dataset.then);
  else location.reload();
}

async function sendOnce(element, fields, button) {
  button.disabled = true;
  try {
    await send(element, fields);
  } finally {
    button.disabled = false;
  }
}

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (!form.dataset.api) return;
  event.preventDefault();
  sendOnce(form, Object.fromEntries(new FormData(form)), form.querySelector("button"));
});

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-api]");
  if (button) sendOnce(button, {}, button);
});

// ---- uploads: one file after another, with progress ---------------------------------------------------
function upload(file, url, row) {
  return new Promise((resolve) => {
    const bar = row.querySelector("progress");
    const text = row.querySelector("span");
    const request = new XMLHttpRequest();
    const cancel = row.querySelector("button");
    cancel.addEventListener("click", () => request.abort());
    request.upload.addEventListener("progress", (event) => {
      if (event.lengthComputable && event.total) bar.value = event.loaded / event.total;
    });
    request.addEventListener("loadend", () => {
      cancel.remove();
      let said = "";
      try { said = JSON.parse(request.responseText).message ?? ""; } catch { /* no JSON */ }
      const done = request.status === 201;
      if (done) bar.value = 1;
      row.classList.add(done ? "done" : "failed");
      text.textContent = done ? "stored" : `not stored: ${said || request.status || "broken off"}`;
      resolve(done);
    });
    request.open("PUT", url);
    request.setRequestHeader("X-CSRF-Token", csrf);
    request.setRequestHeader("Content-Type", file.type || "application/octet-stream");
    request.send(file);
  });
}

const uploader = document.getElementById("upload");
uploader?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const list = document.getElementById("uploads");
  const button = uploader.querySelector("button");
  button.disabled = true;
  const rows = [...uploader.elements.files.files].map((file) => {
    const row = document.createElement("li");
    const name = document.createElement("b");
    name.textContent = file.name;
    const bar = document.createElement("progress");
    bar.value = 0;
    const cancel = document.createElement("button");
    cancel.type = "button";
    cancel.textContent = "Cancel";
    row.append(name, bar, document.createElement("span"), cancel);
    list.append(row);
    return [file, row];
  });
  let stored = true;
  for (const [file, row] of rows) {
    const key = uploader.dataset.prefix + file.name;
    stored = (await upload(file, `${uploader.dataset.target}?key=${encodeURIComponent(key)}`, row)) && stored;
  }
  button.disabled = false;
  if (stored) location.reload();
});
