// Tell light from dark by the colour that is really behind the widget: every front end has its own way to say it.

function backgroundOf(element) {
  for (let at = element; at; at = at.parentElement ?? at.getRootNode().host) {
    const found = getComputedStyle(at).backgroundColor.match(/[\d.]+/g)?.map(Number);
    if (found && found.length >= 3 && (found[3] ?? 1) > 0.5) return found;
  }
  return [255, 255, 255];
}

/** Set the element's `color-scheme`, now and after each change of the theme; return a function that ends it. */
function followTheme(element) {
  function apply() {
    const [red, green, blue] = backgroundOf(element.parentElement ?? element);
    element.style.colorScheme = 0.299 * red + 0.587 * green + 0.114 * blue < 128 ? "dark" : "light";
  }
  const watcher = new MutationObserver(() => requestAnimationFrame(apply));
  for (const root of [document.documentElement, document.body]) watcher.observe(root, { attributes: true });
  // JupyterLab loads the style sheets of a theme after it has changed the attributes.
  const late = [100, 1000].map((delay) => setTimeout(apply, delay));
  const loaded = () => apply();
  document.head.addEventListener("load", loaded, true);
  apply();
  return () => {
    watcher.disconnect();
    late.forEach(clearTimeout);
    document.head.removeEventListener("load", loaded, true);
  };
}
