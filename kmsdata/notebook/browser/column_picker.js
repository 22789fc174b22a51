// The table of df.kms.pick(). It gets labels, counts and shapes; no value of the data comes here.
// Its roles are written out: where there is little room, the style sheet shows its rows as blocks, which then would be
// no table for a screen reader.

const CHOICES = ["plain", "randomised", "deterministic"];
const MARKS = { ask: "i", busy: "…", good: "✓", bad: "!" };
const WIDTH = 88; // characters of a line of code
const BUSY = "The kernel is busy. It encrypts when the running cell ends.";
const GONE =
  "The kernel does not answer: it was restarted, or this notebook was opened again. Run the cell again. " +
  "(Where a cell has been running for long, the picker works again when it ends.)";
const CHANGED = "The choices were changed after this. Press Encrypt to use them.";

const PICKER = `
<div class="kms-top"><b>Choose the columns to encrypt</b>
  <label>Filter <input type="search" class="kms-filter" placeholder="name, type or warning"></label>
  <span class="kms-count" role="status"></span></div>
<div class="kms-scroll"><table role="table">
  <thead role="rowgroup"><tr role="row"><th role="columnheader">Column</th>
    <th role="columnheader" class="kms-number">Nulls</th><th role="columnheader" class="kms-number">Distinct</th>
    <th role="columnheader">Shape</th><th role="columnheader">Choice</th></tr></thead>
  <tbody role="rowgroup"></tbody></table></div>
<div class="kms-hint kms-legend"></div>
<pre class="kms-call" tabindex="0" aria-label="The equivalent call"><code></code></pre>
<div class="kms-buttons"><button type="button" class="kms-primary" data-do="encrypt">Encrypt</button>
  <button type="button" data-do="copy">Copy the call</button></div>
<div class="kmsdata-status" role="status" aria-live="polite"><b aria-hidden="true"></b> <span></span></div>`;

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text; // labels are shown as text, never as HTML
  return made;
}

/** Return a Python list of literals that begins after `used` characters of a line, folded at the width. */
function pythonList(literals, indent, used) {
  const whole = `[${literals.join(", ")}]`;
  if (used + whole.length <= WIDTH) return whole;
  const lines = [];
  for (const literal of literals) {
    const last = lines.length - 1;
    if (last >= 0 && indent.length + 4 + lines[last].length + literal.length + 3 <= WIDTH)
      lines[last] += ` ${literal},`;
    else lines.push(`${literal},`);
  }
  return `[\n${lines.map((line) => `${indent}    ${line}\n`).join("")}${indent}]`;
}

/** Return the call of df.kms.encrypt that the choices mean; an empty text if nothing is chosen. */
function pythonCall(frame, key, columns, choices) {
  const chosen = (choice) => columns.filter((_, at) => choices[at] === choice).map((column) => column.literal);
  const groups = [["", chosen("randomised")], ["deterministic=", chosen("deterministic")]].filter(
    ([, literals]) => literals.length > 0);
  if (groups.length === 0) return "";
  const last = key ? [key] : [];
  const line = `${frame}.kms.encrypt(${[...groups.map(([name, all]) => `${name}[${all.join(", ")}]`), ...last].join(", ")})`;
  if (line.length <= WIDTH) return line;
  const parts = groups.map(([name, all]) => name + pythonList(all, "    ", 5 + name.length));
  return `${frame}.kms.encrypt(\n${[...parts, ...last].map((part) => `    ${part},\n`).join("")})`;
}

