// Recording state, and links to the finished files.

/** Why a recording ends by itself, or with nothing in it. */
const REASONS = {
  disk_full: "less than 1 GiB is free on the server's disk",
  too_long: "it has reached 4 GiB",
  no_encoder: "the server's PyAV has no H.264 encoder",
  empty: "nothing had been shown yet, and no file was made",
};

export class RecordView {
  /** @param {(id: string) => any} find @param {(text: string) => void} say */
  constructor(find, say) {
    this.say = say;
    this.button = find("record");
    this.badge = find("recording-badge");
    this.time = find("recording-time");
    this.list = find("recordings");
    this.active = false;
    this.since = 0;
    setInterval(() => this.tick(), 500);
  }

  /** @param {any} record */
  show(record) {
    const active = record.state === "recording";
    if (active && !this.active) this.since = performance.now();
    if (this.active && !active && record.reason) this.say(`The recording ended: ${REASONS[record.reason] ?? record.reason}.`);
    this.active = active;
    this.badge.hidden = !active;
    this.button.setAttribute("aria-pressed", String(active));
    this.button.querySelector("span").textContent = active ? "Stop" : "Record";
    this.button.title = active ? "Stop recording" : "";
    this.list.replaceChildren(...record.finished.map((/** @type {any} */ file) => row(file)));
    this.tick();
  }

  tick() {
    if (!this.active) return;
    const seconds = Math.floor((performance.now() - this.since) / 1000);
    this.time.textContent = `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
  }
}

/** @param {{name: string, bytes: number}} file */
function row(file) {
  const link = Object.assign(document.createElement("a"), {
    href: `/v1/recordings/${encodeURIComponent(file.name)}`,
    download: file.name,
    textContent: when(file.name),
  });
  const size = Object.assign(document.createElement("span"), { textContent: sized(file.bytes) });
  const item = document.createElement("li");
  item.append(link, size);
  return item;
}

/** The time of recording, which is in the name, as the reader's clock shows it. @param {string} name */
function when(name) {
  const parts = name.match(/^rec_(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z/);
  if (!parts) return name;
  const [year, month, day, hour, minute, second] = parts.slice(1).map(Number);
  const date = new Date(Date.UTC(year, month - 1, day, hour, minute, second));
  return date.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
}

/** @param {number} bytes */
function sized(bytes) {
  return bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1e3))} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}
