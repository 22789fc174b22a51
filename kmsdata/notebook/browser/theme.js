// Tell light from dark by the colour that is really behind the widget: every front end has its own way to say it.

/** Return [red, green, blue, alpha], each 0 to 255: themes write colours as rgb, oklch, lab and more. */
function channels(colour) {
  const pixel = new OffscreenCanvas(1, 1).getContext("2d");
  pixel.fillStyle = colour;
  pixel.fillRect(0, 0, 1, 1);
  return pixel.getImageData(0, 0, 1, 1).data;
}

function isDark(element) {
  for (let at = element; at; at = at.parentElement ?? at.getRootNode().host) {
    const [red, green, blue, alpha] = channels(getComputedStyle(at).backgroundColor);
    if (alpha > 127) return 0.299 * red + 0.587 * green + 0.114 * blue < 128;
  }
  return getComputedStyle(document.documentElement).colorScheme.startsWith("dark");
}

/** Set the element's `color-scheme`, now and after each change of the theme; return a function that ends it. */
function followTheme(element) {
  function apply() {
    element.style.colorScheme = isDark(element.parentElement ?? element.getRootNode().host) ? "dark" : "light";
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
