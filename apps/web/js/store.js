// What is kept in this browser: in all its tabs, or in this one. Where that is not allowed, it lasts as long as the page.

class Store {
  /** @param {() => Storage} open may throw, as may all that is then asked of it */
  constructor(open) {
    this.open = open;
    /** @type {Map<string, string>} */
    this.unkept = new Map();
  }

  /** @param {string} name @returns {any} null for what is not there or not readable */
  get(name) {
    try {
      return JSON.parse(this.unkept.get(name) ?? this.open().getItem(name) ?? "null");
    } catch {
      return null;
    }
  }

  /** @param {string} name @param {any} value @returns {boolean} whether a reload will find it */
  set(name, value) {
    const text = JSON.stringify(value);
    try {
      this.open().setItem(name, text);
      this.unkept.delete(name);
      return true;
    } catch {
      this.unkept.set(name, text);
      return false;
    }
  }

  /** @param {string} name */
  remove(name) {
    this.unkept.delete(name);
    try {
      this.open().removeItem(name);
    } catch {
      // nothing was kept
    }
  }
}

export const inBrowser = new Store(() => localStorage);
export const inTab = new Store(() => sessionStorage);
