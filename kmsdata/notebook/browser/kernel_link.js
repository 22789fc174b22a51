// Find out whether the kernel answers, by messages that it has to answer.
//
// What a front end shows as the kernel's status does not tell: with ipykernel's subshells a kernel answers while
// a cell runs, and a notebook that was reopened shows the widgets of a kernel that is gone.

const BUSY_AFTER = 1000; // milliseconds without an answer
const GONE_AFTER = 30000;
const GONE_AFTER_RESTART = 5000; // where the front end said that the connection was lost

/**
 * Watch the kernel of a widget.
 *
 * model: anywidget's model. Python answers each message `{type, link, number}` with `{type: "answer", link, number}`.
 * id: the model's id, by which ipywidgets finds its own model; null where that is unknown.
 * changed: called with the new state: "there" (it answered), "busy" (no answer for a second) or "gone" (no answer for
 *     30 seconds, or nothing can be sent).
 */
function kernelLink(model, id, changed) {
  const link = crypto.getRandomValues(new Uint32Array(2)).join("-"); // two windows can show the same widget
  let state = "";
  let number = 0;
  let since = null; // when the first message was sent that has no answer yet
  let lost = false;
  let timer = null;

  function set(next) {
    if (next === state) return;
    state = next;
    changed(state);
  }

  function look() {
    clearTimeout(timer);
    if (since === null) return;
    const waited = Date.now() - since;
    const limit = lost ? GONE_AFTER_RESTART : GONE_AFTER;
    if (waited >= limit) return set("gone"); // a late answer still changes it back
    if (waited >= BUSY_AFTER && state !== "gone") set("busy");
    timer = setTimeout(look, waited < BUSY_AFTER ? BUSY_AFTER - waited : limit - waited);
  }

  function answered(content) {
    if (content?.type !== "answer" || content.link !== link) return;
    lost = false;
    if (content.number === number) since = null;
    set("there");
    look();
  }

  // A widget that was restored from a file has no connection, and its messages would vanish without an error.
  async function connected() {
    try {
      const whole = await model.widget_manager.get_model(id);
      return typeof whole.comm_live !== "boolean" || whole.comm !== undefined; // marimo's models have no comm_live
    } catch {
      return true; // this front end does not say
    }
  }

  /** Send a message; return its number, or null if it cannot be sent. */
  function send(content, buffers) {
    number += 1;
    try {
      model.send({ ...content, link, number }, undefined, buffers);
    } catch {
      set("gone");
      return null;
    }
    since ??= Date.now();
    look();
    return number;
  }

  /** Ask whether the kernel is there, unless a question is open. */
  async function ping() {
    if (!(await connected())) return set("gone");
    if (since === null || Date.now() - since > GONE_AFTER_RESTART) send({ type: "ping" });
  }

  function interrupted() {
    lost = true;
    since = null;
    ping();
  }

  model.on("msg:custom", answered);
  model.on("comm_live_update", interrupted); // ipywidgets: the connection was lost, or is back
  ping();
  return {
    send,
    ping,
    get state() {
      return state;
    },
    close() {
      clearTimeout(timer);
      model.off("msg:custom", answered);
      model.off("comm_live_update", interrupted);
    },
  };
}