function render({ model, el }) {
  const view = () => model.get("view");
  const columns = model.get("columns");
  const prefix = `kms-${crypto.getRandomValues(new Uint32Array(1))[0]}`;
  const root = element("section", "kmsdata kms-picker");
  root.setAttribute("aria-label", "Choose the columns to encrypt");
  root.innerHTML = PICKER; // a constant: texts from elsewhere are set as text below
  el.append(root);
  const one = (selector) => root.querySelector(selector);
  const filter = one(".kms-filter");
  const encrypt = one("[data-do=encrypt]");
  const copy = one("[data-do=copy]");
  const status = one(".kmsdata-status");

  let choices = [...model.get("choices")];
  let pending = null; // number of the message that was sent and has no answer yet
  let confirmed = null; // the choices that the button was pressed for
  let note = ""; // about copying

  // Rows.

  function cell(role, className, ...content) {
    const made = element(role === "rowheader" ? "th" : "td", className);
    made.setAttribute("role", role);
    made.append(...content);
    return made;
  }

  function makeRow(column, at) {
    const row = element("tr");
    row.setAttribute("role", "row");
    const choice = column.encrypted ? [`already encrypted, ${column.encrypted}`]
      : [makeGroup(column, at), makeNotes(column, at)];
    row.append(
      cell("rowheader", "kms-name", element("code", "", column.label), element("div", "kms-hint", column.dtype)),
      cell("cell", "kms-number kms-nulls", column.nulls),
      cell("cell", "kms-number kms-distinct", column.distinct),
      cell("cell", "kms-shape", element("code", "", column.shape)),
      cell("cell", "kms-choice", ...choice),
    );
    return row;
  }

  function makeGroup(column, at) {
    const group = element("div", "kms-group");
    group.setAttribute("role", "radiogroup");
    group.setAttribute("aria-label", `Choice for ${column.label}`);
    group.setAttribute("aria-describedby", `${prefix}-notes-${at}`);
    for (const choice of CHOICES) {
      const label = element("label", choice in column.refused ? "kms-refused" : "");
      const radio = element("input");
      radio.type = "radio";
      radio.name = `${prefix}-${at}`;
      radio.value = choice;
      radio.addEventListener("change", () => choose(at, choice));
      label.append(radio, choice);
      group.append(label);
    }
    return group;
  }

  function makeNotes(column, at) {
    const notes = element("ul", "kms-notes");
    notes.id = `${prefix}-notes-${at}`;
    for (const text of new Set(column.warnings.map(([, warning]) => warning))) {
      const item = element("li");
      item.dataset.warning = text;
      item.append(element("span", "kms-mark"), element("span", "", text), element("span", "kms-why"));
      notes.append(item);
    }
    const reasons = Object.entries(column.refused);
    const same = reasons.length > 1 && reasons.every(([, reason]) => reason === reasons[0][1]);
    for (const [, reason] of same ? reasons.slice(0, 1) : reasons) notes.append(element("li", "kms-hint", reason));
    return notes;
  }

  const rows = columns.map(makeRow);
  one("tbody").append(...rows);

  function choose(at, choice) {
    choices[at] = choice;
    note = "";
    model.set("choices", [...choices]);
    model.save_changes();
    update();
  }

  function updateRow(row, at, gone) {
    const column = columns[at];
    if (column.encrypted) return;
    for (const radio of row.querySelectorAll("input")) {
      radio.checked = radio.value === choices[at];
      radio.disabled = gone || radio.value in column.refused;
    }
    row.dataset.choice = choices[at];
    for (const item of row.querySelectorAll("[data-warning]")) {
      const found = column.warnings.find(([choice, text]) => choice === choices[at] && text === item.dataset.warning);
      item.classList.toggle("kms-active", Boolean(found));
      item.children[0].textContent = found ? "! " : "";
      item.children[2].textContent = found ? `: ${found[2]}` : "";
    }
  }

  // The whole.

  function show(node, text) {
    if (node.textContent !== text) node.textContent = text; // a change is read aloud
  }

  function filterRows() {
    const wanted = filter.value.trim().toLowerCase();
    let shown = 0;
    rows.forEach((row, at) => {
      const { label, dtype, warnings, encrypted } = columns[at];
      const text = [label, dtype, encrypted || choices[at], ...warnings.map(([, warning]) => warning)].join("\n");
      row.hidden = !text.toLowerCase().includes(wanted);
      if (!row.hidden) shown += 1;
    });
    const counted = CHOICES.slice(1).map((choice) =>
      `${choices.filter((one) => one === choice).length} ${choice}`);
    const first = wanted ? `${shown} of ${columns.length} columns shown` : `${columns.length} columns, ${view().rows} rows`;
    show(one(".kms-count"), `${first}; chosen: ${counted.join(", ")}`);
  }

  function update() {
    const now = view();
    const gone = link.state === "gone";
    if (gone) pending = null;
    const waiting = pending !== null || now.busy;
    rows.forEach((row, at) => updateRow(row, at, gone));
    filterRows();
    show(one(".kms-legend"), [now.scope, now.shapes].filter(Boolean).join(" "));
    one(".kms-legend").hidden = !now.scope && !now.shapes;
    const call = pythonCall(now.frame, now.key, columns, choices);
    show(one(".kms-call code"), call || "# choose at least one column");
    encrypt.disabled = gone || !call;
    encrypt.setAttribute("aria-disabled", String(waiting)); // not disabled: it keeps the focus
    copy.disabled = gone || !call;

    const changed = now.status[0] === "good" && confirmed !== null && confirmed !== JSON.stringify(choices);
    const [kind, text] = gone ? ["bad", GONE] : pending !== null && !now.busy && link.state === "busy" ? ["busy", BUSY]
      : note ? ["good", note] : changed ? ["ask", `${now.status[1]} ${CHANGED}`] : now.status;
    status.dataset.kind = kind;
    status.classList.toggle("kms-empty", !text); // not hidden: an element that appears is not read aloud
    show(status.children[0], text ? MARKS[kind] : "");
    show(status.children[1], text);
  }

  function press(event) {
    // The second click of a double click, or of a key that is held down, is no second call.
    if (event.detail > 1 || pending !== null || view().busy || encrypt.disabled) return;
    note = "";
    confirmed = JSON.stringify(choices);
    pending = link.send({ type: "encrypt", choices });
    update();
  }

  async function copyCall() {
    const text = one(".kms-call code").textContent;
    try {
      await navigator.clipboard.writeText(text); // only in secure contexts, and if the page is allowed to
      note = "The call is in the clipboard.";
    } catch {
      getSelection().selectAllChildren(one(".kms-call code"));
      note = document.execCommand("copy") ? "The call is in the clipboard."
        : "The browser does not let this page copy. The call is selected: press Ctrl+C (Cmd+C).";
    }
    update();
  }

  filter.addEventListener("input", filterRows);
  encrypt.addEventListener("click", press);
  copy.addEventListener("click", copyCall);
  root.addEventListener("focusin", () => link.ping());
  root.addEventListener("keydown", (event) => {
    if (event.repeat && event.target === encrypt && event.key === "Enter") event.preventDefault();
    // Single keys are commands of a notebook (such as "d d": delete the cell). Shortcuts with Ctrl or Cmd stay.
    if (!event.ctrlKey && !event.metaKey && !event.altKey) event.stopPropagation();
  });

  function answered(content) {
    if (content?.type === "answer" && content.number === pending) {
      pending = null;
      update();
    }
  }
  function chosen() {
    choices = [...model.get("choices")]; // in another window
    update();
  }

  const poll = setInterval(() => view().busy && link.ping(), 5000); // the kernel may end meanwhile
  const link = kernelLink(model, view().id, update);
  model.on("msg:custom", answered);
  model.on("change:view", update);
  model.on("change:choices", chosen);
  const forgetTheme = followTheme(root);
  update();
  return () => {
    forgetTheme();
    clearInterval(poll);
    link.close();
    model.off("msg:custom", answered);
    model.off("change:view", update);
    model.off("change:choices", chosen);
  };
}

export default { render };
