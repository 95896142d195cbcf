// The theme's colours, for what is drawn by hand. They follow the browser's wish for light or dark by themselves.

const style = getComputedStyle(document.documentElement);

/** @param {string} name of a custom property, without its dashes @returns {string} */
export function colour(name) {
  return style.getPropertyValue(`--${name}`).trim();
}
