// The form of kmsdata.login(). Secrets live in its input elements only, until they are sent once and cleared.

const SECRETS = ["secret_id", "secret_key", "token", "passphrase", "repeated"];
const OTHER = "*"; // the choice that shows a text field for another value
const MARKS = { ask: "i", busy: "…", good: "✓", bad: "!" };
const BUSY = "The kernel is busy. The form connects when the running cell ends.";
const GONE =
  "The kernel does not answer: it was restarted, or this notebook was opened again. Run the cell again. " +
  "(Where a cell has been running for long, the form works again when it ends.)";
const OPEN =
  "This page is not encrypted (plain http), so what you type here reaches the server of the notebook unencrypted.";

const LOST = "What you had typed was cleared, because the kernel did not answer. Type it again.";

const FORM = `
<form class="kms-ask" autocomplete="off" novalidate>
  <div class="kms-head"><b>Sign in to a key service</b>
    <div class="kms-hint">What you type goes to this kernel's memory. The notebook and its outputs never contain it.</div>
    <div class="kms-hint kms-open" hidden></div>
  </div>
  <div class="kms-row"><span class="kms-label" id="ID-where">Keys are in</span>
    <div class="kms-buttons" role="group" aria-labelledby="ID-where">
      <button type="button" data-service="tencent">Tencent Cloud KMS</button>
      <button type="button" data-service="local">Local keystore</button>
    </div>
  </div>
  <div data-only="tencent">
    <div class="kms-row"><label for="ID-secret_id">SecretId</label><input id="ID-secret_id" type="password"></div>
    <div class="kms-row"><label for="ID-secret_key">SecretKey</label><input id="ID-secret_key" type="password"></div>
    <div class="kms-row"><label for="ID-token">Session token</label><input id="ID-token" type="password"></div>
    <div class="kms-row"><label for="ID-region">Region</label><select id="ID-region"></select></div>
    <div class="kms-row" data-other="region"><label for="ID-code">Region's code</label>
      <input id="ID-code" placeholder="such as ap-guangzhou"></div>
    <details class="kms-row kms-more"><summary>Endpoint</summary>
      <input id="ID-endpoint" aria-label="Endpoint" placeholder="kms.tencentcloudapi.com"></details>
  </div>
  <div data-only="local">
    <div class="kms-row"><span class="kms-label">File</span><code class="kms-file"></code></div>
    <div class="kms-row"><label for="ID-passphrase">Passphrase</label><input id="ID-passphrase" type="password"></div>
    <div class="kms-row" data-repeat><label for="ID-repeated">Once more</label><input id="ID-repeated" type="password"></div>
  </div>
  <div class="kms-row"><span class="kms-label"></span><button type="submit" class="kms-primary">Connect</button></div>
</form>
<div class="kmsdata-status" role="status" aria-live="polite"><b aria-hidden="true"></b> <span></span></div>
<form class="kms-keys" autocomplete="off" novalidate>
  <div class="kms-row" data-list><label for="ID-key">Key</label><select id="ID-key"></select></div>
  <div class="kms-row" data-other="key"><label for="ID-name">Key's name</label><input id="ID-name"></div>
  <div class="kms-row"><span class="kms-label"></span><div class="kms-buttons">
    <button type="submit" class="kms-primary">Use this key</button>
    <button type="button" data-send="continue">Continue without</button>
    <button type="button" data-send="again">Sign in again</button></div>
  </div>
</form>
<div class="kms-done"><span class="kms-line"></span> <button type="button" data-send="change">change</button></div>`;

const HINTS = { secret_id: "AKID…", token: "only for temporary credentials", passphrase: "empty if the file has none" };

function render({ model, el }) {
  const view = () => model.get("view");
  const prefix = `kms-${crypto.getRandomValues(new Uint32Array(1))[0]}`;
  const root = document.createElement("section");
  root.className = "kmsdata kms-login";
  root.setAttribute("aria-label", "Sign in to a key service");
  root.innerHTML = FORM.replaceAll("ID-", `${prefix}-`); // a constant: texts from elsewhere are set as text below
  el.append(root);
  const one = (selector) => root.querySelector(selector);
  const field = (name) => root.querySelector(`#${prefix}-${name}`);
  const [ask, keys, done, status] = [".kms-ask", ".kms-keys", ".kms-done", ".kmsdata-status"].map(one);
  for (const input of root.querySelectorAll("input")) {
    // Password managers and the browser must not keep or fill in what is typed here. For a password, Chromium
    // ignores "off" and offers to save it; what is declared as a code for one use, it does not save.
    const once = input.type === "password" ? "one-time-code" : "off";
    for (const [name, text] of [["autocomplete", once], ["spellcheck", "false"], ["data-1p-ignore", ""],
      ["data-lpignore", "true"], ["autocapitalize", "off"]]) input.setAttribute(name, text);
  }

  let service = view().service;
  let quiet = false; // the other service was chosen: what was said of the first one does not apply
  let listed = null; // the regions or keys that were filled in
  let pending = null; // number of the message that was sent and has no answer yet
  let said = ""; // what went wrong in the page itself
  let moveFocus = false;
  let lost = false; // what was typed was cleared, because the kernel did not answer

  function choices(select, pairs, chosen) {
    select.replaceChildren(...pairs.map(([value, label, disabled]) => {
      const option = new Option(label, value);
      option.disabled = Boolean(disabled);
      return option;
    }));
    if (chosen !== null && pairs.some(([value, , disabled]) => value === chosen && !disabled)) select.value = chosen;
  }

  function fillIn(now) {
    const [regions, endpoint] = [JSON.stringify(now.regions), now.endpoint];
    if (listed?.regions !== regions || listed?.region !== now.region) {
      const known = now.regions.some(([code]) => code === now.region);
      const pairs = [["", "choose a region"], ...now.regions, [OTHER, "another: its code …"]];
      choices(field("region"), pairs, known || !now.region ? now.region : OTHER);
      field("code").value = known ? "" : now.region;
    }
    if (listed?.endpoint !== endpoint) {
      field("endpoint").value = endpoint;
      one(".kms-more").open = endpoint !== "";
    }
    const offered = JSON.stringify(now.keys);
    if (listed?.keys !== offered) {
      const pairs = now.keys.map(({ uri, name, state }) =>
        state === "Enabled" ? [uri, name] : [uri, `${name} · ${state}: cannot be used`, true]);
      choices(field("key"), [...pairs, [OTHER, "another …"]], now.key);
      field("key").size = Math.min(Math.max(pairs.length + 1, 2), 8);
    }
    listed = { regions, region: now.region, endpoint, keys: offered };
  }

  function update() {
    const now = view();
    const gone = link.state === "gone";
    const waiting = pending !== null || now.busy;
    fillIn(now);
    ask.hidden = now.step !== "ask";
    keys.hidden = now.step !== "keys";
    done.hidden = gone || !["done", "replaced"].includes(now.step); // without a kernel, nobody is signed in
    if (gone) pending = null;
    for (const button of root.querySelectorAll("[data-service]"))
      button.setAttribute("aria-pressed", String(button.dataset.service === service));
    for (const part of root.querySelectorAll("[data-only]")) part.hidden = part.dataset.only !== service;
    for (const part of root.querySelectorAll("[data-other]"))
      part.hidden = field(part.dataset.other).value !== OTHER;
    one("[data-list]").hidden = now.keys.length === 0;
    if (now.keys.length === 0) one("[data-other=key]").hidden = false;
    one("[data-repeat]").hidden = !now.repeat;
    one(".kms-file").textContent = now.file;
    field("name").placeholder = now.key_hint;
    for (const name of SECRETS) {
      const got = now.received[name];
      field(name).placeholder = got === undefined ? (HINTS[name] ?? "")
        : `received${got && `: ${got}`} (type to replace it, a blank to clear it)`;
    }
    one(".kms-open").hidden = window.isSecureContext;
    one(".kms-open").textContent = window.isSecureContext ? "" : OPEN;
    for (const part of root.querySelectorAll("input, select, button")) part.disabled = gone || waiting;
    if (gone || now.step !== "ask") {
      lost ||= gone && SECRETS.some((name) => field(name).value);
      for (const name of SECRETS) field(name).value = ""; // also in another window of this form
    }
    if (now.step !== "ask" || waiting) lost = false;
    one("[data-send=continue]").textContent = now.keep ? "Keep the key" : "Continue without";

    const [kind, text] = gone ? ["bad", GONE] : link.state === "busy" && !now.busy ? ["busy", BUSY]
      : said ? ["bad", said] : lost && link.state === "there" ? ["bad", LOST] : quiet ? ["ask", now.hints[service]] : now.status;
    status.hidden = !done.hidden && link.state !== "busy" && (kind === "good" || now.step === "replaced");
    status.dataset.kind = kind;
    const [mark, line] = status.children;
    if (mark.textContent !== MARKS[kind]) mark.textContent = MARKS[kind];
    if (line.textContent !== text) line.textContent = text; // a change is read aloud
    done.dataset.kind = now.step;
    one(".kms-line").textContent = now.line;

    if (moveFocus && !gone && !waiting) {
      moveFocus = false;
      const target = now.step === "keys" ? (now.keys.length ? field("key") : field("name"))
        : now.step === "ask" ? field(now.focus || (service === "local" ? "passphrase" : "secret_id")) : one(".kms-done button");
      // Not if the user has gone on to write in a cell meanwhile.
      const active = root.getRootNode().activeElement;
      if (!active || active === document.body || active.contains(root) || root.contains(active))
        (target?.offsetParent ? target : one("button:enabled"))?.focus();
    }
  }

  async function send(content, fields) {
    if (pending !== null || link.state === "gone") return; // a double click sends once
    pending = -1;
    said = "";
    moveFocus = root.contains(root.getRootNode().activeElement);
    update();
    try {
      let buffer = fields && utf8(JSON.stringify(fields));
      const sealed = window.isSecureContext;
      if (fields && sealed) buffer = await sealMessage(fromBase64(view().public_key), utf8(view().info), buffer);
      pending = link.send({ ...content, ...(fields && { sealed }) }, fields && [buffer.buffer]);
    } catch {
      pending = null;
      said = "This browser could not encrypt what you typed, so nothing was sent. Reload the page, or use another browser.";
    }
    update();
  }

  ask.addEventListener("submit", (event) => {
    event.preventDefault();
    if (pending !== null) return;
    const fields = { service, endpoint: field("endpoint").value };
    fields.region = field("region").value === OTHER ? field("code").value : field("region").value;
    for (const name of SECRETS) {
      if (field(name).value && field(name).offsetParent) fields[name] = field(name).value;
      field(name).value = "";
    }
    send({ type: "connect" }, fields);
  });
  keys.addEventListener("submit", (event) => {
    event.preventDefault();
    const chosen = field("key").value;
    send({ type: "choose" }, { key: chosen && chosen !== OTHER ? chosen : field("name").value });
  });
  root.addEventListener("click", (event) => {
    const { service: other, send: type } = event.target.dataset ?? {};
    if (type) send({ type });
    if (!other || other === service) return;
    [service, quiet, said] = [other, true, ""];
    update();
  });
  // The second click of a double click belongs to the button that was there at the first.
  root.addEventListener("click", (event) => {
    if (event.detail < 2 || !event.target.closest("button")) return;
    event.preventDefault();
    event.stopPropagation();
  }, true);
  root.addEventListener("change", update);
  root.addEventListener("focusin", () => link.ping());
  root.addEventListener("keydown", (event) => {
    // Single keys are commands of a notebook (such as "d d": delete the cell). Shortcuts with Ctrl or Cmd stay.
    if (!event.ctrlKey && !event.metaKey && !event.altKey) event.stopPropagation();
  });

  function changed() {
    [service, quiet] = [view().service, false];
    update();
  }

  const poll = setInterval(() => view().busy && link.ping(), 5000); // the kernel may end meanwhile
  const link = kernelLink(model, view().id, update);
  function answered(content) {
    if (content?.type === "answer" && content.number === pending) {
      pending = null;
      update();
    }
  }
  model.on("msg:custom", answered);
  model.on("change:view", changed);
  const forgetTheme = followTheme(root);
  update();
  return () => {
    forgetTheme();
    clearInterval(poll);
    link.close();
    model.off("msg:custom", answered);
    model.off("change:view", changed);
  };
}

function fromBase64(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

export default { render };
